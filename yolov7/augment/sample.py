"""What augmentation works on: the objects of an image, where images come from, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Polygons:
    """Outlines of some objects as flat arrays, so that all points are handled at once.

    `points` (P, 2) xy; `counts` (Q,) points of each polygon; `owners` (Q,) number of its object, never falling.
    """

    points: NDArray[np.floating]
    counts: NDArray[np.int64]
    owners: NDArray[np.int64]

    def take(self, chosen: NDArray[np.bool_]) -> Polygons:
        """The outlines of the objects marked in `chosen` (n,), which are numbered anew from 0."""
        kept = chosen[self.owners]
        numbers = np.cumsum(chosen) - 1
        return Polygons(
            self.points[np.repeat(kept, self.counts)], self.counts[kept], numbers[self.owners[kept]].astype(np.int64)
        )

    def of(self, number: int) -> list[Floats]:
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


@dataclass(frozen=True)
class Objects:
    """The objects of one image: boxes (n, 4) float64 xyxy pixels inside it, labels (n,) int64, outlines of some."""

    boxes: Floats
    labels: NDArray[np.int64]
    polygons: Polygons | None = None

    def __len__(self) -> int:
        return len(self.boxes)


class Source(Protocol):
    """Where augmentation takes images from, all at load size: long side equal to the training size.

    Sizes and objects are cheap to ask for; pixels are asked for only where they will be seen.
    """

    @property
    def has_polygons(self) -> bool:
        """Whether any object of any image has an outline."""

    def __len__(self) -> int:
        """Number of images."""

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image at load size."""

    def objects(self, index: int) -> Objects:
        """Its objects, in pixels of the load size."""

    def image(self, index: int) -> Image:
        """Its pixels, (height, width, 3) RGB."""


@dataclass
class Sample:
    """One training example. Boxes are inside the image, wider and higher than 2 pixels."""

    image: Image
    """(S, S, 3) uint8 RGB."""
    boxes: NDArray[np.float32]
    """(n, 4) float32 xyxy pixels."""
    labels: NDArray[np.int64]
    """(n,) class numbers."""
    skipped: tuple[str, ...] = ()
    """Images that should have been part of it but could not be read, each with the reason."""
