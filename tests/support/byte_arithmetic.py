"""The arithmetic of the int8 files, written down for tests."""

from __future__ import annotations

import numpy as np

from yolov7.ranges import steps


def rounded(values, low, high):
    """`values` (float32) as the files give them back from eight bits."""
    scale, zero = steps(low, high)
    q = np.clip(np.round(values.astype(np.float32) / scale) + np.float32(zero), 0, 255)
    return ((q - np.float32(zero)) * scale).astype(np.float32)


def symmetric_scale(low, high):
    """Scale of a value with this range as int8, -127 to 127 with the zero point 0 (TensorRT)."""
    largest = np.abs(np.float32([low, high])).max()
    return np.float32(2 * np.float64(largest) / 254)
