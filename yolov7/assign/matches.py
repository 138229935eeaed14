"""What an assigner reads and answers: the ground truth of a batch, and which predictions learn which targets.

This is the seam between assignment and loss. A new family brings its own assigner as a file beside these; it answers
the same :class:`Matches` (a head without anchors has anchor 0 everywhere), and its loss reads them.

Legend: B images, L levels, K maps (L of the lead head, then L of an auxiliary head if there is one), T targets,
P matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch, in pixels of the network's input."""

    index: Tensor
    """(T, 2) int64: image in the batch, class number."""
    boxes: Tensor
    """(T, 4) float32 xyxy."""
    centre: Tensor
    """(T, 2) float32 x, y."""
    size: Tensor
    """(T, 2) float32 width, height."""
    usable: Tensor
    """(T,) bool: the sides are finite and positive; any other target teaches nothing and takes no part."""

    @classmethod
    def of(cls, rows: Tensor, device: torch.device) -> Targets:
        """From rows (T, 6): image index, class, x1, y1, x2, y2 in pixels."""
        rows = rows.detach().to(device, torch.float32)
        index, low, high = rows.split(2, dim=1)
        size = high - low
        usable = ((size > 0) & (size < torch.inf)).all(1)
        return cls(index.long(), rows[:, 2:], (low + high) / 2, size, usable)

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
