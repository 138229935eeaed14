"""The interface between assignment and loss: the ground truth of a batch, and the matches of predictions to targets.

An :class:`Assigner` of an anchor head reads raw maps; one that compares decoded boxes and scores with the targets
reads a :class:`Predicted`. Both answer :class:`Matches` (a head without anchors has anchor 0 everywhere), which the
losses read.

Legend: B images, L levels, K maps (L of the lead head, then L of an auxiliary head if there is one), T targets,
P matches or pairs, N predictions of an image, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from yolov7.assign.cells import Cells

SMALL, LARGE = 1e-30, 1e30
Input = TypeVar("Input", contravariant=True)


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
    """(T,) bool: the area is not positive and finite; such a target is ignored."""

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
class Predicted:
    """Decoded predictions of a head without anchors, and of an auxiliary head if there is one: its maps follow."""

    boxes: Tensor
    """(B, N, 4) float32 xyxy in pixels of the network's input; order map, row, column."""
    logits: Sequence[Tensor]
    """(B, C, rows * columns) of the classes, for each map."""
    cells: Cells
    """The N cells of an image in all maps."""
    heads: int = 1
    """Heads that the maps belong to, as many to each."""
    objects: Sequence[Tensor] = ()
    """(B, 1, rows * columns) object logits for each map, where the score is objectness x class probability."""

    @property
    def classes(self) -> int:
        """C."""
        return self.logits[0].shape[1]

    def logits_at(self, image: Tensor, label: Tensor, place: Tensor, counts: Sequence[int]) -> Tensor:
        """(P,) float32 logits of the score by image, class and number of the cell inside its map, (P,) each.

        They are ordered by map, `counts` (K,) in each: the maps are read where they are.
        """
        at = list(zip(*(part.split(list(counts)) for part in (image, label, place)), strict=True))
        logits = torch.cat([maps[index] for maps, index in zip(self.logits, at, strict=True)]).float()
        if not self.objects:
            return logits
        found = [maps[image, 0, place] for maps, (image, _, place) in zip(self.objects, at, strict=True)]
        return product_logit(torch.cat(found).float(), logits)


def product_logit(first: Tensor, second: Tensor) -> Tensor:
    """Logit of the product of two probabilities, from their logits."""
    # 1 / (p q) - 1 = e^-a + e^-b + e^-(a + b).
    return -torch.logaddexp(torch.logaddexp(-first, -second), -first - second)


@dataclass(frozen=True)
class Matches:
    """Predictions and the target that each is to learn, ordered by map.

    A prediction shared by several targets is listed once for each; the last one wins wherever there can be only one
    (the objectness target).
    """

    cells: Tensor
    """(6, P) int64, rows: map, image, anchor, row, column, target."""
    counts: tuple[int, ...]
    """(K,) number of matches in each map."""
    weight: Tensor | None = field(default=None, kw_only=True)
    """(P,) target score of each match, from assigners that grade their matches; None: all count alike."""

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
        """The matches in the first `maps` maps."""
        counts = self.counts[:maps]
        if counts == self.counts:
            return self
        weight = None if self.weight is None else self.weight[: sum(counts)]
        return Matches(self.cells[:, : sum(counts)], counts, weight=weight)

    def then(self, other: Matches) -> Matches:
        """These, followed by those of `other` in further maps. Matches without a weight weigh 1 beside others."""
        moved = other.cells.clone()
        moved[0] += len(self.counts)
        weight = None
        if self.weight is not None or other.weight is not None:
            weight = torch.cat([part._weight_or_ones() for part in (self, other)])
        return Matches(torch.cat((self.cells, moved), 1), self.counts + other.counts, weight=weight)

    def _weight_or_ones(self) -> Tensor:
        return self.cells.new_ones(len(self), dtype=torch.float32) if self.weight is None else self.weight

    def by_map(self) -> tuple[Tensor, ...]:
        """The cells (6, n) of each map."""
        return self.cells.split(list(self.counts), dim=1)


class Assigner(Protocol[Input]):
    """Decides which predictions learn which targets.

    `Input` is `Sequence[Tensor]`, the raw maps (B, A, h, w, 5 + C) of one anchor head, or :class:`Predicted`.
    """

    def __call__(self, predictions: Input, targets: Targets, /) -> Matches:
        """Matches in the maps of the head. One made for several regions answers for as many heads, map after map."""
        ...


MapAssigner = Assigner[Sequence[Tensor]]
"""An assigner of an anchor head."""
