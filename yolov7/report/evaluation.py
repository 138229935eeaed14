"""The evaluation as one HTML file: opens without a network, prints, and has sortable tables."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolov7.data.decode import read_image
from yolov7.data.index import Index
from yolov7.evaluate.bootstrap import Interval, ap_interval
from yolov7.evaluate.mistakes import Calibration, Errors, ImageErrors, best_confidence, calibration, find_errors
from yolov7.evaluate.run import Evaluation
from yolov7.evaluate.slices import Slice, image_slices, object_slices
from yolov7.predict.draw import draw_boxes, encode_picture, shrink
from yolov7.report import charts
from yolov7.report.int8 import EightBits, section
from yolov7.report.page import MISSING, figure, render

_PICTURE_SIDE = 480

_KINDS = {
    "right": "right",
    "localisation": "poor box: right class, IoU 0.1 to 0.5",
    "class": "wrong class: IoU over 0.5 with an object of another class",
    "both": "poor box and wrong class",
    "duplicate": "duplicate: the object was already found",
    "background": "background: IoU under 0.1 with every object",
    "missed": "missed: no detection points at the object",
}


@dataclass(frozen=True)
class Analysis:
    """Figures of the page beyond those of the COCO tool."""

    interval: Interval
    """AP and its 95 % bootstrap interval over images."""
    f1: float
    """The highest, at `errors.confidence`."""
    errors: Errors
    calibration: Calibration
    slices: Sequence[Slice] = field(default_factory=tuple)


def analyse(evaluation: Evaluation, index: Index, *, resamples: int = 200) -> Analysis:
    """Interval, operating point, kinds of mistakes, calibration, slices. Deterministic; reads every image once."""
    confidence, f1 = best_confidence(evaluation.matches)
    errors = find_errors(index, evaluation.results, confidence=confidence)
    brightness = [float(read_image(index.image_path(position)).mean()) for position in range(len(index))]
    slices = object_slices(index, errors) + image_slices(index, evaluation.matches, brightness)
    interval = ap_interval(evaluation.matches, resamples=resamples)
    return Analysis(interval, f1, errors, calibration(evaluation.matches), tuple(slices))


def render_report(
    title: str,
    facts: Mapping[str, str],
    evaluation: Evaluation,
    analysis: Analysis,
    index: Index,
    *,
    pictures: int = 12,
    int8: EightBits | None = None,
) -> str:
    """The page. `facts` stand under the title; two thirds of the `pictures` show the most mistakes, the others show
    images without any. The int8 files of the same export get a section."""
    errors, error = analysis.errors, analysis.calibration.expected_error
    objects = dict(zip(index.class_names, evaluation.matches.truths.sum(axis=1).tolist(), strict=True))
    return render(
        "evaluation",
        title=title,
        facts=facts,
        evaluation=evaluation,
        analysis=analysis,
        errors=errors,
        precision_recall=charts.precision_recall(evaluation.curves),
        reliability=charts.reliability(analysis.calibration),
        calibration_error=None if math.isnan(error) else error,
        kinds_bar=charts.kinds_bar(errors.counts),
        kinds=_kinds(errors),
        classes=_class_rows(evaluation, errors, index),
        confusion=charts.confusion(errors.confusion, index.class_names),
        slices=[
            [part.group, part.name, f"{part.count:,}", part.figure, figure(part.value)] for part in analysis.slices
        ],
        galleries=_galleries(errors, index, pictures),
        int8=section(int8, objects),
    )


def _kinds(errors: Errors) -> list[dict[str, Any]]:
    total = max(sum(errors.counts.values()), 1)
    return [
        {
            "says": says,
            "color": charts.KIND_COLORS[kind],
            "count": errors.counts[kind],
            "share": errors.counts[kind] / total,
        }
        for kind, says in _KINDS.items()
    ]


def _class_rows(evaluation: Evaluation, errors: Errors, index: Index) -> list[list[str]]:
    confusion = errors.confusion
    rows = []
    curves = dict(zip(evaluation.curves.class_names, evaluation.curves.precision50, strict=True))
    for label, name in enumerate(index.class_names):
        objects, detections = int(confusion[label].sum()), int(confusion[:, label].sum())
        right = int(confusion[label, label])
        wrong = confusion[label].copy()
        wrong[label] = wrong[-1] = 0
        other = f"{index.class_names[int(wrong.argmax())]} ({wrong.max()})" if wrong.max() else ""
        ap50 = float(np.mean(curves[name])) if name in curves else math.nan
        rows.append(
            [
                name,
                f"{objects:,}",
                figure(evaluation.per_class[name]),
                figure(ap50),
                f"{right / objects:.1%}" if objects else MISSING,
                f"{right / detections:.1%}" if detections else MISSING,
                other,
            ]
        )
    return rows


def _galleries(errors: Errors, index: Index, pictures: int) -> list[dict[str, Any]]:
    wrong = sorted((i for i in errors.images if i.mistakes), key=lambda i: (-i.mistakes, i.position))
    good = sorted(
        (i for i in errors.images if not i.mistakes and i.found.any()), key=lambda i: (-int(i.found.sum()), i.position)
    )
    best = good[: max(pictures // 3, pictures - len(wrong))]
    galleries = (("Most mistakes", wrong[: pictures - len(best)]), ("Without a mistake", best))
    return [
        {"title": title, "pictures": [_picture(index, image) for image in chosen]}
        for title, chosen in galleries
        if chosen
    ]


def _picture(index: Index, image: ImageErrors) -> dict[str, str]:
    pixels = read_image(index.image_path(image.position))
    height, width = pixels.shape[:2]
    pixels = shrink(pixels, _PICTURE_SIDE)
    scale = np.array([pixels.shape[1] / width, pixels.shape[0] / height] * 2)
    names = index.class_names
    truth = index.labels(image.position)
    missed = ["" if found else " missed" for found in ~image.missed]
    left = draw_boxes(
        pixels,
        index.boxes(image.position) * scale,
        truth,
        [f"{names[label]}{note}" for label, note in zip(truth, missed, strict=True)],
        smallest_side=_PICTURE_SIDE,
    )
    texts = [
        f"{names[label]} {score:.2f}" + ("" if kind == "right" else f" {kind}")
        for label, score, kind in zip(image.labels, image.scores, image.kinds, strict=True)
    ]
    right = draw_boxes(pixels, image.boxes * scale, image.labels, texts, smallest_side=_PICTURE_SIDE)
    pair = np.concatenate([left, np.full_like(left[:, :8], 255), right], axis=1)
    data = encode_picture(pair, ".jpg", quality=82)
    wrong = f"{image.mistakes} mistakes, " if image.mistakes else ""
    caption = f"{index.image_path(image.position).name}: {wrong}{int(image.found.sum())} of {len(truth)} found"
    return {"caption": caption, "jpeg": base64.b64encode(data).decode("ascii")}
