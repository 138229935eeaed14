"""Train one variant on the validated data: `python -m stages.train --variant V`.

The resumable state lies in `.state/train/V/<fingerprint>`, outside DVC's outputs, which DVC deletes before it runs a
stage. The fingerprint covers parameters and data: the same command resumes after a crash, and a changed parameter
starts another run. Parameters that ask for two trainings in a row make two runs (`stages.training.chain`).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from functools import partial

from stages.preflight.check import require
from stages.project.command import EXIT_ERROR, EXIT_RESUMABLE, Interrupted, run_stage
from stages.project.home import experiment_origin, project_root
from stages.project.params import Params
from stages.training.chain import Trainings
from stages.training.processes import restarted, start_processes
from yolov7.device import choose_device
from yolov7.errors import YoloError
from yolov7.train.distributed import is_echo, join_processes, local_rank


def main(params: Params, args: argparse.Namespace) -> None:
    """Train, and write `models/V/train`."""
    trainings = Trainings(params, args.variant)
    checks = partial(require, params, [args.variant])
    # Before there are any processes: those that are restarted after a failure must resume.
    before = trainings.start_over if args.fresh else lambda: None
    command = ["-m", "stages.train", "--variant", args.variant]
    status = start_processes(command, batch_size=trainings.train.batch_size, before=before)
    if status is not None:
        sys.exit(status)
    fresh = args.fresh and not restarted()  # under a torchrun of the user's they all have --fresh
    device = choose_device(os.environ.get("YOLOV7_DEVICE", "auto"), local_rank=local_rank())
    with join_processes(device) as processes:
        if not processes.main:
            logging.getLogger().setLevel(logging.WARNING)  # the first process logs the rest once for all
        try:
            processes.on_main(checks)
            run, finished = trainings.fit(device, processes, fresh=fresh)
        except YoloError as error:
            if processes.main or not is_echo(error):
                raise
            sys.exit(EXIT_ERROR)  # the first process prints it
    if not finished:
        if not processes.main:
            sys.exit(EXIT_RESUMABLE)
        if experiment_origin(project_root()) is not None:
            raise Interrupted("DVC deletes the folder of an experiment that has not finished: it will start over")
        raise Interrupted(f"the state is saved in {run.folder}; the same command resumes it")


if __name__ == "__main__":
    run_stage(
        main,
        variant=True,
        options=[("--fresh", {"action": "store_true", "help": "start over, even if there is a state to resume"})],
    )
