"""Outlines of objects, as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Polygons:
    """Outlines of some objects as flat arrays, so that all points are handled at once.

    `points` (P, 2) xy; `counts` (Q,) points of each polygon; `owners` (Q,) number of its object, never falling.
    """

    points: NDArray[np.floating]
    counts: NDArray[np.int64]
    owners: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> Polygons:
        """The outlines of the objects marked in `chosen` (n,), renumbered from 0."""
        kept = chosen[self.owners]
        numbers = np.cumsum(chosen) - 1
        return Polygons(
            self.points[np.repeat(kept, self.counts)], self.counts[kept], numbers[self.owners[kept]].astype(np.int64)
        )

    def of(self, number: int) -> list[NDArray[np.float64]]:
        """The outlines of one object: a list of (k, 2) arrays."""
        ends = np.cumsum(self.counts)
        which = np.flatnonzero(self.owners == number)
        return [self.points[ends[q] - self.counts[q] : ends[q]].astype(np.float64) for q in which]

    def mapped(self, scale: tuple[float, float], shift: tuple[float, float]) -> Polygons:
        """The same outlines with every point (x, y) scaled, then shifted."""
        return Polygons(self.points * np.asarray(scale) + np.asarray(shift), self.counts, self.owners)


def join_polygons(parts: Sequence[tuple[Polygons | None, int]]) -> Polygons | None:
    """The outlines of several groups of objects, given with their numbers of objects, as those of one group."""
    points, counts, owners, offset = [], [], [], 0
    for polygons, objects in parts:
        if polygons is not None and len(polygons.counts):
            points.append(polygons.points)
            counts.append(polygons.counts)
            owners.append(polygons.owners + offset)
        offset += objects
    if not points:
        return None
    return Polygons(np.concatenate(points), np.concatenate(counts), np.concatenate(owners))
