"""Adaptive training sample selection for the whole batch at once (ATSS paper, section 3; reference sheet:
yolov6-training, 6.2).

Nothing that is predicted decides. A target considers the `nearest` cells by the distance of their centres on each
level, and chooses those whose anchor box, a square of `side` strides around the centre, overlaps it by more than the
mean plus the standard deviation over all it considers, and whose centre it contains. A cell that several targets choose
goes to the one with the largest overlap of the anchor box. The score of a match is the IoU of target and predicted box.
`plain_atss` in tests/support/aligned_cases.py is the same method on dense tables, image by image.

There is no table of targets and cells. Ranking columns and rows by their distance from the target's centre, the cell in
column rank i and row rank j has i * j - 1 others at least as near, so that the nearest 9 are among the 23 cells of
i * j <= 9, for a centre anywhere and a grid of any size. Ties: the earlier cell, then the earlier target wins.

Legend: see :mod:`yolov7.assign.contested`; L levels of a head, t targets of a chunk, A cells of i * j <= nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from yolov7.assign.cells import chunks
from yolov7.assign.contested import Assignment, Chosen, Pairs, joined, number
from yolov7.assign.matches import Matches, Predicted, Targets
from yolov7.boxes import paired_iou
from yolov7.device import cached_constant

EPS = 1e-9
LEAST_UNION = 1e-6
PLACE = (1 << 32) - 1  # bits of a cell's number in the keys


@dataclass(frozen=True)
class AtssAssigner:
    """See the module."""

    nearest: int = 9
    side: float = 5.0

    @torch.no_grad()
    def __call__(self, predictions: Predicted, targets: Targets, /) -> Matches:
        """See :meth:`Assignment.matches`."""
        return _Atss(self, predictions, targets).matches()


class _Atss(Assignment):
    def __init__(self, rule: AtssAssigner, predictions: Predicted, targets: Targets):
        super().__init__(predictions, targets)
        self.rule = rule

    def _chosen(self) -> Chosen:
        if bool(self._unknown().any()):
            raise self._complaint()
        candidates = self.levels * len(_ranks(self.rule.nearest)[0])
        parts = [self._of(some) for some in chunks(np.full(len(self.targets), candidates, np.int64))]
        return parts[0] if len(parts) == 1 else joined(*parts)

    def _of(self, some: slice) -> Chosen:
        """The choice of t targets; the cells of all heads are the same."""
        cell, considered = self._nearest(some)  # (L, t, nearest)
        boxes = self.targets.boxes[some]
        overlap = self._anchor_overlap(boxes, cell) * considered
        count = considered.sum((0, 2))  # (t,)
        mean = overlap.sum((0, 2)) / count
        spread = ((overlap - mean[:, None]).square() * considered).sum((0, 2)) / (count - 1).clamp(min=1)
        centre = self.cells.centres[cell]  # (L, t, nearest, 2)
        inside = ((centre > boxes[:, None, :2]) & (centre < boxes[:, None, 2:])).all(3)
        chosen = (overlap > (mean + spread.sqrt())[:, None]) & considered & inside
        chosen &= ~self.targets.unusable[some, None]
        level, target, place = chosen.nonzero().unbind(1)
        own, found = cell[level, target, place], overlap[level, target, place]
        target = target + some.start
        first = self.targets.index[target, 0] * len(self.cells) + own
        each = len(self.cells) // self.predictions.heads
        heads = range(self.predictions.heads)
        return joined(*((target, first + head * each, found) for head in heads))

    def _nearest(self, some: slice) -> tuple[Tensor, Tensor]:
        """The nearest cells of t targets on each level of a head, by number (L, t, nearest), and whether they exist."""
        device, keep = self.boxes.device, self.rule.nearest
        stride, limits = self.cells.strides[: self.levels], self.cells.limits[: self.levels]  # (L, 1, 1), (L, 1, 2)
        centre = (self.targets.twice_centre[:, some].T / 2).masked_fill(
            self.targets.unusable[some, None], 0.0
        )  # (t, 2)
        # The nearest columns and rows are among these around the centre, moved into the grid.
        around = torch.arange(keep + 1, device=device)
        start = (centre / stride - 0.5).floor() - keep // 2
        start = torch.minimum(start, limits - len(around)).clamp(min=0)  # (L, t, 2)
        lines = start[..., None] + around  # (L, t, 2, keep + 1)
        apart = ((lines + 0.5) * stride[..., None] - centre[..., None]).abs()
        apart, order = apart.masked_fill(lines >= limits[..., None], torch.inf).sort(stable=True)
        lines = lines.gather(3, order).long()
        i, j = (cached_constant(rank, np.int64, device) for rank in _ranks(keep))
        square = apart[:, :, 0, i].square() + apart[:, :, 1, j].square()  # (L, t, A)
        number_in_map = lines[:, :, 1, j] * self.cells.columns[: self.levels, None, None] + lines[:, :, 0, i]
        keys = (square.view(torch.int32).long() << 32) | number_in_map
        keys = keys.sort().values[:, :, :keep]
        exists = (keys >> 32).to(torch.int32).view(torch.float32).isfinite()
        cell = (keys & PLACE) + self.cells.first[: self.levels, None, None]
        return cell.masked_fill(~exists, 0), exists

    def _anchor_overlap(self, boxes: Tensor, cell: Tensor) -> Tensor:
        """IoU of boxes (t, 4) with the anchor boxes of cells (L, t, n) of an image, of the shape of `cell`."""
        reach = self.cells.stride[cell][..., 0] * (self.rule.side / 2)
        low, high = boxes[:, None].split(2, 2)  # (t, 1, 2) each
        centre = self.cells.centres[cell]
        sides = torch.minimum(high, centre + reach[..., None]) - torch.maximum(low, centre - reach[..., None])
        intersection = sides.clamp(min=0).prod(3)
        area = (high - low).clamp(min=0).prod(2)  # (t, 1)
        union = area + (2 * reach).square() - intersection
        return intersection / union.clamp(min=LEAST_UNION)

    def _overlap(self, target: Tensor, cell: Tensor) -> Tensor:
        """(P,) IoU of target and anchor box."""
        own = cell % len(self.cells)
        return self._anchor_overlap(self.targets.boxes[target], own[None, :, None]).flatten()

    def _scores(self, pairs: Pairs) -> Tensor:
        """(P,) IoU of target and predicted box."""
        return number(paired_iou(self.boxes[pairs.cell], self.targets.boxes[pairs.target], EPS))


@lru_cache
def _ranks(nearest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ranks from 0 of column and row, all pairs with (i + 1) * (j + 1) <= nearest."""
    pairs = [(i, j) for i in range(nearest) for j in range(nearest) if (i + 1) * (j + 1) <= nearest]
    columns, rows = zip(*pairs, strict=True)
    return columns, rows
