"""Input and output of augmentation: the objects of an image, the source of images, the sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from yolov7.polygons import Polygons

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Objects:
    """The objects of one image: boxes (n, 4) float64 xyxy pixels inside it, labels (n,) int64, outlines of some."""

    boxes: Floats
    labels: NDArray[np.int64]
    polygons: Polygons | None = None

    def __len__(self) -> int:
        return len(self.boxes)


class Shown(NamedTuple):
    """Pixels of an image for a place in a sample; they may be fewer than those of the load size."""

    image: Image
    """(h, w, 3) RGB."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Its pixels per pixel of the load size along x, y. A rest of the last pixel may lie outside of the image."""


class SampleSource(Protocol):
    """Source of images for augmentation, all at load size: long side equal to the training size.

    Sizes and objects are cheap to ask for; pixels are asked for only where they will be seen.
    """

    @property
    def has_polygons(self) -> bool:
        """True if any object of any image has an outline."""

    def __len__(self) -> int:
        """Number of images."""

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image at load size."""

    def objects(self, index: int) -> Objects:
        """Its objects, in pixels of the load size."""

    def image(self, index: int) -> Image:
        """Its pixels, (height, width, 3) RGB."""

    def shown(self, index: int, scale: float) -> Shown:
        """Its pixels for a place that shows at most `scale` pixels for each of the load size."""


@dataclass
class Sample:
    """One training example. Boxes are inside the image, wider and higher than 2 pixels."""

    image: Image
    """(S, S, 3) uint8 RGB."""
    boxes: NDArray[np.float32]
    """(n, 4) float32 xyxy pixels."""
    labels: NDArray[np.int64]
    """(n,) class numbers."""
    tables: Image | None = None
    """(3, 256) of :func:`yolov7.augment.color.draw_hsv_tables`, to be applied on the device; None: they were."""
    skipped: tuple[str, ...] = ()
    """Images that should have been part of it but could not be read, each with the reason."""
    unreadable: tuple[int, ...] = ()
    """Their numbers."""
