"""Cells of an anchor-free head: their centres, and those whose centres lie inside a target.

Legend: B images, L levels, N cells of an image (levels one after the other, row by row), T targets, P pairs of a target
and a cell inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from yolov7.device import constant

INSIDE = 1e-9  # pixels that a centre is at least away from every side of its target
PAIRS = 1 << 22  # pairs in memory at once: 16 MiB for each float32 value of theirs


@dataclass(frozen=True)
class Cells:
    """The cells of a head's levels."""

    sizes: tuple[tuple[int, int], ...]
    """(rows, columns) of each level."""
    strides: Tensor
    """(L, 1) float32 pixels per cell side."""
    shape: Tensor
    """(L, 2) int64 columns, rows."""
    first: Tensor
    """(L,) int64 number of each level's first cell."""
    centres: Tensor
    """(N, 2) float32 x, y in pixels."""
    stride: Tensor
    """(N, 1) float32 pixels per cell side."""
    level: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.level)

    def rows_and_columns(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Level, row and column of these cells (n,) -> three (n,)."""
        level = self.level[cells]
        place = cells - self.first[level]
        columns = self.shape[level, 0]
        return level, torch.div(place, columns, rounding_mode="floor"), place % columns


# The same few sizes come in every step.
@lru_cache(maxsize=64)
def cells_of(sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device) -> Cells:
    """The cells of levels with these (rows, columns)."""
    counts = [rows * columns for rows, columns in sizes]
    centres = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        y, x = np.divmod(np.arange(rows * columns), columns)
        centres.append((np.stack((x, y), 1) + 0.5) * stride)
    with torch.inference_mode(False):  # training may use tensors that validation built
        return Cells(
            sizes=sizes,
            strides=constant([[stride] for stride in strides], np.float32, device),
            shape=constant([(columns, rows) for rows, columns in sizes], np.int64, device),
            first=constant(np.cumsum([0, *counts])[:-1], np.int64, device),
            centres=constant(np.concatenate(centres), np.float32, device),
            stride=constant(np.repeat(np.asarray(strides), counts)[:, None], np.float32, device),
            level=constant(np.repeat(np.arange(len(sizes)), counts), np.int64, device),
        )


@dataclass(frozen=True)
class Inside:
    """For every target and level the rectangle of cells whose centres are inside the target."""

    low: Tensor
    """(T, L, 2) int64 first column, first row."""
    size: Tensor
    """(T, L, 2) int64 columns, rows; 0 where there are none."""
    counts: Tensor
    """(T,) int64 number of cells."""

    @classmethod
    def of(cls, boxes: Tensor, usable: Tensor, cells: Cells) -> Inside:
        """For boxes (T, 4) xyxy in pixels; a target that is not `usable` (T,) has none."""
        sides = torch.where(usable[:, None], boxes, 0.0)[:, None]  # (T, 1, 4)
        limit, stride = cells.shape, cells.strides
        low, high = sides.split(2, 2)  # (T, 1, 2)
        first = (low / stride + 0.5).floor()  # (T, L, 2): the first centre beyond the side, up to rounding
        first = first - ((first - 0.5) * stride - low > INSIDE).to(first)
        first = first + ((first + 0.5) * stride - low <= INSIDE).to(first)
        last = (high / stride - 0.5).ceil() - 1
        last = last + (high - (last + 1.5) * stride > INSIDE).to(last)
        last = last - (high - (last + 0.5) * stride <= INSIDE).to(last)
        first, last = first.clamp(min=0), torch.minimum(last, limit.to(last) - 1)
        size = (last - first + 1).clamp(min=0).long() * usable[:, None, None]
        return cls(first.long(), size, size.prod(2).sum(1))

    def pairs(self, targets: slice, total: int, cells: Cells) -> tuple[Tensor, Tensor]:
        """Target and cell of every pair of these targets, (P,) each, ordered by target, then by cell."""
        low, size = self.low[targets].flatten(0, 1), self.size[targets].flatten(0, 1)  # (t*L, 2)
        count = size.prod(1)
        run, place = runs(count, total)
        columns = size[:, 0][run]
        levels = len(cells.sizes)
        level = run % levels
        column = low[:, 0][run] + place % columns
        row = low[:, 1][run] + torch.div(place, columns, rounding_mode="floor")
        cell = cells.first[level] + row * cells.shape[level, 0] + column
        return torch.div(run, levels, rounding_mode="floor") + (targets.start or 0), cell


def runs(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Runs of these lengths (R,), `total` together: run and place in it of every member, (total,) each."""
    number = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=total)
    start = counts.cumsum(0) - counts
    return number, torch.arange(total, device=counts.device) - start[number]


def chunks(counts: Tensor, total: int) -> Iterator[tuple[slice, int]]:
    """Consecutive runs of lengths `counts` (R,) in groups of about `PAIRS` members, and the members of each group.

    A batch that fits is one group. More cost one synchronisation.
    """
    if total <= PAIRS:
        yield slice(0, len(counts)), total
        return
    begin, members = 0, 0
    lengths: Sequence[int] = counts.tolist()
    for number, length in enumerate(lengths):
        if members and members + length > PAIRS:
            yield slice(begin, number), members
            begin, members = number, 0
        members += length
    yield slice(begin, len(lengths)), members
