"""Where the predictions of a head lie: anchors, strides and the sizes of its maps, as tensors on the device.

Legend: B images, L levels, A anchors per level, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


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
    limits: Tensor
    """(2,) int64: B, C."""
    strides: Tensor
    """(L, 1, 1) float32."""
    sizes: Tensor
    """(L, 1, 2) float32 columns, rows."""
    last: Tensor
    """(L, 2) int64 last column, last row."""


# The same few sizes come in every step: building these anew would cost a copy to the device for each.
@lru_cache(maxsize=64)
def _grid(
    device: torch.device, images: int, classes: int, sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...]
) -> Grid:
    with torch.inference_mode(False):  # so that training may use what validation built
        table = torch.tensor(sizes, device=device)
        return Grid(
            images=images,
            limits=torch.tensor((images, classes), device=device),
            strides=torch.tensor(strides, dtype=torch.float32, device=device)[:, None, None],
            sizes=table[:, None].float(),
            last=table - 1,
        )
