"""`yolov7 evaluate`: COCO figures of a detector on a data set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from yolov7.cli.options import add_batch_size, add_data, data_arguments, progress_of, show_log
from yolov7.tables import print_table


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 evaluate`."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="M",
        help=".safetensors, .onnx, .xml, export folder, models:/NAME@ALIAS, or a variant with published weights",
    )
    add_data(parser)
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="images to measure on (val)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="write figures, pictures and report.html here")
    parser.add_argument("--confidence", type=float, default=0.001, metavar="P", help="score threshold (0.001)")
    parser.add_argument("--iou", type=float, default=0.65, metavar="P", help="IoU threshold of the suppression (0.65)")
    parser.add_argument("--max-detections", type=int, default=300, metavar="N", help="most detections per image (300)")
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the input (default: as trained)")
    parser.add_argument("--rectangular", action="store_true", help="batches of similar shape instead of squares")
    parser.add_argument("--border", type=int, default=0, metavar="N", help="grey pixels along the long side (0)")
    add_batch_size(parser, default=16)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (cpu)")
    parser.add_argument("--network", metavar="MODULE:FUNCTION", help="your own network, for its kinds of block")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    from yolov7.errors import ConfigError
    from yolov7.runs import evaluate_model

    if args.batch_size < 1:
        raise ConfigError("--batch-size must be at least 1")
    show_log()
    with progress_of("evaluating") as advance:
        result = evaluate_model(
            args.model,
            split=args.split,
            out=args.output,
            device=args.device,
            image_size=args.image_size,
            batch_size=args.batch_size,
            confidence=args.confidence,
            iou=args.iou,
            max_detections=args.max_detections,
            rectangular=args.rectangular,
            border=args.border,
            network=args.network,
            progress=advance,
            **data_arguments(args),
        )
    if args.json:
        print(json.dumps({**result.metrics, "per_class": result.per_class}, indent=2))
        return
    print_table(("figure", args.split), [(name, f"{value:.3f}") for name, value in result.metrics.items()], left=1)
    if args.output is not None:
        print(args.output / "report.html")
