"""Cells of an anchor-free head: their centres, and those whose centres lie inside a target.

Legend: B images, K maps (the levels of one head after the other), N cells of an image (maps one after the other, row by
row), T targets, P pairs of a target and a cell inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7.device import cached_constant, constant

HALVES = (BELOW_HALF := 0.5 - 2**-25, BELOW_HALF, 0.5, 0.5)  # float32 just below one half, one half
PAIRS = 1 << 21  # pairs in memory at once: 16 MiB for each int64 value of theirs


@dataclass(frozen=True)
class Cells:
    """The cells of some maps."""

    sizes: tuple[tuple[int, int], ...]
    """(rows, columns) of each map."""
    strides: Tensor
    """(K, 1, 1) float32 pixels per cell side."""
    limits: Tensor
    """(K, 1, 2) float32 columns, rows."""
    first: Tensor
    """(K,) int64 number of each map's first cell."""
    columns: Tensor
    """(K,) int64."""
    facts: Tensor
    """(4, N) int64 map, row, column, number inside the map."""
    corners: Tensor
    """(N, 4) float32 x, y, x, y of the centre in pixels: the corners of a box without size."""
    reach: Tensor
    """(N, 4) float32 pixels that a corner moves for each stride of distance: minus and plus the stride."""

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def centres(self) -> Tensor:
        """(N, 2) x, y in pixels."""
        return self.corners[:, :2]

    @property
    def stride(self) -> Tensor:
        """(N, 1) float32 pixels per cell side."""
        return self.reach[:, 2:3]

    def numbers(self, maps: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The numbers (n,) of cells by map, row and column, (n,) each."""
        return self.first[maps] + row * self.columns[maps] + column


# The same few sizes come in every step.
@lru_cache(maxsize=64)
def cells_of(sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device) -> Cells:
    """The cells of maps with these (rows, columns)."""
    facts, corners, reach = [], [], []
    for number, ((rows, columns), stride) in enumerate(zip(sizes, strides, strict=True)):
        inside = np.arange(rows * columns)
        y, x = np.divmod(inside, columns)
        facts.append((np.full_like(inside, number), y, x, inside))
        corners.append((np.stack((x, y, x, y), 1) + 0.5) * stride)
        reach.append(np.tile((-stride, -stride, stride, stride), (rows * columns, 1)))
    first = np.cumsum([0] + [rows * columns for rows, columns in sizes])[:-1]
    with torch.inference_mode(False):  # training may use tensors that validation built
        return Cells(
            sizes=sizes,
            strides=constant(strides, np.float32, device).reshape(-1, 1, 1),
            limits=constant([[(columns, rows)] for rows, columns in sizes], np.float32, device),
            first=constant(first, np.int64, device),
            columns=constant([columns for _, columns in sizes], np.int64, device),
            facts=constant(np.concatenate(facts, 1), np.int64, device),
            corners=constant(np.concatenate(corners), np.float32, device),
            reach=constant(np.concatenate(reach), np.float32, device),
        )


@dataclass(frozen=True)
class Inside:
    """For every map and target the rectangle of cells whose centres are inside the target."""

    rectangles: Tensor
    """(4, K, T) int64: its first cell's number inside the map, its columns, the cells from the end of one row to the
    start of the next, its cells."""

    @classmethod
    def of(cls, boxes: Tensor, ignored: Tensor, cells: Cells) -> Inside:
        """For boxes (T, 4) xyxy in pixels; a target that is `ignored` (T,) has no cell.

        A centre is inside if it is more than 1e-9 pixels from every side (reference sheet: yolov9-training, section 5).
        Two different float32 numbers of half a pixel or more differ by more, so it has to be inside strictly. Nothing
        is rounded where strides are powers of two, and the fraction of a float32 is a float32.
        """
        sides = boxes / cells.strides  # (K, T, 4)
        whole = sides.floor()
        # A centre on a side is outside: before the first one inside a low side, behind the last one inside a high side.
        passed = (sides - whole) > cached_constant(HALVES, np.float32, boxes.device)
        low, high = (whole + passed).split(2, 2)  # (K, T, 2)
        first = low.clamp(min=0)
        size = (torch.minimum(high, cells.limits) - first).clamp(min=0)
        (column, row), (width, height) = first.long().unbind(2), size.long().unbind(2)
        columns = cells.columns[:, None]
        count = (width * height).masked_fill(ignored, 0)
        return cls(torch.stack((row * columns + column, width, columns - width, count)))

    def pairs(self, targets: slice, total: int) -> tuple[Tensor, Tensor]:
        """Rectangle and cell, numbered inside its map, of all `total` pairs of these t targets, (P,) each.

        The rectangles are numbered as in (K, t); the pairs are ordered by them, then by cell.
        """
        rectangles = self.rectangles[:, :, targets].flatten(1)
        rectangle, place = runs(rectangles[3], total)
        first, width, gap, _ = rectangles[:, rectangle].unbind()
        return rectangle, first + place + torch.div(place, width, rounding_mode="floor") * gap


def runs(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Runs of these lengths (R,), `total` together: run and place in it of every member, (total,) each."""
    number = torch.repeat_interleave(counts, output_size=total)
    start = counts.cumsum(0) - counts
    return number, torch.arange(total, device=counts.device) - start[number]


def chunks(counts: NDArray[np.int64]) -> Iterator[slice]:
    """Consecutive runs of lengths `counts` (R,) in groups of about `PAIRS` members; at least one group."""
    groups = np.cumsum(counts) // PAIRS
    edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(counts)]
    for begin, end in pairwise(edges):
        yield slice(begin, end)
