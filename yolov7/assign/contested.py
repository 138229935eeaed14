"""What the assigners of an aligned head have in common: the owner of a cell that several targets want, and the order of
the matches.

A contested cell goes to the target of its image with the largest overlap, even to one that did not choose it. Ties are
settled the same way on every device: the earlier target wins.

Legend: H heads, B images, K maps of all heads, N cells of an image in all maps, T targets, P pairs, S chosen pairs,
Q contested cells. A cell of the batch has the number image * N + cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from yolov7.assign.cells import chunks, runs
from yolov7.assign.matches import Matches, Predicted, Targets
from yolov7.device import cached_constant
from yolov7.errors import DataError

NOBODY = torch.iinfo(torch.int64).max

Chosen = tuple[Tensor, Tensor, Tensor]
"""Pairs by target (S,), cell of the batch (S,) and overlap (S,)."""


@dataclass(frozen=True)
class Pairs:
    """The final pairs (P,), ordered by map, image and cell."""

    level: Tensor
    """Map."""
    image: Tensor
    target: Tensor
    place: Tensor
    """Number of the cell inside its map."""
    cell: Tensor
    """Cell of the batch."""
    overlap: Tensor
    counts: tuple[int, ...]
    """(K,) number of them in each map."""


class Assignment(ABC):
    """One batch. Each head has its own copy of the targets: the number of a copy is head * T + target.

    A subclass chooses cells (`_chosen`), and says what overlap contested cells are settled by (`_overlap`) and what a
    pair is worth (`_scores`).
    """

    def __init__(self, predictions: Predicted, targets: Targets):
        self.predictions, self.targets = predictions, targets
        self.cells = predictions.cells
        self.boxes = predictions.boxes.flatten(0, 1)  # (B * N, 4)
        self.images = len(predictions.boxes)
        self.levels = len(self.cells.sizes) // predictions.heads

    def matches(self) -> Matches:
        """Matches in the levels of each head, one head after the other; their weights are the target scores.

        Raises :class:`DataError` for a target whose image or class does not exist.
        """
        target, cell, overlap = self._chosen()
        wanted = torch.zeros(len(self.boxes), dtype=torch.int32, device=cell.device)
        wanted.index_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        alone = (wanted[cell] == 1).nonzero()[:, 0]
        settled = self._settled((wanted > 1).nonzero()[:, 0])
        return self._graded(joined((target[alone], cell[alone], overlap[alone]), settled))

    @abstractmethod
    def _chosen(self) -> Chosen:
        """The cells that each target chooses; no cell twice for one target."""

    @abstractmethod
    def _overlap(self, target: Tensor, cell: Tensor) -> Tensor:
        """(P,) overlap of pairs, not below 0."""

    @abstractmethod
    def _scores(self, pairs: Pairs) -> Tensor:
        """(P,) target scores."""

    def _unknown(self) -> Tensor:
        """(T,) bool: the image or class does not exist."""
        last = cached_constant((self.images - 1, self.predictions.classes - 1), np.int64, self.boxes.device)
        return (torch.minimum(self.targets.index.clamp(min=0), last) != self.targets.index).any(1)

    def _complaint(self) -> DataError:
        """The error for the first unknown target."""
        for number, (image, label) in enumerate(self.targets.index.tolist()):
            if not 0 <= image < self.images:
                return DataError(f"target {number} names image {image} of a batch of {self.images}")
            if not 0 <= label < self.predictions.classes:
                break
        return DataError(f"target {number} has class {label}, the network knows 0 to {self.predictions.classes - 1}")

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

    def _copy(self, level: Tensor, target: Tensor) -> Tensor:
        """(P,) number of the copy of the targets in the heads that have these maps."""
        return torch.div(level, self.levels, rounding_mode="floor") * len(self.targets) + target

    def _graded(self, found: Chosen) -> Matches:
        """The final pairs as matches: ordered by head, level, image and cell, with their target scores."""
        target, cell, overlap = found
        image = torch.div(cell, len(self.cells), rounding_mode="floor")
        level, row, column, place = self.cells.facts[:, cell - image * len(self.cells)]
        order = (level * len(self.boxes) + cell).sort().indices
        table = torch.stack((level, image, torch.zeros_like(level), row, column, target, place, cell))[:, order]
        level, image, *_, target, place, cell = table.unbind()
        edges = torch.arange(len(self.cells.sizes) + 1, device=level.device)
        counts = tuple(after - before for before, after in pairwise(torch.searchsorted(level, edges).tolist()))
        pairs = Pairs(level, image, target, place, cell, overlap[order], counts)
        return Matches(table[:6], counts, weight=self._scores(pairs))


def joined(*parts: Chosen) -> Chosen:
    """All the pairs."""
    target, cell, overlap = (torch.cat(values) for values in zip(*parts, strict=True))
    return target, cell, overlap


def number(values: Tensor) -> Tensor:
    """Values (P,), not below 0; 0 for NaN, from maps that are not finite: it neither sorts nor equals its maximum."""
    return torch.fmax(values, cached_constant((0.0,), np.float32, values.device))
