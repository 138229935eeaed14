"""Train one variant as its int8 files compute: `python -m stages.quantize --variant V`.

Starts from the weights of the train stage, and resumes like it: the state lies in `.state/train/V.quantized`. Without
`params.yaml: quantization.enabled` nothing is trained, and int8 files are made of the float weights alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING

from stages.project.command import EXIT_ERROR, EXIT_RESUMABLE, Interrupted, run_stage
from stages.project.home import experiment_origin, project_root
from stages.project.params import Params
from stages.project.workspace import DOCUMENT, quantized_dir
from yolov7.artefact import INT8_FORMATS
from yolov7.errors import YoloError
from yolov7.files import write_json
from yolov7.folders import remove

if TYPE_CHECKING:
    from stages.training.quantization import QuantizationRun

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Train, and write `models/V/quantized`."""
    if not params.quantization_for(args.variant).enabled:
        remove(quantized_dir(args.variant))
        write_json(quantized_dir(args.variant) / DOCUMENT, {"enabled": False})
        log.info("%s: no quantisation-aware training (quantization.enabled)", args.variant)
        return
    if INT8_FORMATS.isdisjoint(params.export.formats):
        log.warning(
            "%s: params.yaml: export.formats has no int8 format, so no file will be made of the quantised network; "
            "add one of %s",
            args.variant,
            ", ".join(sorted(INT8_FORMATS)),
        )
    from stages.training.quantization import QuantizationRun

    _train(args, QuantizationRun.prepared(params, args.variant))


def _train(args: argparse.Namespace, run: QuantizationRun) -> None:
    from stages.training.chain import train
    from stages.training.processes import restarted, start_processes
    from yolov7.device import choose_device
    from yolov7.train.distributed import is_echo, join_processes, local_rank

    command = ["-m", "stages.quantize", "--variant", args.variant]
    before = run.start_over if args.fresh else lambda: None
    status = start_processes(command, batch_size=run.train.batch_size, before=before)
    if status is not None:
        sys.exit(status)
    device = choose_device(os.environ.get("YOLOV7_DEVICE", "auto"), local_rank=local_rank())
    with join_processes(device) as processes:
        if not processes.main:
            logging.getLogger().setLevel(logging.WARNING)  # the first process logs the rest once for all
        try:
            finished, _ = train(run, device, processes, fresh=args.fresh and not restarted())
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
