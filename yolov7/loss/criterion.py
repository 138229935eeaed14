"""The interface between trainer and losses: :class:`Criterion` and its result.

The trainer never looks into the raw maps: the head's module makes them, and the criterion built for that head reads
them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

Totals = Callable[[Tensor], Tensor]
"""Figures (n,) of this process, as float64 -> their sums over all processes of a training, (n,) float64 on the CPU."""


@dataclass(frozen=True)
class LossResult:
    """Loss of a batch; of a process among several its share, and the shares add up to the loss of the whole batch."""

    total: Tensor
    """Scalar to back-propagate: the sum of the parts, times the batch size where it was published so (YOLOv7, v9)."""
    parts: Mapping[str, Tensor]
    """Gain times loss of each part, detached scalars by the names of `Criterion.parts`."""


@dataclass(frozen=True)
class LevelPicture:
    """Facts needed to draw the assignment of a level."""

    stride: int
    """Pixels per cell side."""
    slots: int = 1
    """Predictions of a cell, each drawn as a stripe of it."""
    caption: str = ""
    """A few words about the level, for example its anchors."""


class Criterion(Protocol):
    """Assignment and loss of one kind of head. Subclass it to inherit the defaults."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the loss parts, the same in every epoch."""
        ...

    def at(self, epoch: int, epochs: int) -> Criterion:
        """The criterion of an epoch, from 0, of a run of `epochs`. Pure: nothing has to be saved for a resume."""
        return self

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module that training calls instead, where a loss reads more than the raw maps: features, or the maps of
        a teacher. It runs in the precision of the training; its output goes to the criterion as `raw`.
        """
        return model

    def __call__(self, raw: Sequence[Tensor], targets: Tensor, images: Tensor | None = None) -> LossResult:
        """Loss of a batch.

        `raw`: the maps of the head in training. `targets` (T, 6): image index, class, x1, y1, x2, y2 in pixels of the
        batch. `images` (B, 3, H, W) in [0, 1], for losses that run a second network on them.
        """
        ...

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """The positives of the lead head, for pictures.

        For each level (6, n) int64: level, image, slot (the anchor, or 0), row, column, row of `targets`.
        """
        ...

    def misfit(self, sizes: Tensor) -> Tensor:
        """(n,) how far objects of width and height (n, 2), in pixels of a batch, are from being learned for their
        size: from 1 on nothing learns them. 0 where size does not matter.
        """
        return sizes.new_zeros(len(sizes))

    def largest_side(self) -> float:
        """Pixels: a box that is wider or higher cannot be predicted exactly at any level."""
        return math.inf

    def levels(self) -> tuple[LevelPicture, ...]:
        """The facts needed to draw each lead level."""
        ...


class TeacherCriterion(Criterion):
    """The criterion `labels` plus terms that compare the student with a teacher. Assignment and sizes are those of
    `labels`, on the student's maps.
    """

    labels: Criterion

    @abstractmethod
    def _split(self, raw: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
        """The parts of `raw`; the student's raw maps come first."""

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """See :class:`Criterion`."""
        return self.labels.assign(self._split(raw)[0], targets)

    def misfit(self, sizes: Tensor) -> Tensor:
        """See :class:`Criterion`."""
        return self.labels.misfit(sizes)

    def largest_side(self) -> float:
        """See :class:`Criterion`."""
        return self.labels.largest_side()

    def levels(self) -> tuple[LevelPicture, ...]:
        """See :class:`Criterion`."""
        return self.labels.levels()
