"""Options that several commands share: the model and how it runs."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from yolov7.redaction import redacted
from yolov7.text import for_terminal

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


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The data set, and what its reader cannot know."""
    parser.add_argument(
        "--data",
        nargs="+",
        required=required,
        metavar="D",
        help="data.yaml, a folder in the layout of COCO, YOLO or VOC, or train=JSON:IMAGES val=JSON:IMAGES",
    )
    parser.add_argument(
        "--data-option",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="option of the format's reader: boxes=corners where a message names data.coco.boxes",
    )
    parser.add_argument(
        "--drop-bad-boxes", action="store_true", help="leave out boxes that would be refused, and say which"
    )


def data_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_data` as keyword arguments."""
    from yolov7.runs.layouts import parse_splits

    return {
        "data": None if args.data is None else parse_splits(args.data),
        "data_options": read_settings(args.data_option, "--data-option"),
        "drop_bad_boxes": args.drop_bad_boxes,
    }


def read_settings(texts: Iterable[str], option: str) -> dict[str, Any]:
    """`a.b=VALUE` as `{"a": {"b": VALUE}}`; a value is read as YAML, so that numbers and lists are what they look like.

    Raises :class:`ConfigError` for a text of another form, and a key given twice.
    """
    from yolov7.documents import DocumentError
    from yolov7.errors import ConfigError
    from yolov7.yaml_text import read_yaml

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, written = text.partition("=")
        *groups, last = key.split(".")
        if not equals or not all([*groups, last]):
            raise ConfigError(f"{option}: {text!r}: KEY=VALUE is expected, for example augment.mixup=0.0")
        group = found
        for name in groups:
            group = group.setdefault(name, {})
            if not isinstance(group, dict):
                raise ConfigError(f"{option}: {key}: {name} has a value already")
        if last in group:
            raise ConfigError(f"{option}: {key} is given twice")
        try:
            group[last] = read_yaml(written).value if written else ""
        except DocumentError as error:
            raise ConfigError(f"{option}: {key}: not readable as a value: {error}") from None
    return found


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(redacted(super().format(record)))


def show_log() -> None:
    """Show the library's own messages on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    log = logging.getLogger("yolov7")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


@contextlib.contextmanager
def progress_of(what: str) -> Iterator[Callable[[int, int], None]]:
    """As :func:`progress`; yields the function to call with images done and images in all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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
