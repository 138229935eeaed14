"""AP over the width of the grey border (YOLOv6 paper, appendix, table 14).

    python -m yolov7.figures.border MODEL [MODEL ...] --data INDEX [--widths 0,2,4,8,16] [--out border.svg]

evaluates each model once for each width, decoding every image once, and writes the curves and, beside them, the figures
as `border.json`. A band is the 95 % interval of the difference from the smallest width, on the same images drawn again:
a difference of a few tenths of a point is often chance.

The image's long side is the input's minus the border, so a wide border also makes objects smaller. With `--grow` the
image keeps its size and the input is as much larger, in steps of the network's stride: 32 is the "border 16" of the
table, images of 640 in an input of 672.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolov7.data.annotated import read_annotated
from yolov7.data.evaluation import EvalBatch, framed
from yolov7.data.index import Index
from yolov7.errors import ConfigError
from yolov7.evaluate import EVALUATION, evaluate_detections, ground_truth
from yolov7.evaluate.bootstrap import Interval, ap_difference_interval
from yolov7.evaluate.coco import Result
from yolov7.evaluate.run import batch_results, check_classes
from yolov7.figures.command import outcome, parser
from yolov7.figures.curve import Curve, curves
from yolov7.files import write_json, write_text
from yolov7.letterbox import Border, check_border
from yolov7.nms import Thresholds
from yolov7.predict import Predictor, load_detector
from yolov7.predict.predictor import input_sides
from yolov7.tables import print_table

WIDTHS = (0, 2, 4, 8, 16)
_STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
"""Distances of the picture's horizontal lines; it has five."""


@dataclass(frozen=True)
class Measured:
    """One model with one width."""

    pixels: int
    metrics: dict[str, float]
    """The COCO tool's twelve figures."""
    difference: Interval
    """AP minus that of the smallest width, with its 95 % interval over the images."""


def scan(
    predictor: Predictor,
    index: Index,
    widths: Sequence[int],
    *,
    image_size: int | None = None,
    batch_size: int = 8,
    grow: bool = False,
    thresholds: Thresholds = EVALUATION,
    resamples: int = 200,
) -> list[Measured]:
    """Evaluate with each width in pixels, on squares of `image_size` (default: as trained); small to large.

    With `grow` the squares are larger by the width, and the images stay as they are. The figures are those of
    :func:`yolov7.evaluate.evaluate`. Raises :class:`ConfigError` for a width that leaves no room for an image or, with
    `grow`, is no multiple of the stride, and what `evaluate` raises.
    """
    check_classes(predictor.metadata, index)
    shapes = [_input(predictor, image_size, width, grow) for width in sorted(set(widths))]
    borders = [Border(width) for width in sorted(set(widths))]
    found: list[list[Result]] = [[] for _ in borders]
    for number, batch in _batches(index, borders, shapes, batch_size):
        found[number] += batch_results(predictor, batch, index, thresholds)
    truth = ground_truth(index)
    scores = [evaluate_detections(truth, results) for results in found]
    return [
        Measured(
            border.pixels,
            score.metrics,
            ap_difference_interval(score.matches, scores[0].matches, resamples=resamples),
        )
        for border, score in zip(borders, scores, strict=True)
    ]


def _input(predictor: Predictor, image_size: int | None, width: int, grow: bool) -> tuple[int, int]:
    """(height, width) of the input that has this border."""
    height, across = input_sides(predictor.runtime, image_size)
    if not grow:
        check_border(width, (height, across))
        return height, across
    if width < 0 or width % predictor.stride:
        raise ConfigError(f"--grow: a multiple of the network's stride {predictor.stride} is expected, got {width}")
    return input_sides(predictor.runtime, height + width)


def _batches(
    index: Index, borders: Sequence[Border], shapes: Sequence[tuple[int, int]], batch_size: int
) -> Iterator[tuple[int, EvalBatch]]:
    """Each batch of images with each border, and the number of the border."""
    for start in range(0, len(index), batch_size):
        indices = range(start, min(start + batch_size, len(index)))
        images = [read_annotated(index, i) for i in indices]
        for number, (border, shape) in enumerate(zip(borders, shapes, strict=True)):
            yield number, framed(index, indices, images, shape, border=border)


def draw(found: dict[str, list[Measured]]) -> str:
    """The picture, SVG: a curve for each model."""
    lines = []
    for name, measured in found.items():
        ap = np.array([each.metrics["AP"] for each in measured])
        first = ap[0]
        low, high = (np.array([first + getattr(each.difference, end) for each in measured]) for end in ("low", "high"))
        lines.append(Curve(name, [each.pixels for each in measured], ap, low, high))
    ends = [end for line in lines for end in (*line.low, *line.high, *line.middle)]
    ticks = sorted({each.pixels for measured in found.values() for each in measured})
    return curves(
        lines, x="border in pixels, both ends together", y="AP", span=_span(min(ends), max(ends)), ticks=ticks
    )


def _span(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis of five round values that holds `low` to `high`."""
    for step in _STEPS:
        first = math.floor(low / step) * step
        if first + 4 * step >= high:
            return first, first + 4 * step
    return 0.0, 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    args = _parser().parse_args(arguments)
    if args.out.suffix != ".svg":
        raise ConfigError(f"{args.out}: the name of this picture ends in .svg")
    if len(set(args.widths)) < 2:
        raise ConfigError("--widths: at least two widths are needed for a curve")
    thresholds = Thresholds(args.confidence, args.iou)
    index = Index.open(args.data)
    found: dict[str, list[Measured]] = {}
    records: list[dict[str, Any]] = []
    for model in dict.fromkeys(args.models):
        predictor = load_detector(model, device=args.device)
        measured = scan(
            predictor,
            index,
            args.widths,
            image_size=args.image_size,
            batch_size=args.batch_size,
            grow=args.grow,
            thresholds=thresholds,
        )
        name = predictor.metadata.variant
        found[f"{name} ({len(found) + 1})" if name in found else name] = measured
        sides = [_input(predictor, args.image_size, each.pixels, args.grow) for each in measured]
        rows = [{"input": side, **asdict(each)} for side, each in zip(sides, measured, strict=True)]
        records.append({"model": model, "variant": name, "widths": rows})
    write_text(args.out, draw(found))
    settings = {"confidence": args.confidence, "iou": args.iou, "max_detections": thresholds.max_detections}
    document = {"data": str(args.data), "images": len(index), "settings": settings, "models": records}
    write_json(args.out.with_suffix(".json"), document)
    _print(found)


def _print(found: dict[str, list[Measured]]) -> None:
    rows = [
        [
            name,
            str(each.pixels),
            f"{each.metrics['AP']:.4f}",
            f"{each.difference.value:+.4f} ({each.difference.low:+.4f} to {each.difference.high:+.4f})",
        ]
        for name, measured in found.items()
        for each in measured
    ]
    print_table(["model", "border", "AP", "difference from the first"], rows, left=1)


def _widths(text: str) -> list[int]:
    """`0,2,4` as numbers."""
    return [int(word) for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    made = parser(__spec__, __doc__)
    made.add_argument(
        "models", nargs="+", metavar="MODEL", help=".safetensors, .onnx, an export folder or models:/NAME"
    )
    made.add_argument("--data", type=Path, required=True, metavar="INDEX", help="index of the data, data/index/val say")
    made.add_argument(
        "--widths", type=_widths, default=list(WIDTHS), metavar="N,N,...", help="pixels (0,2,4,8,16), two at least"
    )
    made.add_argument("--grow", action="store_true", help="keep the images' size and enlarge the input")
    made.add_argument("--image-size", type=int, metavar="N", help="side of the input (default: the model's)")
    made.add_argument("--confidence", type=float, default=EVALUATION.confidence, metavar="P", help="(0.001)")
    made.add_argument("--iou", type=float, default=EVALUATION.iou, metavar="P", help="(0.65)")
    made.add_argument("--batch-size", type=int, default=8, metavar="N", help="images per forward pass (8)")
    made.add_argument("--device", default="cpu", help="of a .safetensors file: cpu, cuda, mps or auto (cpu)")
    made.add_argument(
        "--out", type=Path, default=Path("border.svg"), help="the picture, .svg; the figures lie beside it"
    )
    return made


if __name__ == "__main__":
    sys.exit(outcome(main))
