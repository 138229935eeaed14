"""SimOTA as YOLOv6 1.0 was released with it (YOLOX paper, section 2.1; reference sheet: yolov6-training, 6.4).

The cells of an image compete whose centres lie inside any target, or within `radius` strides of any target's centre.
A pair of target and cell costs the class loss of the cell's score, 3 times the logarithm of the IoU, and very much
unless the cell lies inside and near that very target. A target takes as many of its cheapest cells as its 10 best IoUs
add up to. A cell that several targets take goes to the target of its image where it is cheapest, even to one that did
not take it.

Image by image, on tables of its targets and competing cells. Ties: the earlier cell, then the earlier target.

Legend: N cells of an image, C classes, G targets of an image, A competing cells, P matches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolov7.assign.cells import Cells
from yolov7.boxes import pairwise_iou

FAR = 1e5  # cost of a cell that is not inside and near the target
OVERLAP_COST = 3.0
TINY = 1e-8
LEAST_LOG = -100.0


@dataclass(frozen=True)
class SimOtaAssigner:
    """See the module."""

    radius: float = 2.5
    best: int = 10

    @torch.no_grad()
    def __call__(self, boxes: Tensor, scores: Tensor, cells: Cells, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, rows of `targets` and their IoU (P,) of the matches of one image, ordered by cell.

        `boxes` (N, 4) xyxy in pixels, `scores` (N, C) probabilities, `targets` (G, 5) class, x1, y1, x2, y2.
        """
        label, wanted = targets[:, 0].long(), targets[:, 1:]
        low, high = wanted[:, None, :2], wanted[:, None, 2:]  # (G, 1, 2)
        inside = ((cells.centres > low) & (cells.centres < high)).all(2)  # (G, N)
        apart = (cells.centres - (low + high) / 2).abs()
        near = (apart < self.radius * cells.stride).all(2)
        competing = (inside | near).any(0).nonzero()[:, 0]
        if not len(competing):
            nothing = competing.new_zeros(0)
            return nothing, nothing, boxes.new_zeros(0)
        overlap = pairwise_iou(wanted, boxes[competing]).nan_to_num()  # (G, A)
        cost = _class_cost(scores[competing], label) - OVERLAP_COST * torch.log(overlap + TINY)
        cost = cost.nan_to_num(nan=FAR) + FAR * ~(inside & near)[:, competing]
        taken = self._cheapest(cost, overlap)
        owner = torch.where(taken.sum(0) > 1, cost.argmin(0), taken.int().argmax(0))  # (A,)
        found = taken.any(0).nonzero()[:, 0]
        target = owner[found]
        return competing[found], target, overlap[target, found]

    def _cheapest(self, cost: Tensor, overlap: Tensor) -> Tensor:
        """(G, A) bool: each target takes its cheapest cells."""
        best = overlap.topk(min(self.best, overlap.shape[1]), 1).values
        count = best.sum(1).int().clamp(min=1)  # (G,)
        rank = cost.sort(dim=1, stable=True).indices.argsort(1)
        return rank < count[:, None]


def _class_cost(scores: Tensor, label: Tensor) -> Tensor:
    """(G, A) cross-entropy of scores (A, C) with each target's class as the only one, summed over the classes."""
    present = scores.log().clamp(min=LEAST_LOG)
    absent = torch.log1p(-scores).clamp(min=LEAST_LOG)
    return (absent[:, label] - present[:, label]).T - absent.sum(1)
