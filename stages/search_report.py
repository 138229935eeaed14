"""Train default and best setting with further seeds, and write `reports/search`: `python -m stages.search_report`.

`index.html` shows the trials; `best.yaml` is the best setting as a part of params.yaml, which
`python -m stages.apply_params reports/search/best.yaml` writes into that file.
"""

from __future__ import annotations

import argparse
import logging
import os

from stages.project.command import Interrupted, run_stage
from stages.project.params import Params
from stages.project.workspace import dataset_document
from stages.search.report import BEST, PAGE, seeds, settings, write_report
from stages.search.study import ParameterStudy
from stages.trials.trial import Ending, Trial
from yolov7.device import choose_device
from yolov7.errors import DataError

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Write the report; the further trainings resume where they were stopped."""
    study = ParameterStudy(params, dataset_document()["sha256"])
    if study.best is None:
        raise DataError(f"{study.name}: no trial is complete; run `python -m stages.search_worker` first")
    for seed in () if args.no_confirmation else seeds(study):
        _confirm(study, seed)
    figures = write_report(study)
    for row in figures["confirmed"]:
        if row["default"] is not None:
            log.info("seed %d: default AP %.4f, best AP %.4f", row["seed"], row["default"], row["best"])
    log.info("%s, %s", PAGE, BEST)


def _confirm(study: ParameterStudy, seed: int) -> None:
    assert study.best is not None
    device = choose_device(os.environ.get("YOLOV7_DEVICE", "auto"))
    parent = study.parent_run()
    for role, train in zip(("default", "best"), settings(study, study.best, seed), strict=True):
        name = f"{study.space.variant} {role}, seed {seed}"
        tags = {"search": study.name, "confirms": role} | ({"mlflow.parentRunId": parent} if parent else {})
        ending, _ = Trial.of(study.space.variant, train).run(study.params, device, name=name, tags=tags)
        if ending is Ending.INTERRUPTED:
            raise Interrupted(f"{name} is saved; the same command resumes it")


if __name__ == "__main__":
    run_stage(
        main,
        options=[("--no-confirmation", {"action": "store_true", "help": "write the report without further trainings"})],
    )
