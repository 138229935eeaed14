"""The jitter of :mod:`yolov7.augment.color` for a whole batch on the device, from the same tables.

Hue, saturation and brightness are found in OpenCV's whole-number arithmetic for 8 bits, and looked up in the tables
that the sample's own generator drew, so the result is that of the loader within one level of brightness.

Legend: B images, S side, N pixels of an image.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from yolov7.device import constant

_SHIFT = 12
"""OpenCV's quotients are multiplied by 2 to this power."""
_PIXELS = 1 << 23
"""Pixels handled at a time: bounds each temporary to 32 MiB, or 64 for the places in the tables."""
_SECTORS = (5, 3, 1)
"""Of red, green and blue: sixths of the circle of hues from where the channel is full."""


@torch.no_grad()
def jitter_batch(images: Tensor, tables: Tensor) -> Tensor:
    """Apply tables (B, 3, 256) uint8 of hue, saturation and brightness to images (B, 3, S, S) uint8 RGB.

    Returns new images of the same memory order, on the same device.
    """
    result = torch.empty_like(images)
    step = max(_PIXELS // max(images[0, 0].numel(), 1), 1) if len(images) else 1
    for start in range(0, len(images), step):
        some = slice(start, start + step)
        _jitter(images[some], tables[some], result[some])
    return result


def _jitter(images: Tensor, tables: Tensor, result: Tensor) -> None:
    hue, saturation, value = (
        table.gather(1, place.flatten(1).long()).view_as(place)
        for table, place in zip(tables.unbind(1), _to_hsv(images), strict=True)
    )
    hue = hue.float() * (6 / 180)
    brightness = value.float()
    fall = brightness * (saturation.float() / 255)
    for channel, first in enumerate(_SECTORS):
        place = (hue + first) % 6
        share = torch.minimum(place, 4 - place).clamp_(0, 1)
        result[:, channel] = (brightness - fall * share).to(torch.uint8)


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue (0 to 179), saturation and brightness (B, S, S) int32 of images (B, 3, S, S)."""
    red, green, blue = images.int().unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    by_saturation, by_hue = _quotients(images.device)
    half = 1 << (_SHIFT - 1)
    saturation = (spread * by_saturation[value] + half) >> _SHIFT
    turned = torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = (torch.where(value == red, green - blue, turned) * by_hue[spread] + half) >> _SHIFT
    return torch.where(hue < 0, hue + 180, hue), saturation, value


@lru_cache(maxsize=8)
def _quotients(device: torch.device) -> tuple[Tensor, Tensor]:
    """(256,) int32 each: 255 and 30 over every number, times 2^12, rounded to even; 0 over 0."""
    numbers = np.arange(1, 256)
    tables = [np.rint(np.r_[0, (top << _SHIFT) / numbers]) for top in (255, 30)]
    with torch.inference_mode(False):
        saturation, hue = (constant(table, np.int32, device) for table in tables)
    return saturation, hue
