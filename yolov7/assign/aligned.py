"""Task-aligned assignment for the whole batch at once (TOOD paper, section 3.2; reference sheets: yolov9-training, 5,
and yolov6-training, 6.3).

The alignment of a target and a cell is score^alpha * overlap^beta. A target chooses the `top_k` cells of the largest
alignment among those whose centres it contains. A cell that several targets choose goes to the target of its image
with the largest overlap, even to one that did not choose it. Everything runs without gradient and in float32.
`plain_aligned` in tests/support/aligned_cases.py is the same method on dense tables, image by image.

There is no table of targets and cells: only the pairs inside a target are compared, and the few contested cells with
all targets of their image. Crowded batches are processed in chunks.

Ties are settled the same way on every device: the earlier cell, then the earlier target wins. A cell without alignment,
or with NaN in its maps, is not chosen.

Legend: see :mod:`yolov7.assign.contested`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7.assign.cells import Inside, chunks
from yolov7.assign.contested import Assignment, Chosen, Pairs, joined, number
from yolov7.assign.matches import Matches, Predicted, Targets
from yolov7.boxes import ciou, paired_iou

EPS = 1e-9
BITS = (1 << 31) - 1  # a positive float32 sorts as its bits do


@dataclass(frozen=True)
class AlignedAssigner:
    """See the module."""

    top_k: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    overlap: Literal["ciou", "iou"] = "ciou"

    @torch.no_grad()
    def __call__(self, predictions: Predicted, targets: Targets, /) -> Matches:
        """See :meth:`Assignment.matches`."""
        return _Aligned(self, predictions, targets).matches()

    def alignment(self, logits: Tensor, overlap: Tensor) -> Tensor:
        """(P,) alignment of pairs with these logits of the target's class and these overlaps."""
        return logits.sigmoid() ** self.alpha * overlap**self.beta


class _Aligned(Assignment):
    def __init__(self, rule: AlignedAssigner, predictions: Predicted, targets: Targets):
        super().__init__(predictions, targets)
        self.rule = rule

    def _chosen(self) -> Chosen:
        """The best cells of each target."""
        inside = Inside.of(self.targets.boxes, self.targets.unusable, self.cells)
        counts = self._counts(inside)
        parts = []
        for some in chunks(counts.sum(0)):
            own = counts[:, some]
            rectangle, place = inside.pairs(some, int(own.sum()))
            level = torch.div(rectangle, max(own.shape[1], 1), rounding_mode="floor")
            target = rectangle - level * own.shape[1] + some.start
            image, label = self.targets.index[target].unbind(1)
            cell = image * len(self.cells) + self.cells.first[level] + place
            overlap = self._overlap(target, cell)
            logits = self.predictions.logits_at(image, label, place, own.sum(1).tolist())
            best = self._best(self._copy(level, target), self.rule.alignment(logits, overlap))
            parts.append((target[best], cell[best], overlap[best]))
        return parts[0] if len(parts) == 1 else joined(*parts)

    def _counts(self, inside: Inside) -> NDArray[np.int64]:
        """(K, T) cells inside each target, on the host; refuses unknown images and classes on the way."""
        counts: NDArray[np.int64] = inside.rectangles[3].masked_fill(self._unknown(), -1).cpu().numpy()
        if counts.min(initial=0) < 0:
            raise self._complaint()
        return counts

    def _best(self, copy: Tensor, alignment: Tensor) -> Tensor:
        """Numbers of the pairs (P,) that the targets choose."""
        # Descending by alignment inside each copy; the sort is stable, so the earlier cell comes first.
        bits = number(alignment).view(torch.int32)
        keys, order = ((copy << 32) | (BITS - bits)).sort(stable=True)
        best = (keys & BITS) < BITS
        copy, k = keys >> 32, self.rule.top_k
        best[k:].logical_and_(copy[k:] != copy[:-k])  # k places before, the pair is that of another copy
        return order[best]

    def _overlap(self, target: Tensor, cell: Tensor) -> Tensor:
        """(P,) overlap of target and predicted box, not below 0."""
        predicted, wanted = self.boxes[cell], self.targets.boxes[target]
        return number(ciou(predicted, wanted) if self.rule.overlap == "ciou" else paired_iou(predicted, wanted, EPS))

    def _scores(self, pairs: Pairs) -> Tensor:
        """(P,) alignment, scaled so that the best pair of a target gets its largest overlap."""
        label = self.targets.label[pairs.target, 0]
        logits = self.predictions.logits_at(pairs.image, label, pairs.place, pairs.counts)
        alignment = self.rule.alignment(logits, pairs.overlap)
        copy = self._copy(pairs.level, pairs.target)
        best = alignment.new_zeros(2, self.predictions.heads * len(self.targets))
        best.scatter_reduce_(1, copy.expand(2, -1), torch.stack((alignment, pairs.overlap)), "amax")
        most_aligned, most_overlap = best[:, copy]
        return alignment * most_overlap / (most_aligned + EPS)
