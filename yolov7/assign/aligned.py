"""Task-aligned assignment for the whole batch at once (TOOD paper, section 3.2; reference sheet: yolov9-training, 5).

The alignment of a target and a cell is score^alpha * overlap^beta. A target chooses the `top_k` cells of the largest
alignment among those whose centres it contains. A cell that several targets choose goes to the target of its image
with the largest overlap, even to one that did not choose it. Everything runs without gradient and in float32.
`plain_aligned` in tests/support/aligned_cases.py is the same method on dense tables, image by image.

There is no table of targets and cells: only the pairs inside a target are compared, and the few contested cells with
all targets of their image. Crowded batches are processed in chunks.

Ties are settled the same way on every device: the earlier cell, then the earlier target wins. A cell without alignment,
or with NaN in its maps, is not chosen.

Legend: H heads, B images, K maps of all heads, N cells of an image in all maps, T targets, P pairs, S chosen pairs,
Q contested cells. A cell of the batch has the number image * N + cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7.assign.cells import Inside, chunks, runs
from yolov7.assign.matches import Matches, Predicted, Targets
from yolov7.boxes import ciou
from yolov7.device import cached_constant
from yolov7.errors import DataError

EPS = 1e-9
BITS = (1 << 31) - 1  # a positive float32 sorts as its bits do
NOBODY = torch.iinfo(torch.int64).max

Chosen = tuple[Tensor, Tensor, Tensor]
"""Pairs by target (S,), cell of the batch (S,) and overlap (S,)."""


@dataclass(frozen=True)
class AlignedAssigner:
    """See the module."""

    top_k: int = 10
    alpha: float = 0.5
    beta: float = 6.0

    @torch.no_grad()
    def __call__(self, predictions: Predicted, targets: Targets, /) -> Matches:
        """Matches in the levels of each head, one head after the other; their weights are the target scores.

        Raises :class:`DataError` for a target whose image or class does not exist.
        """
        return _Assignment(self, predictions, targets).matches()

    def alignment(self, logits: Tensor, overlap: Tensor) -> Tensor:
        """(P,) alignment of pairs with these logits of the target's class and these overlaps."""
        return logits.sigmoid() ** self.alpha * overlap**self.beta


class _Assignment:
    """One batch. Each head has its own copy of the targets: the number of a copy is head * T + target."""

    def __init__(self, rule: AlignedAssigner, predictions: Predicted, targets: Targets):
        self.rule, self.predictions, self.targets = rule, predictions, targets
        self.cells = predictions.cells
        self.boxes = predictions.boxes.flatten(0, 1)  # (B * N, 4)
        self.images = len(predictions.boxes)
        self.levels = len(self.cells.sizes) // predictions.heads

    def matches(self) -> Matches:
        """See :class:`AlignedAssigner`."""
        target, cell, overlap = self._chosen()
        wanted = torch.zeros(len(self.boxes), dtype=torch.int32, device=cell.device)
        wanted.index_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        alone = (wanted[cell] == 1).nonzero()[:, 0]
        settled = self._settled((wanted > 1).nonzero()[:, 0])
        return self._graded(_joined((target[alone], cell[alone], overlap[alone]), settled))

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
        return parts[0] if len(parts) == 1 else _joined(*parts)

    def _counts(self, inside: Inside) -> NDArray[np.int64]:
        """(K, T) cells inside each target, on the host; refuses unknown images and classes on the way."""
        last = cached_constant((self.images - 1, self.predictions.classes - 1), np.int64, self.boxes.device)
        unknown = (torch.minimum(self.targets.index.clamp(min=0), last) != self.targets.index).any(1)
        counts: NDArray[np.int64] = inside.rectangles[3].masked_fill(unknown, -1).cpu().numpy()
        if counts.min(initial=0) < 0:
            raise DataError(self._complaint())
        return counts

    def _best(self, copy: Tensor, alignment: Tensor) -> Tensor:
        """Numbers of the pairs (P,) that the targets choose."""
        # Descending by alignment inside each copy; the sort is stable, so the earlier cell comes first.
        bits = _number(alignment).view(torch.int32)
        keys, order = ((copy << 32) | (BITS - bits)).sort(stable=True)
        best = (keys & BITS) < BITS
        copy, k = keys >> 32, self.rule.top_k
        best[k:].logical_and_(copy[k:] != copy[:-k])  # k places before, the pair is that of another copy
        return order[best]

    def _settled(self, contested: Tensor) -> Chosen:
        """The owner of each contested cell (Q,): the target of its image with the largest overlap."""
        # Those without an area come behind the last image.
        image, order = self.targets.index[:, 0].masked_fill(self.targets.unusable, self.images).sort(stable=True)
        edges = torch.searchsorted(image, torch.arange(self.images + 1, device=image.device))
        place = torch.div(contested, len(self.cells), rounding_mode="floor")
        first, rivals = edges[place], edges[place + 1] - edges[place]
        best = torch.zeros_like(contested, dtype=torch.float32)
        owner = torch.full_like(contested, NOBODY)
        counts = rivals.cpu().numpy()
        for some in chunks(counts):
            number, place = runs(rivals[some], int(counts[some].sum()))
            number = number + some.start
            target = order[first[number] + place]
            overlap = self._overlap(target, contested[number])
            best.scatter_reduce_(0, number, overlap, "amax")
            owner.scatter_reduce_(0, number, torch.where(overlap == best[number], target, NOBODY), "amin")
        return owner, contested, best

    def _overlap(self, target: Tensor, cell: Tensor) -> Tensor:
        """(P,) CIoU of pairs, not below 0."""
        return _number(ciou(self.boxes[cell], self.targets.boxes[target]))

    def _copy(self, level: Tensor, target: Tensor) -> Tensor:
        """(P,) number of the copy of the targets in the heads that have these maps."""
        return torch.div(level, self.levels, rounding_mode="floor") * len(self.targets) + target

    def _graded(self, found: Chosen) -> Matches:
        """The final pairs as matches: ordered by head, level, image and cell, with their target scores."""
        target, cell, overlap = found
        image = torch.div(cell, len(self.cells), rounding_mode="floor")
        level, row, column, place = self.cells.facts[:, cell - image * len(self.cells)]
        order = (level * len(self.boxes) + cell).sort().indices
        table = torch.stack((level, image, torch.zeros_like(level), row, column, target, place))[:, order]
        level, image, *_, target, place = table.unbind()
        edges = torch.arange(len(self.cells.sizes) + 1, device=level.device)
        counts = tuple(after - before for before, after in pairwise(torch.searchsorted(level, edges).tolist()))

        overlap = overlap[order]
        logits = self.predictions.logits_at(image, self.targets.label[target, 0], place, counts)
        alignment = self.rule.alignment(logits, overlap)
        copy = self._copy(level, target)
        best = alignment.new_zeros(2, self.predictions.heads * len(self.targets))
        best.scatter_reduce_(1, copy.expand(2, -1), torch.stack((alignment, overlap)), "amax")
        most_aligned, most_overlap = best[:, copy]
        return Matches(table[:6], counts, weight=alignment * most_overlap / (most_aligned + EPS))

    def _complaint(self) -> str:
        for number, (image, label) in enumerate(self.targets.index.tolist()):
            if not 0 <= image < self.images:
                return f"target {number} names image {image} of a batch of {self.images}"
            if not 0 <= label < self.predictions.classes:
                break
        return f"target {number} has class {label}, the network knows 0 to {self.predictions.classes - 1}"


def _number(values: Tensor) -> Tensor:
    """Values (P,), not below 0; 0 for NaN, from maps that are not finite: it neither sorts nor equals its maximum."""
    return torch.fmax(values, cached_constant((0.0,), np.float32, values.device))


def _joined(*parts: Chosen) -> Chosen:
    target, cell, overlap = (torch.cat(values) for values in zip(*parts, strict=True))
    return target, cell, overlap
