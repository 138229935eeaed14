"""The evaluation as one HTML file that opens from the file system without a network, prints, and sorts its table."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import cv2
import numpy as np

from yolov7.data.decode import read_image
from yolov7.data.index import Index
from yolov7.evaluate.bootstrap import Interval, ap_interval
from yolov7.evaluate.mistakes import Calibration, Errors, ImageErrors, best_confidence, calibration, find_errors
from yolov7.evaluate.run import Evaluation
from yolov7.evaluate.slices import Slice, image_slices, object_slices
from yolov7.predict.draw import draw_boxes
from yolov7.report import charts
from yolov7.report.page import document, facts_table, number, table

_PICTURE_SIDE = 480

_KINDS = {
    "right": "right",
    "localisation": "badly placed: right class, IoU 0.1 to 0.5",
    "class": "another class: IoU over 0.5 with an object of that",
    "both": "badly placed and of another class",
    "duplicate": "duplicate: the object was found already",
    "background": "on nothing: IoU under 0.1 with every object",
    "missed": "missed: an object that no detection points at",
}


@dataclass(frozen=True)
class Analysis:
    """Everything the page tells beside the COCO figures."""

    interval: Interval
    """AP and its 95 % interval over images."""
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
) -> str:
    """The page. `facts` (what was measured on what) stand under the title; of `pictures` images two thirds show the
    most mistakes, the others show what works."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        facts_table(facts),
        _figures(evaluation, analysis),
        "<h2>Precision and recall</h2>",
        _curves(evaluation, analysis),
        "<h2>Mistakes</h2>",
        _mistakes(analysis.errors),
        "<h2>Classes</h2>",
        _classes(evaluation, analysis.errors, index),
        "<h2>What was taken for what</h2>",
        _confusion(analysis.errors, index.class_names),
        "<h2>Parts of the data</h2>",
        _slices(analysis),
        *_galleries(analysis.errors, index, pictures),
    ]
    return document(title, parts)


def _figures(evaluation: Evaluation, analysis: Analysis) -> str:
    items = [(name, number(value)) for name, value in evaluation.metrics.items()]
    cells = "".join(f"<li><b>{value}</b>{name}</li>" for name, value in items)
    interval = analysis.interval
    return (
        f'<ul class="figures">{cells}</ul><p>AP lies between <b>{interval.low:.3f}</b> and <b>{interval.high:.3f}</b> '
        "with 95 % confidence (images drawn again with replacement). F1 is highest at the confidence "
        f"{analysis.errors.confidence:.3f}: {analysis.f1:.3f}. Figures are pycocotools'; – where there is nothing to "
        "measure.</p>"
    )


def _curves(evaluation: Evaluation, analysis: Analysis) -> str:
    error = analysis.calibration.expected_error
    words = "" if math.isnan(error) else f" On average they are {error:.3f} apart."
    return (
        f'<div class="two"><div>{charts.precision_recall(evaluation.curves)}</div>'
        f"<div>{charts.reliability(analysis.calibration)}"
        '<p class="small">Scores of at least 0.05 against the share of right detections (IoU 0.5).'
        f"{words}</p></div></div>"
    )


def _mistakes(errors: Errors) -> str:
    total = max(sum(errors.counts.values()), 1)
    key = "".join(
        f'<li><i style="background:{charts.KIND_COLORS[kind]}"></i>{escape(words)}: '
        f"{errors.counts[kind]:,} ({errors.counts[kind] / total:.1%})</li>"
        for kind, words in _KINDS.items()
    )
    return (
        f"<p>Detections with a score of at least {errors.confidence:.3f}, and the objects they leave out.</p>"
        f'{charts.kinds_bar(errors.counts)}<ul class="key">{key}</ul>'
    )


def _classes(evaluation: Evaluation, errors: Errors, index: Index) -> str:
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
                escape(name),
                f"{objects:,}",
                number(evaluation.per_class[name]),
                number(ap50),
                f"{right / objects:.1%}" if objects else "–",
                f"{right / detections:.1%}" if detections else "–",
                escape(other),
            ]
        )
    head = ["Class", "#Objects", "#AP", "#AP50", "#Found", "#Right of those detected", "Most often taken for"]
    return table(head, rows, sorts=True)


def _confusion(errors: Errors, class_names: Sequence[str]) -> str:
    words = (
        "<p>Each row is what an object is, each column what was detected there (IoU 0.5, right ones first). "
        "The depth of the colour is the share of the row.</p>"
    )
    return f'{words}<div class="scroll">{charts.confusion(errors.confusion, class_names)}</div>'


def _slices(analysis: Analysis) -> str:
    rows = [[one.group, one.name, f"{one.count:,}", one.figure, number(one.value)] for one in analysis.slices]
    words = (
        "<p>Recall counts objects found at IoU 0.5 and the confidence above; AP is measured on the images of the part "
        "alone, over the classes they show.</p>"
    )
    return words + table(["By", "Part", "#Objects or images", "Figure", "#Value"], [map(escape, row) for row in rows])


def _galleries(errors: Errors, index: Index, pictures: int) -> list[str]:
    wrong = sorted((i for i in errors.images if i.mistakes), key=lambda i: (-i.mistakes, i.position))
    good = sorted(
        (i for i in errors.images if not i.mistakes and i.found.any()), key=lambda i: (-int(i.found.sum()), i.position)
    )
    best = good[: max(pictures // 3, pictures - len(wrong))]
    parts = []
    for title, chosen in (("Most mistakes", wrong[: pictures - len(best)]), ("Without a mistake", best)):
        if chosen:
            shown = "".join(_picture(index, image) for image in chosen)
            parts.append(f'<h2>{title}</h2><p class="small">Truth on the left, detections on the right.</p>')
            parts.append(f'<div class="pictures">{shown}</div>')
    return parts


def _picture(index: Index, image: ImageErrors) -> str:
    pixels = read_image(index.image_path(image.position))
    scale = min(1.0, _PICTURE_SIDE / max(pixels.shape[:2]))
    if scale < 1:
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
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
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pair, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise OSError(f"image {index.image_id(image.position)} could not be written as JPEG")
    wrong = f"{image.mistakes} mistakes, " if image.mistakes else ""
    caption = f"{escape(index.image_path(image.position).name)}: {wrong}{int(image.found.sum())} of {len(truth)} found"
    source = base64.b64encode(data.tobytes()).decode("ascii")
    return f'<figure><img alt="" src="data:image/jpeg;base64,{source}"><figcaption>{caption}</figcaption></figure>'
