"""Task-aligned assignment for the whole batch at once (TOOD paper, section 3.2; reference sheet: yolov9-training, 5).

The alignment of a target and a cell is score^alpha * overlap^beta. A target chooses the `top_k` cells of the largest
alignment among those whose centres it contains. A cell that several targets choose goes to the target of its image
with the largest overlap, even to one that did not choose it. Everything runs without gradient and in float32.
`plain_aligned` in tests/support/aligned_cases.py is the same method on dense tables, image by image.

There is no table of targets and cells: only the pairs inside a target are compared, and the few contested cells with
all targets of their image. Crowded batches are processed in chunks.

Ties are settled the same way on every device: the earlier cell, then the earlier target wins. A cell without alignment
is not chosen.

Legend: H heads, B images, N cells of an image, T targets of all heads, P pairs, S chosen pairs, Q contested cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from yolov7.assign.cells import Cells, Inside, chunks, runs
from yolov7.assign.matches import Matches, Predicted, Targets
from yolov7.boxes import ciou
from yolov7.errors import DataError

EPS = 1e-9
BITS = (1 << 31) - 1  # a positive float32 sorts as its bits do
NOBODY = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class _Chosen:
    """Pairs of a target and a cell."""

    target: Tensor  # (S,)
    cell: Tensor  # (S,) image * N + cell
    overlap: Tensor  # (S,)
    alignment: Tensor  # (S,)


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


class _Assignment:
    """One batch. The images of all heads are B * H images, and each head has its own copy of the targets."""

    def __init__(self, rule: AlignedAssigner, predictions: Predicted, targets: Targets):
        self.rule = rule
        self.boxes, self.logits = predictions.boxes, predictions.logits
        self.cells: Cells = predictions.cells
        self.heads = predictions.heads
        self.images = len(self.boxes) // self.heads
        self.given = len(targets)
        image, self.label = targets.index.repeat(self.heads, 1).unbind(1)
        head = torch.arange(self.heads, device=image.device).repeat_interleave(self.given)
        self.image = image + head * self.images
        self.targets = targets.boxes.repeat(self.heads, 1)
        self.usable = ~targets.unusable.repeat(self.heads)
        self.unknown = self._unknown(targets)

    def matches(self) -> Matches:
        """See :class:`AlignedAssigner`."""
        chosen = self._chosen()
        flat, many = chosen.cell, len(self.boxes) * len(self.cells)
        wanted = torch.zeros(many, dtype=torch.int32, device=flat.device)
        wanted.index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
        alone = (wanted[flat] == 1).nonzero()[:, 0]
        kept = _Chosen(*(values[alone] for values in (chosen.target, flat, chosen.overlap, chosen.alignment)))
        contested = (wanted > 1).nonzero()[:, 0]
        return self._graded(_joined(kept, self._settled(contested)))

    def _unknown(self, targets: Targets) -> Tensor:
        """(2,) whether a target names an image or a class that does not exist."""
        limits = self.images, self.logits.shape[2]
        wrong = [
            (values < 0) | (values >= limit) for values, limit in zip(targets.index.unbind(1), limits, strict=True)
        ]
        # What they point at is never read: the error follows before.
        return torch.stack([flags.any() if len(flags) else flags.new_zeros(()) for flags in wrong])

    def _chosen(self) -> _Chosen:
        """The best cells of each target."""
        inside = Inside.of(self.targets, self.usable, self.cells)
        total, *unknown = torch.cat((inside.counts.sum()[None], self.unknown.long())).tolist()
        if any(unknown):
            raise DataError(self._complaint())
        parts = []
        for some, count in chunks(inside.counts, total):
            target, cell = inside.pairs(some, count, self.cells)
            overlap, alignment = self._measured(target, self.image[target] * len(self.cells) + cell)
            # Descending by alignment inside each target; the sort is stable, so the earlier cell comes first.
            order = ((target << 32) | (BITS - alignment.view(torch.int32))).sort(stable=True).indices
            _, rank = runs(inside.counts[some], count)
            best = order[((rank < self.rule.top_k) & (alignment[order] > 0)).nonzero()[:, 0]]
            target = target[best]
            flat = self.image[target] * len(self.cells) + cell[best]
            parts.append(_Chosen(target, flat, overlap[best], alignment[best]))
        return parts[0] if len(parts) == 1 else _joined(*parts)

    def _settled(self, contested: Tensor) -> _Chosen:
        """The owner of each contested cell (Q,): the target of its image with the largest overlap."""
        by_image = self.image.masked_fill(~self.usable, len(self.boxes)).sort(stable=True)
        members = torch.zeros(len(self.boxes) + 1, dtype=torch.int64, device=contested.device)
        members.index_add_(0, by_image.values, torch.ones_like(by_image.values))
        first = members.cumsum(0) - members
        image = torch.div(contested, len(self.cells), rounding_mode="floor")
        rivals = members[image]
        best = torch.full_like(contested, -1, dtype=torch.float32)
        owner = torch.full_like(contested, NOBODY)
        for some, count in chunks(rivals, int(rivals.sum())):
            number, place = runs(rivals[some], count)
            number = number + some.start
            target = by_image.indices[first[image[number]] + place]
            overlap = self._overlap(target, contested[number])
            best.scatter_reduce_(0, number, overlap, "amax")
            winner = torch.where(overlap == best[number], target, NOBODY)
            owner.scatter_reduce_(0, number, winner, "amin")
        return _Chosen(owner, contested, best, self._alignment(owner, contested, best))

    def _measured(self, target: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
        overlap = self._overlap(target, flat)
        return overlap, self._alignment(target, flat, overlap)

    def _overlap(self, target: Tensor, flat: Tensor) -> Tensor:
        """(P,) CIoU of pairs, not below 0."""
        return ciou(self.boxes.flatten(0, 1)[flat], self.targets[target]).clamp(min=0)

    def _alignment(self, target: Tensor, flat: Tensor, overlap: Tensor) -> Tensor:
        """(P,) alignment of pairs with these overlaps."""
        image = torch.div(flat, len(self.cells), rounding_mode="floor")
        score = self.logits[image, flat - image * len(self.cells), self.label[target]].sigmoid()
        return score**self.rule.alpha * overlap**self.rule.beta

    def _graded(self, found: _Chosen) -> Matches:
        """The final pairs as matches: target scores, and the order by head, level, image and cell."""
        best = found.alignment.new_zeros(2, len(self.image))
        values = torch.stack((found.alignment, found.overlap))
        best.scatter_reduce_(1, found.target.expand(2, -1), values, "amax")
        alignment, overlap = best[:, found.target]
        score = found.alignment * overlap / (alignment + EPS)

        image = torch.div(found.cell, len(self.cells), rounding_mode="floor")
        cell = found.cell - image * len(self.cells)
        level, row, column = self.cells.rows_and_columns(cell)
        maps = torch.div(image, self.images, rounding_mode="floor") * len(self.cells.sizes) + level
        image = image % self.images
        order = ((maps * self.images + image) * len(self.cells) + cell).sort().indices
        target = found.target % max(self.given, 1)
        table = torch.stack((maps, image, torch.zeros_like(maps), row, column, target))[:, order]
        edges = torch.arange(self.heads * len(self.cells.sizes) + 1, device=maps.device)
        ends = torch.searchsorted(table[0].contiguous(), edges).tolist()
        counts = tuple(after - before for before, after in pairwise(ends))
        return Matches(table, counts, weight=score[order])

    def _complaint(self) -> str:
        for row, (image, label) in enumerate(zip(self.image.tolist(), self.label.tolist(), strict=True)):
            if not 0 <= image < self.images:
                return f"target {row} names image {image} of a batch of {self.images}"
            if not 0 <= label < self.logits.shape[2]:
                return f"target {row} has class {label}, the network knows 0 to {self.logits.shape[2] - 1}"
        return "a target names an image or a class that does not exist"


def _joined(*parts: _Chosen) -> _Chosen:
    return _Chosen(
        torch.cat([part.target for part in parts]),
        torch.cat([part.cell for part in parts]),
        torch.cat([part.overlap for part in parts]),
        torch.cat([part.alignment for part in parts]),
    )
