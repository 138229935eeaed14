"""`yolov7 predict`: detections in images, folders, videos and streams."""

from __future__ import annotations

import argparse
from pathlib import Path

from yolov7.cli.options import add_batch_size, add_model, load, progress


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Options of `yolov7 predict`."""
    parser.add_argument("source", metavar="SOURCE", help="image, folder, glob, video, stream address or camera number")
    add_model(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("detections"), metavar="DIR", help="output folder (detections)"
    )
    parser.add_argument("--json", action="store_true", help="also print the COCO-style JSON")
    parser.add_argument(
        "--also",
        nargs="+",
        choices=("csv", "yolo", "cvat", "label-studio"),
        default=[],
        help="also write a CSV table, YOLO label files, or pre-annotations for CVAT or Label Studio",
    )
    parser.add_argument(
        "--tiles",
        type=float,
        metavar="P",
        help="also run on overlapping tiles of large images; P is the overlap, e.g. 0.2",
    )
    parser.add_argument(
        "--rectangular", action="store_true", help="use the smallest rectangle instead of the square input"
    )
    parser.add_argument(
        "--border", type=int, default=0, metavar="N", help="grey pixels along the image's long side (0)"
    )
    parser.add_argument(
        "--pixel-range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="values that become black and white in images of more than 8 bits: pixel_range of the training data",
    )
    add_batch_size(parser, default=8)
    parser.add_argument(
        "--augment",
        nargs="?",
        const="all",
        choices=("all", "scales", "flip"),
        help="run on several scaled and mirrored views of each image and merge the detections (slower)",
    )
    parser.set_defaults(run=_predict)


def _predict(args: argparse.Namespace) -> None:
    from yolov7.data.depth import PixelRange
    from yolov7.predict.job import RESULTS, predict_source
    from yolov7.predict.sources import open_source
    from yolov7.predict.tiles import TiledPredictor

    pixel_range = None if args.pixel_range is None else PixelRange(*args.pixel_range)
    # Before a model is loaded: a mistyped path is reported at once.
    source = open_source(args.source, exclude=[args.output], pixel_range=pixel_range)
    predictor = load(
        args,
        rectangular=args.rectangular,
        border=args.border,
        batch_size=args.batch_size,
        augment=args.augment or False,
    )
    detector = (
        predictor if args.tiles is None else TiledPredictor(predictor, args.tiles, max_detections=args.max_detections)
    )
    with progress(len(source)) as advance:
        job = predict_source(detector, source, args.output, formats=args.also, advance=advance)
    job.tell(args.output / RESULTS, as_json=args.json)
