"""A detector's mistakes at one confidence, by kind, class and image.

The kinds follow the decomposition of TIDE (Bolya et al., ECCV 2020): a detection is right, or it is badly placed
(`localisation`), of another class (`class`), both (`both`), a second one on an object already found (`duplicate`), or
on nothing (`background`). An object is `missed` if it has no right detection and no badly placed or misnamed detection
explains it. Detections on crowds are neither right nor wrong.

Legend: C classes, G objects, D detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from yolov7.boxes import pairwise_iou
from yolov7.data.index import Index
from yolov7.evaluate.matches import Matching

KINDS = ("right", "localisation", "class", "both", "duplicate", "background")
_FOREGROUND, _BACKGROUND = 0.5, 0.1


@dataclass(frozen=True)
class ImageErrors:
    """One image's detections at the operating confidence, each with its kind, and the objects found and missed."""

    position: int
    """In the index."""
    boxes: np.ndarray
    """(D, 4) float32 xyxy pixels."""
    labels: np.ndarray
    """(D,) int64."""
    scores: np.ndarray
    """(D,) float64, falling."""
    kinds: tuple[str, ...]
    """One of :data:`KINDS` for every detection; `ignored` on a crowd."""
    found: np.ndarray
    """(G,) bool: objects with a right detection."""
    missed: np.ndarray
    """(G,) bool: objects that no detection explains. Crowds are neither found nor missed."""

    @property
    def mistakes(self) -> int:
        """Wrong detections and missed objects."""
        return sum(kind not in ("right", "ignored") for kind in self.kinds) + int(self.missed.sum())


@dataclass(frozen=True)
class Errors:
    """The mistakes over a data set."""

    confidence: float
    """Detections below it were left out."""
    counts: dict[str, int]
    """Detections by kind, and `missed` objects."""
    confusion: np.ndarray
    """(C + 1, C + 1) int64: rows are the objects' classes, columns the detections'; the last row is background
    (detections of nothing), the last column nothing (missed objects)."""
    images: tuple[ImageErrors, ...]


@dataclass(frozen=True)
class Calibration:
    """Share of right detections by score."""

    edges: np.ndarray
    """(B + 1,) bin edges."""
    counts: np.ndarray
    """(B,) detections."""
    mean_scores: np.ndarray
    """(B,) NaN in an empty bin."""
    precision: np.ndarray
    """(B,) share of right ones at IoU 0.5; NaN in an empty bin."""
    expected_error: float
    """Mean distance of score and precision, weighted by detections; NaN without any."""


def best_confidence(matches: Matching) -> tuple[float, float]:
    """(score, F1): the confidence of the highest F1 over all classes at IoU 0.5; (0.5, 0.0) if nothing is right."""
    counted = ~matches.ignored[0]
    scores, correct = matches.scores[counted], matches.correct[0][counted]
    total = int(matches.truths.sum())
    if not correct.any() or not total:
        return 0.5, 0.0
    order = np.argsort(-scores, kind="mergesort")
    scores, right = scores[order], np.cumsum(correct[order])
    f1 = 2 * right / (np.arange(1, len(right) + 1) + total)
    f1[:-1][scores[:-1] == scores[1:]] = 0.0  # a confidence admits all detections of its score
    best = int(f1.argmax())
    return float(scores[best]), float(f1[best])


def calibration(matches: Matching, *, lowest: float = 0.05, bins: int = 10) -> Calibration:
    """Scores against the share of right detections (IoU 0.5), in equal bins from `lowest` to 1."""
    counted = ~matches.ignored[0] & (matches.scores >= lowest)
    scores, correct = matches.scores[counted], matches.correct[0][counted]
    edges = np.linspace(lowest, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(place, scores, bins) / counts
        precision = np.bincount(place, correct, bins) / counts
    used = counts > 0
    error = np.average(np.abs(mean_scores - precision)[used], weights=counts[used]) if used.any() else np.nan
    return Calibration(edges, counts, mean_scores, precision, float(error))


def find_errors(index: Index, results: Sequence[Mapping[str, Any]], *, confidence: float) -> Errors:
    """Sort the detections (COCO result records) of at least `confidence` by kind of mistake."""
    number = {category: label for label, category in enumerate(index.category_ids)}
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for record in results:
        if record["score"] >= confidence:
            by_image.setdefault(record["image_id"], []).append(record)
    classes = len(index.class_names)
    confusion = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    counts = dict.fromkeys((*KINDS, "missed"), 0)
    images = []
    for position in range(len(index)):
        records = sorted(by_image.get(index.image_id(position), []), key=lambda record: -record["score"])
        corners = np.array([record["bbox"] for record in records], dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = np.array([number[record["category_id"]] for record in records], dtype=np.int64)
        image = _sort(index, position, corners, labels, np.array([record["score"] for record in records]), confusion)
        images.append(image)
        for kind in image.kinds:
            if kind != "ignored":
                counts[kind] += 1
        counts["missed"] += int(image.missed.sum())
    return Errors(confidence, counts, confusion, tuple(images))


def _sort(
    index: Index, position: int, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, confusion: np.ndarray
) -> ImageErrors:
    """Kinds of one image's detections, matched greedily by score as the COCO tool does; counts them in `confusion`."""
    truth, crowd = index.labels(position), index.crowd(position)
    overlap = pairwise_iou(torch.from_numpy(boxes), torch.from_numpy(np.array(index.boxes(position)))).numpy()
    inside = _inside(boxes, index.boxes(position))
    found, explained = np.zeros(len(truth), dtype=bool), np.zeros(len(truth), dtype=bool)
    kinds: list[str] = []
    for row, label in enumerate(labels):
        own = (truth == label) & ~crowd
        free = np.where(own & ~found, overlap[row], 0.0)
        if free.size and free.max() >= _FOREGROUND:
            found[free.argmax()] = True
            kinds.append("right")
        elif (inside[row][(truth == label) & crowd] >= _FOREGROUND).any():
            kinds.append("ignored")
        else:
            others = np.where(own | crowd, 0.0, overlap[row])
            kind, about = _mistake(np.where(own, overlap[row], 0.0), others, found)
            kinds.append(kind)
            if kind in ("localisation", "class", "both"):
                explained[about] = True
    _confuse(confusion, overlap, labels, truth, crowd, kinds, found)
    return ImageErrors(position, boxes, labels, scores, tuple(kinds), found, ~found & ~explained & ~crowd)


def _confuse(
    confusion: np.ndarray,
    overlap: np.ndarray,
    labels: np.ndarray,
    truth: np.ndarray,
    crowd: np.ndarray,
    kinds: Sequence[str],
    found: np.ndarray,
) -> None:
    """Count an image: right detections, then the others with any object that is left, whatever its class."""
    nothing = len(confusion) - 1
    taken = found | crowd
    for row, (label, kind) in enumerate(zip(labels, kinds, strict=True)):
        if kind == "ignored":
            continue
        if kind == "right":
            confusion[label, label] += 1
            continue
        free = np.where(taken, 0.0, overlap[row])
        if free.size and free.max() >= _FOREGROUND:
            taken[free.argmax()] = True
            confusion[truth[free.argmax()], label] += 1
        else:
            confusion[nothing, label] += 1
    np.add.at(confusion, (truth[~taken], nothing), 1)


def _mistake(own: np.ndarray, others: np.ndarray, found: np.ndarray) -> tuple[str, int]:
    """Kind of a wrong detection, and the object it is about (-1: none), from its overlaps with objects of its class and
    of other classes."""
    best_own, best_other = (float(side.max(initial=0.0)) for side in (own, others))
    if best_own >= _FOREGROUND:
        return "duplicate", int(own.argmax())  # a free one would have made it right
    if best_other >= _FOREGROUND:
        return "class", int(others.argmax())
    if best_own >= _BACKGROUND:
        about = int(own.argmax())
        return ("localisation", about) if not found[about] else ("duplicate", about)
    if best_other >= _BACKGROUND:
        return "both", int(others.argmax())
    return "background", -1


def _inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """(D, G) share of each box that lies in each region: how the COCO tool compares with crowds."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return (high - low).clip(0).prod(axis=2) / np.maximum(area, 1e-9)[:, None]
