"""Options that several commands share: the model and how it runs."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolov7.predict import Predictor


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model and how it runs."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="M",
        help=".safetensors, .onnx, .xml, export folder, models:/NAME@ALIAS, or a variant with published weights",
    )
    parser.add_argument(
        "--runtime", choices=("onnx", "torch", "openvino"), help="file of an export folder to run (onnx)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="precision of that file, if the folder has one (float32)",
    )
    parser.add_argument(
        "--network",
        metavar="MODULE:FUNCTION",
        help="your own network, where a .safetensors file has kinds of block of its own, or --compare builds it",
    )
    parser.add_argument("--confidence", type=float, metavar="P", help="score threshold (default: the model's)")
    parser.add_argument(
        "--iou", type=float, metavar="P", help="IoU threshold of the suppression (default: the model's)"
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="most detections per image (default: the model's, which --tiles applies to each tile)",
    )
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the input (default: the model's)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (cpu)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of the runtime (0: its own choice)"
    )


def add_batch_size(parser: argparse.ArgumentParser, *, default: int) -> None:
    """Images per forward pass."""
    parser.add_argument(
        "--batch-size", type=int, default=default, metavar="N", help=f"images per forward pass ({default})"
    )


def load(args: argparse.Namespace, **more: Any) -> Predictor:
    """The detector that the options of `add_model` name; `more`: further arguments of `load_detector`."""
    from yolov7.errors import ConfigError
    from yolov7.predict import load_detector

    if args.threads < 0:
        raise ConfigError(f"--threads must be at least 0 (0: the runtime's own choice), got {args.threads}")
    more = {"runtime": args.runtime, "precision": args.precision, **more}
    return load_detector(
        args.model,
        confidence=args.confidence,
        iou=args.iou,
        max_detections=args.max_detections,
        image_size=args.image_size,
        device=args.device,
        threads=args.threads,
        network=args.network,
        **more,
    )


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[], None]]:
    """Progress bar on stderr if that is a terminal; yields the function to call after every image. 0: unknown total."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("detecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=total or None)
        yield lambda: bar.advance(task)
