"""`models/V/train`: weights, pictures, history, figures and the id of the MLflow run of a finished training."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.project.redaction import redacted
from stages.registry.journal import RunJournal
from yolov7.data.tally import Tally
from yolov7.files import write_json

log = logging.getLogger(__name__)


def finish_journal(folder: Path, journal: RunJournal, *, weights: str = "best.safetensors") -> None:
    """Send the best weights, the history and the summary to MLflow, and end the run."""
    if not journal.ended:
        journal.artifact(folder / weights, "checkpoint")
        journal.artifact(folder / "history.csv")
        journal.artifact(folder / "summary.md")
        journal.finish()


def record_outputs(
    out: Path,
    journal: RunJournal,
    *,
    variant: str,
    key: str,
    seed: int,
    unused: Tally | None = None,
    first: Mapping[str, str | None] | None = None,
) -> None:
    """Finish the journal, and write the id of its run to `run.json`; `first` describes the training before it."""
    finish_journal(out, journal)
    run = {
        **run_document(journal, variant=variant, key=key, seed=seed),
        **({"training_objects": unused.document()} if unused is not None else {}),
        **({"first": dict(first)} if first is not None else {}),
    }
    write_json(out / "run.json", run)


def run_document(journal: RunJournal, *, variant: str, key: str, seed: int) -> dict[str, Any]:
    """The entries of `run.json` that every run has."""
    return {
        "run_id": journal.run_id,
        "experiment": journal.experiment,
        "tracking_uri": redacted(os.environ.get("MLFLOW_TRACKING_URI", "local")),
        "variant": variant,
        "fingerprint": key,
        "seed": seed,
    }
