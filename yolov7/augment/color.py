"""Jitter of hue, saturation and brightness through lookup tables (training sheet, section 4.4)."""

from __future__ import annotations

import cv2
import numpy as np

from yolov7.augment.sample import Image
from yolov7.config import Augment
from yolov7.letterbox import FILL

_HUES = 180
"""OpenCV's 8-bit hue counts half degrees."""
_STRIP = 128
"""Rows handled at a time."""


def draw_hsv_tables(rng: np.random.Generator, augment: Augment) -> Image:
    """Three tables (3, 256) uint8 for hue, saturation and brightness, from one random gain each.

    Hues wrap around at 180, the others are clipped at 255.
    """
    gains = 1 + rng.uniform(-1, 1, 3) * [augment.hsv_h, augment.hsv_s, augment.hsv_v]
    return hsv_tables(*gains.tolist())


def hsv_tables(hue: float, saturation: float, brightness: float) -> Image:
    """The tables (3, 256) uint8 of the given gains."""
    values = np.arange(256)
    tables = [(values * hue) % _HUES, np.clip(values * saturation, 0, 255), np.clip(values * brightness, 0, 255)]
    return np.stack(tables).astype(np.uint8)


def jitter(image: Image, tables: Image, content: tuple[int, int, int, int]) -> Image:
    """Apply the tables to an image (S, S, 3 or 4) that is plain grey 114 outside `content`: (S, S, 3) RGB.

    Grey has no hue and no saturation, so outside of `content` its new value is a single number.
    """
    x1, y1, x2, y2 = content
    result = np.empty((*image.shape[:2], 3), np.uint8)
    if (x1, y1, x2, y2) != (0, 0, image.shape[1], image.shape[0]):
        result[:] = tables[2, FILL]
    if x1 >= x2 or y1 >= y2:
        return result
    # Strip by strip: a strip stays in the processor's cache through all five steps, which halves the time.
    hsv = np.empty((_STRIP, x2 - x1, 3), np.uint8)
    planes = np.empty((3, _STRIP, x2 - x1), np.uint8)
    for top in range(y1, y2, _STRIP):
        rows = min(_STRIP, y2 - top)
        part, channels = hsv[:rows], list(planes[:, :rows])
        cv2.cvtColor(image[top : top + rows, x1:x2], cv2.COLOR_RGB2HSV, dst=part)
        cv2.split(part, channels)
        for plane, table in zip(channels, tables, strict=True):
            cv2.LUT(plane, table, plane)
        cv2.merge(channels, part)
        cv2.cvtColor(part, cv2.COLOR_HSV2RGB, dst=result[top : top + rows, x1:x2])
    return result
