"""Train one candidate of a choice for one rung: `python -m stages.train_candidate --variant V --epochs N`.

A candidate that is trained already, with these parameters on this data, is not trained again; one that was stopped
resumes. The flow `choose-model` runs this for each candidate and rung.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from stages.choice.candidates import candidate
from stages.project.command import Interrupted, run_stage
from stages.project.params import Params
from stages.trials.trial import Ending
from yolov7.device import choose_device
from yolov7.files import write_json

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Train, and write AP, epochs and seconds to `--output`."""
    trial = candidate(params, args.variant, args.epochs)
    device = choose_device(os.environ.get("YOLOV7_DEVICE", "auto"))
    name = f"{args.variant}, {args.epochs} epochs"
    tags = {"choice": params.choice.name, "rung": args.epochs}
    ending, result = trial.run(params, device, name=name, tags=tags, keep_weights=True)
    if ending is Ending.INTERRUPTED or result is None:
        raise Interrupted(f"{name}: the state is saved in {trial.folder}; the same command resumes it")
    log.info("%s: AP %.4f on the validation images in %.1f min", name, result.ap, result.seconds / 60)
    if args.output:
        figures = {"variant": args.variant, "epochs": result.epochs, "ap": result.ap, "seconds": result.seconds}
        write_json(Path(args.output), figures)


if __name__ == "__main__":
    run_stage(
        main,
        options=[
            ("--variant", {"required": True, "help": "one of params.yaml: choice.candidates"}),
            ("--epochs", {"required": True, "type": int, "help": "length of the training"}),
            ("--output", {"help": "where to write the figures as json"}),
        ],
    )
