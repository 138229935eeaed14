"""Greedy non-maximum suppression, exact, per class; from decoded predictions to detections.

A box is dropped if its IoU with a better kept box of its own class exceeds the threshold. Classes are separated by
their labels, not by shifting coordinates: a shift smaller than the image lets classes meet, and a large one costs the
digits of float32.

The algorithm depends on the count. A few boxes: one matrix over all classes. More: class by class, and within a class
in blocks by falling score, each block first against the boxes kept so far and then against itself. So memory is
bounded for any number of candidates, and dropped boxes are never compared again.

Legend: B images, N boxes, C classes, K kept boxes, M boxes of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolov7.detections import Detections
from yolov7.errors import ConfigError
from yolov7.predictions import Scoring, columns_before_classes, may_exceed
from yolov7.predictions import scores as scores_of

ONE_MATRIX = 256  # up to this many boxes one N x N matrix is faster than a pass per class
BLOCK = 256  # boxes of a class that are processed together
KEPT_CHUNK = 4096  # kept boxes compared with a block at a time: bounds each temporary to 4 MiB


@dataclass(frozen=True)
class Thresholds:
    """Limits of a suppression. Raises :class:`ConfigError` for values out of range."""

    confidence: float
    """Only scores above it count; 0 to 1."""
    iou: float
    """A box is dropped if it overlaps a better one of its class by more; above 0, at most 1."""
    max_detections: int = 300
    """Most detections of an image."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.confidence <= 1.0:
            raise ConfigError(f"confidence {self.confidence} is out of range: it must lie between 0 and 1")
        if not 0.0 < self.iou <= 1.0:
            raise ConfigError(f"iou {self.iou} is out of range: it must lie between 0 (excluded) and 1")
        if self.max_detections < 1:
            raise ConfigError(f"max_detections {self.max_detections} is out of range: it must be at least 1")

    def updated(
        self, *, confidence: float | None = None, iou: float | None = None, max_detections: int | None = None
    ) -> Thresholds:
        """These thresholds with the given ones in their place; None keeps a value."""
        return Thresholds(
            confidence=self.confidence if confidence is None else float(confidence),
            iou=self.iou if iou is None else float(iou),
            max_detections=self.max_detections if max_detections is None else int(max_detections),
        )


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Indices (K,) int64 of the kept ones of (N, 4) xyxy boxes, by falling score (ties: the lower index first)."""
    return batched_nms(boxes, scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device), iou)


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, *, limit: int | None = None) -> Tensor:
    """Like :func:`nms`, but a box suppresses only boxes of its own label.

    `limit`: keep at most this many, the best ones, which saves work for crowded classes. Coordinates, scores and labels
    may be on any device; the greedy pass is serial and runs on the CPU in float32.
    """
    order = torch.sort(scores.detach().float(), descending=True, stable=True).indices.cpu()
    if limit is not None and limit <= 0:
        return order[:0].to(boxes.device)
    sorted_boxes = np.ascontiguousarray(boxes.detach().float().cpu()[order].numpy())  # (N, 4)
    sorted_labels = labels.cpu()[order].numpy()  # (N,)
    threshold = np.float32(iou)
    if len(order) <= ONE_MATRIX:
        rivals = _overlaps(sorted_boxes, sorted_boxes, threshold)
        rivals &= sorted_labels[:, None] == sorted_labels[None, :]
        kept = _settle(rivals)
    else:
        kept = _class_by_class(sorted_boxes, sorted_labels, threshold, limit)
    return order[torch.from_numpy(kept[:limit])].to(boxes.device)


def select(
    decoded: Tensor,
    thresholds: Thresholds,
    *,
    scoring: Scoring,
    multi_label: bool,
    max_candidates: int = 30000,
) -> list[Detections]:
    """Detections of each image, in pixels of the network's input (reference sheet: training, section 9).

    `decoded` (B, N, F): columns and scores as `scoring` has them (:mod:`yolov7.predictions`). With `multi_label` a box
    counts for every class whose score is above the confidence, otherwise for its best class. The best `max_candidates`
    go into suppression. Predictions that are not finite are left out.
    """
    before = columns_before_classes(scoring)
    if decoded.ndim != 3 or decoded.shape[2] <= before:
        raise ValueError(
            f"predictions of shape (B, N, {before} + C) with C >= 1 are expected, got {tuple(decoded.shape)}"
        )
    results = []
    for predictions in decoded.detach():
        boxes, scores, labels = _candidates(predictions, thresholds.confidence, scoring, multi_label=multi_label)
        top = torch.sort(scores, descending=True, stable=True).indices[:max_candidates]
        boxes, scores, labels = boxes[top].cpu(), scores[top].cpu(), labels[top].cpu()
        kept = batched_nms(boxes, scores, labels, thresholds.iou, limit=thresholds.max_detections)
        results.append(Detections(boxes[kept], scores[kept], labels[kept]))
    return results


def _candidates(
    predictions: Tensor, confidence: float, scoring: Scoring, *, multi_label: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4), scores (n,), labels (n,) above `confidence` of one image's predictions (N, F)."""
    # Most boxes are out before any score is computed.
    rows = predictions[torch.nonzero(may_exceed(predictions, scoring, confidence))[:, 0]].float()
    boxes = rows[:, :4]
    scores = scores_of(rows, scoring)  # (n, C)
    if not multi_label:
        best, labels = scores.max(dim=1)
        at = torch.nonzero(best > confidence)[:, 0]
        boxes, found, labels = boxes[at], best[at], labels[at]
    else:
        at, labels = torch.nonzero(scores > confidence, as_tuple=True)
        boxes, found = boxes[at], scores[at, labels]
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(found)
    return boxes[finite], found[finite], labels[finite]


def _class_by_class(boxes: np.ndarray, labels: np.ndarray, threshold: np.float32, limit: int | None) -> np.ndarray:
    """Positions kept, ascending, of boxes (N, 4) that are sorted by falling score."""
    by_label = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[by_label])) + 1
    kept = [members[_greedy(boxes[members], threshold, limit)] for members in np.split(by_label, starts)]
    return np.sort(np.concatenate(kept))


def _greedy(boxes: np.ndarray, threshold: np.float32, limit: int | None) -> np.ndarray:
    """Positions kept, ascending, of one class's boxes by falling score; stops at `limit`."""
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(boxes), BLOCK):
        alive = np.arange(start, min(start + BLOCK, len(boxes)))
        for chunk in range(0, len(kept), KEPT_CHUNK):
            if not len(alive):
                break
            rivals = _overlaps(boxes[kept[chunk : chunk + KEPT_CHUNK]], boxes[alive], threshold)  # (K, M)
            alive = alive[~rivals.any(axis=0)]
        kept = np.concatenate((kept, alive[_settle(_overlaps(boxes[alive], boxes[alive], threshold))]))
        if limit is not None and len(kept) >= limit:
            break
    return kept


def _settle(rivals: np.ndarray) -> np.ndarray:
    """Positions that survive greedy suppression, given the symmetric (M, M) matrix of boxes that exclude each other."""
    alive = np.ones(len(rivals), dtype=bool)
    # Only a box with a rival other than itself can suppress anything.
    for i in np.flatnonzero(np.triu(rivals, 1).any(axis=1)):
        if alive[i]:
            alive[i + 1 :] &= ~rivals[i, i + 1 :]
    return np.flatnonzero(alive)


def _overlaps(a: np.ndarray, b: np.ndarray, threshold: np.float32) -> np.ndarray:
    """(K, M) bool: IoU of (K, 4) and (M, 4) boxes above the threshold; the arithmetic of `boxes.pairwise_iou`."""
    left, top, right, bottom = a.T[:, :, None]  # (K, 1) each
    width = np.minimum(right, b[:, 2])
    width -= np.maximum(left, b[:, 0])
    np.maximum(width, 0, out=width)
    height = np.minimum(bottom, b[:, 3])
    height -= np.maximum(top, b[:, 1])
    np.maximum(height, 0, out=height)
    intersection = np.multiply(width, height, out=width)
    union = np.add(_areas(a)[:, None], _areas(b)[None, :], out=height)
    union -= intersection
    # An empty union has IoU 0: make the division 0 / 1.
    empty = union <= 0
    if empty.any():
        union[empty] = 1
        intersection[empty] = 0
    return np.divide(intersection, union, out=intersection) > threshold


def _areas(boxes: np.ndarray) -> np.ndarray:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]
