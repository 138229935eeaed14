"""What an assigner reads and answers: the ground truth of a batch, and which predictions learn which targets.

This is the seam between assignment and loss. A new family brings its own assigner as a file beside these; it answers
the same :class:`Matches` (a head without anchors has anchor 0 everywhere), and its loss reads them.

Legend: B images, L levels, K maps (L of the lead head, then L of an auxiliary head if there is one), T targets,
P matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

SMALL, LARGE = 1e-30, 1e30


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch, in pixels of the network's input."""

    index: Tensor
    """(T, 2) int64: image in the batch, class number."""
    label: Tensor
    """(T, 1) int64: the class number alone."""
    boxes: Tensor
    """(T, 4) float32 xyxy."""
    twice_centre: Tensor
    """(2, T) float32 twice x, y."""
    size: Tensor
    """(2, T) float32 width, height; 0 where the box is turned inside out."""
    area: Tensor
    """(T,) float32."""
    unusable: Tensor
    """(T,) bool: the area is not positive and finite; such a target teaches nothing and takes no part."""

    @classmethod
    @torch.no_grad()
    def of(cls, rows: Tensor, device: torch.device) -> Targets:
        """From rows (T, 6): image index, class, x1, y1, x2, y2 in pixels."""
        rows = rows.to(device, torch.float32)
        index, boxes = rows.split((2, 4), dim=1)
        index = index.long()
        low, high = boxes.T.split(2)  # (2, T) each
        size = (high - low).clamp(min=0)
        area = size.prod(0)
        unusable = area.clamp(SMALL, LARGE) != area  # true for NaN too
        return cls(index, index[:, 1:], boxes, low + high, size, area, unusable)

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Matches:
    """Predictions and the target that each is to learn, ordered by map.

    Where several targets share a prediction each of them stands here; the last one wins wherever there can be only one
    (the objectness target).
    """

    cells: Tensor
    """(6, P) int64, rows: map, image, anchor, row, column, target."""
    counts: tuple[int, ...]
    """(K,) number of matches in each map."""

    def __len__(self) -> int:
        return self.cells.shape[1]

    @cached_property
    def lines(self) -> tuple[Tensor, ...]:
        """The rows of `cells`, (P,) each."""
        return self.cells.unbind()

    def places(self) -> list[tuple[Tensor, ...]]:
        """For each map image, anchor, row and column of its matches, (n,) each: the index of their predictions."""
        return list(zip(*(line.split(self.counts) for line in self.lines[1:5]), strict=True))

    def first(self, maps: int) -> Matches:
        """The part that lies in the first `maps` maps."""
        counts = self.counts[:maps]
        return self if counts == self.counts else Matches(self.cells[:, : sum(counts)], counts)

    def then(self, other: Matches) -> Matches:
        """These, and after them those of `other` in further maps."""
        moved = other.cells.clone()
        moved[0] += len(self.counts)
        return Matches(torch.cat((self.cells, moved), 1), self.counts + other.counts)

    def by_map(self) -> tuple[Tensor, ...]:
        """The cells (6, n) of each map."""
        return self.cells.split(list(self.counts), dim=1)


class Assigner(Protocol):
    """Decides which predictions learn which targets."""

    def __call__(self, raw: Sequence[Tensor], targets: Targets) -> Matches:
        """From maps (B, A, h, w, 5 + C) of one head to matches in its maps.

        An assigner that was made for several regions answers for as many heads, map after map.
        """
        ...
