"""Width of the grey border that the published figures of a network were measured with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

BORDERS: Mapping[str, int] = MappingProxyType(
    {
        "yolov6-n": 2,
        "yolov6-t": 6,
        "yolov6-s": 2,
        "yolov6-m": 12,
        "yolov6-l": 8,
        "yolov6-l-relu": 2,
        "yolov6v3-n": 4,
        "yolov6v3-s": 6,
        "yolov6v3-m": 4,
        "yolov6v3-l": 4,
        "yolov6v3-n6": 17,
        "yolov6v3-s6": 8,
        "yolov6v3-m6": 64,
        "yolov6v3-l6": 41,
    }
)
"""Pixels by variant, of an input of 640 (`-n6` to `-l6`: 1280), half of them on each end of the image's long side
(reference sheet: yolov6-training, section 8)."""


def published_border(variant: str) -> int:
    """Pixels; 0 for networks that were published without a border, and for the user's own."""
    return BORDERS.get(variant, 0)
