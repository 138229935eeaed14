"""The COCO tool's matching of detections with objects, in arrays: for intervals, calibration and operating points.

Legend: T IoU thresholds (0.50 to 0.95), C classes, I images, N detections (at most 100 per image and class, all areas).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Matching:
    """The tool's matching over all areas, with up to 100 detections per image.

    Detections are sorted by class, then by falling score, ties in the order of the images: the order in which the tool
    sums them up.
    """

    image_ids: tuple[int, ...]
    """COCO ids of the images, in the order of their positions below."""
    class_names: tuple[str, ...]
    truths: np.ndarray
    """(C, I) int64: objects that count (no crowds)."""
    images: np.ndarray
    """(N,) int64: position of the detection's image."""
    labels: np.ndarray
    """(N,) int64: class number, rising."""
    scores: np.ndarray
    """(N,) float64."""
    correct: np.ndarray
    """(T, N) bool: matched with an object of its class."""
    ignored: np.ndarray
    """(T, N) bool: matched with a crowd, neither right nor wrong."""

    def average_precision(self, weights: np.ndarray | None = None) -> float:
        """AP with every image counted `weights` (I,) times (default: once, which gives the tool's own figure).

        -1 if no object counts.
        """
        weights = np.ones(len(self.image_ids)) if weights is None else np.asarray(weights, dtype=np.float64)
        bounds = np.searchsorted(self.labels, np.arange(len(self.class_names) + 1))
        totals = self.truths @ weights
        means = [
            self._precision(slice(first, last), weights, total).mean()
            for first, last, total in zip(bounds[:-1], bounds[1:], totals, strict=True)
            if total > 0
        ]
        return float(np.mean(means)) if means else -1.0

    def _precision(self, part: slice, weights: np.ndarray, total: float) -> np.ndarray:
        """(T, 101) precision of one class at the recall points, as the tool interpolates it."""
        weight = np.where(self.ignored[:, part], 0.0, weights[self.images[part]])
        correct = self.correct[:, part]
        right = np.cumsum(weight * correct, axis=1)
        wrong = np.cumsum(weight * ~correct, axis=1)
        precision = right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found = np.zeros((len(precision), len(_RECALLS)))
        for row, values in enumerate(precision):
            at = np.searchsorted(right[row] / total, _RECALLS, side="left")
            reached = at < len(values)
            found[row, reached] = values[at[reached]]
        return found


def matching_of(tool: COCOeval) -> Matching:
    """The matching of a `tool` whose `evaluate` has run with the usual parameters."""
    images, categories, areas = tool.params.imgIds, tool.params.catIds, len(tool.params.areaRng)
    thresholds, most = len(tool.params.iouThrs), tool.params.maxDets[-1]
    truths = np.zeros((len(categories), len(images)), dtype=np.int64)
    empty = np.zeros((thresholds, 0), dtype=bool)
    columns: dict[str, list[np.ndarray]] = {"images": [], "labels": [], "scores": []}
    correct, ignored = [empty], [empty]
    for label in range(len(categories)):
        of_class: list[tuple[int, dict]] = []
        for position in range(len(images)):
            # The tool's own order: class, area range (the first is all areas), image.
            record = tool.evalImgs[(label * areas) * len(images) + position]
            if record is None:
                continue
            truths[label, position] = int(np.count_nonzero(np.asarray(record["gtIgnore"]) == 0))
            of_class.append((position, record))
        scores = np.concatenate([np.zeros(0), *(np.asarray(r["dtScores"][:most], dtype=float) for _, r in of_class)])
        order = np.argsort(-scores, kind="mergesort")
        where = [np.full(len(r["dtScores"][:most]), position, dtype=np.int64) for position, r in of_class]
        matched = np.concatenate([empty, *(r["dtMatches"][:, :most] != 0 for _, r in of_class)], axis=1)[:, order]
        left_out = np.concatenate([empty, *(r["dtIgnore"][:, :most] != 0 for _, r in of_class)], axis=1)[:, order]
        columns["images"].append(np.concatenate([np.zeros(0, dtype=np.int64), *where])[order])
        columns["labels"].append(np.full(len(order), label, dtype=np.int64))
        columns["scores"].append(scores[order])
        correct.append(matched & ~left_out)
        ignored.append(left_out)
    return Matching(
        image_ids=tuple(int(image) for image in images),
        class_names=tuple(tool.cocoGt.cats[category]["name"] for category in categories),
        truths=truths,
        images=np.concatenate(columns["images"]) if categories else np.zeros(0, dtype=np.int64),
        labels=np.concatenate(columns["labels"]) if categories else np.zeros(0, dtype=np.int64),
        scores=np.concatenate(columns["scores"]) if categories else np.zeros(0),
        correct=np.concatenate(correct, axis=1),
        ignored=np.concatenate(ignored, axis=1),
    )
