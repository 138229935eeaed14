"""Places of an anchor head's predictions: anchors, strides and sizes of its maps, as tensors on the device.

Legend: B images, L levels, A anchors per level, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from yolov7.device import constant


@dataclass(frozen=True)
class Geometry:
    """Anchors and strides of a head."""

    anchors: Tensor
    """(L, A, 2) width and height in pixels of the network's input."""
    strides: tuple[int, ...]
    """Pixels per cell side of each level, small to large."""

    def grid(self, raw: Sequence[Tensor]) -> Grid:
        """The constants for maps `raw` (B, A, h, w, 5 + C)."""
        first = raw[0]
        sizes = tuple((maps.shape[3], maps.shape[2]) for maps in raw)
        return _grid(first.device, first.shape[0], first.shape[4] - 5, sizes, self.strides)


@dataclass(frozen=True)
class Grid:
    """Constants of a head's maps."""

    images: int
    """B."""
    classes: int
    """C."""
    limits: Tensor
    """(2,) int64 last image, last class."""
    strides: Tensor
    """(L, 1) float32."""
    twice_strides: Tensor
    """(L, 1, 1) float32."""
    sizes: Tensor
    """(L, 2, 1) float32 columns, rows."""
    zero: Tensor
    """int64 0."""
    one: Tensor
    """float32 1."""
    last: Tensor
    """(L, 2) int64 last column, last row."""


# The same few sizes come in every step: rebuilding these would cost copies to the device.
@lru_cache(maxsize=64)
def _grid(
    device: torch.device, images: int, classes: int, sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...]
) -> Grid:
    with torch.inference_mode(False):  # training may use tensors that validation built
        return Grid(
            images=images,
            classes=classes,
            limits=constant((images - 1, classes - 1), np.int64, device),
            strides=constant([[stride] for stride in strides], np.float32, device),
            twice_strides=constant([[[2 * stride]] for stride in strides], np.float32, device),
            sizes=constant([[[width], [height]] for width, height in sizes], np.float32, device),
            zero=constant(0, np.int64, device),
            one=constant(1, np.float32, device),
            last=constant([(width - 1, height - 1) for width, height in sizes], np.int64, device),
        )
