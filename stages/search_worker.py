"""Train the trials of the search in `params.yaml: search` until none is left: `python -m stages.search_worker`.

Several workers may share a study, here and on other machines. A trial that was killed is repeated first: it resumes
from its state.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from stages.project.command import run_stage
from stages.project.params import Params
from stages.project.workspace import dataset_document
from stages.search.study import ParameterStudy
from yolov7.device import choose_device
from yolov7.errors import ConfigError
from yolov7.files import write_json

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Train trials, and write their numbers to `--output`."""
    if args.most is not None and args.most < 1:
        raise ConfigError(f"--most: a number from 1 on is expected, got {args.most}")
    study = ParameterStudy(params, dataset_document()["sha256"])
    device = choose_device(os.environ.get("YOLOV7_DEVICE", "auto"))
    trained: list[int] = []
    while args.most is None or len(trained) < args.most:
        trial = study.work(device)
        if trial is None:
            break
        trained.append(trial.number)
        ap = "" if trial.value is None else f", AP {trial.value:.4f}"
        log.info("trial %d: %s%s", trial.number, trial.state.name.lower(), ap)
    finished, best = len(study.finished), study.best
    if best is not None:
        log.info("%s: best of %d trials: AP %.4f, trial %d", study.name, finished, best.value or 0.0, best.number)
    if args.output:
        write_json(Path(args.output), {"study": study.name, "trained": trained, "finished": finished})


if __name__ == "__main__":
    run_stage(
        main,
        options=[
            ("--most", {"type": int, "help": "stop after this many trials (default: when none is left)"}),
            ("--output", {"help": "where to write the numbers of the trials as json"}),
        ],
    )
