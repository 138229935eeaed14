"""Train one variant on the validated data: `python -m stages.train --variant V`.

The resumable state lies in `.state/train/V/<fingerprint>`, outside DVC's outputs, which DVC deletes before it runs a
stage. The fingerprint covers parameters and data: the same command resumes after a crash, and a changed parameter
starts another run. Parameters that ask for two trainings in a row make two runs (`stages.training.chain`).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from stages.preflight.check import require
from stages.project.command import run_stage
from stages.project.params import Params
from stages.training.chain import Trainings
from stages.training.processes import restarted, train_in_processes
from yolov7.train.distributed import Processes


def main(params: Params, args: argparse.Namespace) -> None:
    """Train, and write `models/V/train`."""
    trainings = Trainings(params, args.variant)
    checks = partial(require, params, [args.variant])

    def fit(device: torch.device, processes: Processes) -> tuple[Path, bool]:
        fresh = args.fresh and not restarted()  # under a torchrun of the user's they all have --fresh
        processes.on_main(checks)
        run, finished = trainings.fit(device, processes, fresh=fresh)
        return run.folder, finished

    command = ["-m", "stages.train", "--variant", args.variant]
    before = trainings.start_over if args.fresh else lambda: None
    train_in_processes(command, fit, batch_size=trainings.train.batch_size, before=before)


if __name__ == "__main__":
    run_stage(
        main,
        variant=True,
        options=[("--fresh", {"action": "store_true", "help": "start over, even if there is a state to resume"})],
    )
