"""`yolov7 import-weights`, `fetch-weights` and `tensorrt`: files into other files."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolov7.text import for_terminal


def add_import_weights(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 import-weights`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="published checkpoint; nothing in it is executed")
    parser.add_argument("--variant", required=True, help="network the weights belong to")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help=".safetensors file to write")
    parser.add_argument("--form", choices=("training", "deploy"), default="training", help="form to write (training)")
    parser.set_defaults(run=_import_weights)


def _import_weights(args: argparse.Namespace) -> None:
    from yolov7.model.published.convert import import_official

    report = import_official(args.file, args.variant, args.output, form=args.form)
    print(for_terminal(f"{args.output}: {report}"))


def add_fetch_weights(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 fetch-weights`."""
    parser.add_argument("variants", metavar="VARIANT", nargs="+", help="network with published weights")
    parser.add_argument(
        "--form",
        choices=("training", "deploy"),
        default="deploy",
        help="the file that predicts, or the one that a training starts from (deploy)",
    )
    parser.set_defaults(run=_fetch_weights)


def _fetch_weights(args: argparse.Namespace) -> None:
    from yolov7.weights.fetch import published_file

    for variant in args.variants:
        file = published_file(variant, args.form)
        print(for_terminal(f"{file.path}: {file.size:,} bytes, {file.licence}, sha256 {file.sha256}"))


def add_tensorrt(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 tensorrt`."""
    parser.add_argument("file", metavar="FILE", type=Path, help=".onnx file of this project")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="engine to build for this GPU")
    parser.add_argument("--float32", action="store_true", help="build without float16")
    parser.set_defaults(run=_tensorrt)


def _tensorrt(args: argparse.Namespace) -> None:
    from yolov7.errors import ModelError
    from yolov7.export.tensorrt import build_engine, check_tensorrt

    if not args.file.is_file():
        raise ModelError(f"{args.file}: no such file; pass the .onnx of an export folder")
    report = check_tensorrt(args.file)
    for line in [*report.problems, *(f"note: {note}" for note in report.notes)]:
        print(line)
    if report.problems:
        raise ModelError(f"{args.file}: TensorRT would refuse it ({len(report.problems)} reasons)")
    print(f"{args.file}: nothing in it that TensorRT's ONNX parser refuses")
    if args.output is not None:
        build_engine(args.file, args.output, half=not args.float32)
        print(args.output)
