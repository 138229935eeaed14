"""`yolov7 export`: a trained checkpoint as files for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolov7.cli.options import add_data, data_arguments, show_log

_ALWAYS = ("safetensors", "onnx")
"""Written in any case; naming them changes nothing."""


def add_export(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 export`."""
    parser.add_argument("weights", metavar="WEIGHTS", type=Path, help=".safetensors of a training, or the run's folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="export folder")
    parser.add_argument(
        "--formats",
        nargs="+",
        default=[],
        metavar="NAME",
        help="openvino, openvino-float16, onnx-int8, openvino-int8, onnx-int8-tensorrt, onnx-raw; .safetensors and ONNX"
        " are always written",
    )
    add_data(parser, required=False)
    parser.add_argument(
        "--verify-images", type=int, default=32, metavar="N", help="images the files are compared on (32)"
    )
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="ONNX operator set (18)")
    parser.add_argument("--static", action="store_true", help="fix the input to one image of the training's size")
    parser.add_argument("--confidence", type=float, default=0.25, metavar="P", help="default score threshold (0.25)")
    parser.add_argument("--iou", type=float, default=0.45, metavar="P", help="default IoU threshold (0.45)")
    parser.add_argument("--max-detections", type=int, default=100, metavar="N", help="most detections per image (100)")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="your own network, for its kinds of block")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from yolov7.errors import ConfigError
    from yolov7.export.records import summary
    from yolov7.runs import TrainedDetector, export_weights

    if args.verify_images < 1:
        raise ConfigError("--verify-images must be at least 1")
    if args.opset < 18:
        raise ConfigError(f"--opset must be at least 18, got {args.opset}")
    show_log()
    weights = TrainedDetector(args.weights).weights if args.weights.is_dir() else args.weights
    done = export_weights(
        weights,
        out=args.output,
        formats=[name for name in args.formats if name not in _ALWAYS],
        verify_images=args.verify_images,
        opset=args.opset,
        dynamic=not args.static,
        confidence=args.confidence,
        iou=args.iou,
        max_detections=args.max_detections,
        network=args.network,
        **data_arguments(args),
    )
    for line in () if done.report is None else summary(done.report):
        print(line)
    if done.report is None:
        print("not verified: --data names images to compare the files on")
    for name in done.files:
        print(args.output / name)
