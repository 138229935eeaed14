"""Train one variant as its int8 files compute: `python -m stages.quantize --variant V`.

Starts from the weights of the train stage, and resumes like it: the state lies in `.state/train/V.quantized`. Without
`params.yaml: quantization.enabled` nothing is trained, and int8 files are made of the float weights alone.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from stages.project.command import run_stage
from stages.project.params import Params
from stages.project.workspace import DOCUMENT, quantized_dir
from yolov7.artefact import INT8_FORMATS
from yolov7.files import write_json
from yolov7.folders import remove

if TYPE_CHECKING:
    import torch

    from stages.training.quantization import QuantizationRun
    from yolov7.train.distributed import Processes

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
    from stages.training.processes import restarted, train_in_processes

    def fit(device: torch.device, processes: Processes) -> tuple[Path, bool]:
        finished, _ = train(run, device, processes, fresh=args.fresh and not restarted())
        return run.folder, finished

    command = ["-m", "stages.quantize", "--variant", args.variant]
    before = run.start_over if args.fresh else lambda: None
    train_in_processes(command, fit, batch_size=run.train.batch_size, before=before)


if __name__ == "__main__":
    run_stage(
        main,
        variant=True,
        options=[("--fresh", {"action": "store_true", "help": "start over, even if there is a state to resume"})],
    )
