"""Make the exported artefact a version of the registered model: `python -m stages.register --variant V`.

The model's name is `registry.model_prefix` plus the variant. The version gets the alias `challenger`, is tied to the
training's MLflow run, and carries what the promotion gate and an auditor need. The same artefact never makes a second
version.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from stages.project.command import Interrupted, run_stage
from stages.project.params import Evaluate, Params
from stages.project.provenance import UNTRACKED, code_origin, dvc_hash
from stages.project.workspace import INGESTED, dataset_document
from stages.registry.errors import RegistryUnavailableError
from stages.registry.journal import delivered, flush
from stages.registry.versions import (
    ARTEFACT_VERIFICATION,
    DATA_STATISTICS,
    DATA_VALIDATION,
    PASSED,
    ModelRegistry,
    Version,
)
from yolov7.errors import DataError
from yolov7.files import sha256_file, write_json

log = logging.getLogger(__name__)

STATISTICS = Path("reports/validation/statistics.json")
RESULTS = Path("reports/validation/results.json")


def main(params: Params, args: argparse.Namespace) -> None:
    """Register `models/V/export` and write `models/V/registered.json`."""
    try:
        register(params, args.variant)
    except RegistryUnavailableError as error:
        raise Interrupted(f"{error}; the same command registers the model once MLflow is back") from error


def register(params: Params, variant: str) -> dict[str, Any]:
    """The stage's work; returns what it wrote."""
    models, name = Path("models") / variant, f"{params.registry.model_prefix}{variant}"
    run = _read(models / "train/run.json", f"dvc repro train@{variant}")
    metrics = _read(Path("reports") / variant / "metrics.json", f"dvc repro evaluate@{variant}")
    flush()  # a training that went on while MLflow was away may still have a run to deliver
    registry = ModelRegistry()
    run_id = registry.run_for(delivered(run), experiment=params.registry.experiment, name=variant)
    version, new = registry.register(
        models / "export",
        name=name,
        run_id=run_id,
        origin=_origin(variant),
        measured={**evaluation_tags(metrics, params.evaluate), **_verdicts(models / "export/verify.json")},
        example=_example_image(),
    )
    _keep_statistics(registry, version)
    registry.log_metrics(run_id, {f"test/{key}": v for key, v in metrics.items() if isinstance(v, float)})
    registry.log_page(run_id, Path("reports") / variant / "report.html")
    log.info("%s %s, alias challenger", version, "is new" if new else "holds this artefact already")
    record = {
        "name": version.name,
        "version": version.number,
        "artefact_sha256": version.tags["artefact_sha256"],
        "manifest_sha256": version.tags["manifest_sha256"],
        "run_id": version.run_id,
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
        "test_data_sha256": metrics["test_data_sha256"],
        "git_revision": version.tags["git_revision"],
    }
    write_json(models / "registered.json", record)
    return record


def evaluation_tags(metrics: dict[str, Any], settings: Evaluate) -> dict[str, str]:
    """What was measured, on what, and how: two versions may be compared where the last two agree."""
    return {
        "AP": f"{metrics['AP']:.6f}",
        "AP50": f"{metrics['AP50']:.6f}",
        "test_data_sha256": str(metrics["test_data_sha256"]),
        "evaluation": settings.conditions,
    }


def _verdicts(verification: Path) -> dict[str, str]:
    """How the artefact's verification and the data's validation have ended, where their results are there."""
    found = {ARTEFACT_VERIFICATION: (verification, "passed"), DATA_VALIDATION: (RESULTS, "success")}
    return {
        tag: PASSED if _read(path, "dvc repro").get(key) is True else "failed"
        for tag, (path, key) in found.items()
        if path.is_file()
    }


def _origin(variant: str) -> dict[str, str]:
    return {
        "variant": variant,
        "data_sha256": str(dataset_document()["sha256"]),
        "data_dvc": dvc_hash("data/ingested") or UNTRACKED,
        **code_origin(),
    }


def _keep_statistics(registry: ModelRegistry, version: Version) -> None:
    """What the data looked like stays with the model: later data is compared with its champion's."""
    if not STATISTICS.is_file():
        log.warning("%s: not there; drift from the data of %s cannot be judged later", STATISTICS, version)
        return
    # Named by content: another version of the same run may come from other data.
    path = f"data/statistics-{sha256_file(STATISTICS)[:12]}.json"
    if version.tags.get(DATA_STATISTICS) != path:
        registry.record(version, path, _read(STATISTICS, "dvc repro validate"))
        registry.set_tags(version, {DATA_STATISTICS: path})


def _example_image() -> bytes:
    """The first image of the test split: real, and small enough to travel with every version."""
    images = sorted(path for path in (INGESTED / "test/images").rglob("*") if path.is_file())
    if not images:
        raise DataError("no images; run `dvc repro ingest` first", path=INGESTED / "test/images")
    return min(images[:50], key=lambda path: path.stat().st_size).read_bytes()


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no such file; run `{command}` first", path=path) from None
    except ValueError as error:
        raise DataError(f"not readable as JSON ({error}); run `{command}` again", path=path) from None


if __name__ == "__main__":
    run_stage(main, variant=True)
