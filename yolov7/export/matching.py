"""Agreement of two sets of detections of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from yolov7.boxes import pairwise_iou
from yolov7.detections import Detections
from yolov7.nms import Thresholds

_FEW = 4
"""Detections on the edge that prove nothing: two ties, each of which costs one on both sides."""

SAME_BOX = 0.9
"""Default IoU from which two detections of a class are the same one."""


@dataclass
class Agreement:
    """Detections of two forms, matched one to one."""

    expected: int = 0
    """Detections of the first form, over all images."""
    found: int = 0
    """Detections of the second."""
    matched: int = 0
    """Pairs."""
    on_the_edge: int = 0
    """Detections without a partner for a reason inside float32's rounding: a score at the threshold, or a near tie in
    the suppression."""
    min_iou: float = 1.0
    """Smallest IoU of a pair."""
    max_score_difference: float = 0.0
    """Largest difference in score inside a pair."""
    max_box_difference: float = 0.0
    """Largest difference of a box corner inside a pair, in pixels."""

    @property
    def unmatched_share(self) -> float:
        """Share of all detections, of both forms, that have no partner and no excuse."""
        alone = self.expected + self.found - 2 * self.matched - self.on_the_edge
        return alone / max(self.expected + self.found, 1)

    @property
    def edge_share(self) -> float:
        """Share of all detections, of both forms, that have no partner but an excuse; 0 for the first few, which
        are chance on a small number of images."""
        few = self.on_the_edge <= _FEW
        return 0.0 if few else self.on_the_edge / (self.expected + self.found)


def agreement(
    expected: Sequence[Detections],
    found: Sequence[Detections],
    *,
    thresholds: Thresholds,
    score_tolerance: float,
    same_box: float = SAME_BOX,
) -> Agreement:
    """Match the detections of each image by class and IoU (at least `same_box`), the most confident first.

    `thresholds` are those both were selected with; `score_tolerance` is how far a score may be off.
    """
    total = Agreement()
    for one, other in zip(expected, found, strict=True):
        overlaps = pairwise_iou(one.boxes, other.boxes) * (one.labels[:, None] == other.labels[None, :])
        pairs = _pairs(overlaps, same_box)
        total.expected += len(one)
        total.found += len(other)
        total.matched += len(pairs)
        for i, j in pairs:
            total.min_iou = min(total.min_iou, float(overlaps[i, j]))
            total.max_score_difference = max(total.max_score_difference, abs(float(one.scores[i] - other.scores[j])))
            corners = float((one.boxes[i] - other.boxes[j]).abs().max())
            total.max_box_difference = max(total.max_box_difference, corners)
        first, second = {i for i, _ in pairs}, {j for _, j in pairs}
        total.on_the_edge += _excused(one, other, overlaps, first, thresholds, score_tolerance)
        total.on_the_edge += _excused(other, one, overlaps.T, second, thresholds, score_tolerance)
    return total


def _pairs(overlaps: torch.Tensor, same_box: float) -> list[tuple[int, int]]:
    """One to one, row by row (the most confident detections first): the best column that is left."""
    left = overlaps.clone()
    pairs = []
    for row in range(left.shape[0] if left.shape[1] else 0):
        value, column = left[row].max(dim=0)
        if float(value) >= same_box:
            pairs.append((row, int(column)))
            left[:, int(column)] = 0.0
    return pairs


def _excused(
    ours: Detections,
    theirs: Detections,
    overlaps: torch.Tensor,
    matched: set[int],
    thresholds: Thresholds,
    score_tolerance: float,
) -> int:
    """Number of our detections without a partner for a reason inside the rounding."""
    count, edge = 0, thresholds.confidence + score_tolerance
    for i in range(len(ours)):
        if i in matched:
            continue
        near_tie = (overlaps[i] > thresholds.iou - 1e-3) & ((theirs.scores - ours.scores[i]).abs() <= score_tolerance)
        count += int(float(ours.scores[i]) <= edge or bool(near_tie.any()))
    return count
