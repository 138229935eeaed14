"""Latency and size of candidates after a rung: `python -m stages.probe_candidates --epochs N --output FILE V ...`.

The ONNX file of each is timed on the same test images, each candidate in turn, so that those beyond a limit do not take
the place of others in the next rung.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from stages.choice.candidates import candidate, finished
from stages.evaluation.timing import first_images, timed
from stages.project.command import run_stage
from stages.project.params import Params
from stages.project.workspace import open_index
from yolov7.export import export_onnx
from yolov7.files import write_json
from yolov7.model import load_checkpoint

log = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """Write milliseconds and megabytes by variant to `--output`."""
    with tempfile.TemporaryDirectory(prefix="probe-") as folder:
        files = {variant: Path(folder) / f"{variant}.onnx" for variant in args.variants}
        for variant, file in files.items():
            trained, metadata = load_checkpoint(
                finished(candidate(params, variant, args.epochs))[0], network=params.network_for(variant)
            )
            export_onnx(trained, file, metadata=metadata, opset=params.export.opset, dynamic=params.export.dynamic)
        latencies = timed(files, first_images(open_index("test")), params.evaluate)
        found = {
            variant: {"latency_ms": latencies[variant].timings[-1].median, "size_mb": file.stat().st_size / 1e6}
            for variant, file in files.items()
        }
    for variant, figures in found.items():
        log.info("%s: %.1f ms an image, %.1f MB", variant, figures["latency_ms"], figures["size_mb"])
    write_json(Path(args.output), found)


if __name__ == "__main__":
    run_stage(
        main,
        options=[
            ("--epochs", {"required": True, "type": int, "help": "the rung"}),
            ("--output", {"required": True, "help": "where to write the figures as json"}),
            ("variants", {"nargs": "+", "metavar": "VARIANT", "help": "candidates that are trained for it"}),
        ],
    )
