"""Fitting an image into a rectangle with a grey border, and the way back for boxes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

FILL = 114
"""Grey level of every pixel that no image covers, in training and evaluation (training sheet, section 4)."""


def letterbox(
    image: NDArray[np.uint8], height: int, width: int, fill: int = FILL, enlarge: bool = True
) -> tuple[NDArray[np.uint8], float, tuple[int, int]]:
    """Scale `image` (h, w, C) to fit into `height` x `width`, keeping its ratio, and centre it on a border of `fill`.

    Returns the new image, the scale (new pixels per old pixel) and the (x, y) of the image's top-left corner in it.
    `enlarge=False` never scales up. Shrinking averages areas, enlarging is bilinear. An odd rest of the border goes to
    the right and the bottom (training sheet, section 9: round(d - 0.1) before, round(d + 0.1) behind).
    """
    old_height, old_width = image.shape[:2]
    scale = min(height / old_height, width / old_width)
    if not enlarge:
        scale = min(scale, 1.0)
    new_height = min(max(round(old_height * scale), 1), height)
    new_width = min(max(round(old_width * scale), 1), width)
    if (new_height, new_width) != (old_height, old_width):
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (new_width, new_height), interpolation=interpolation)
    padded, pad = pad_to(image, height, width, fill)
    return padded, scale, pad


def pad_to(
    image: NDArray[np.uint8], height: int, width: int, fill: int = FILL
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Centre `image` (h, w, C), which must not be larger, on `height` x `width`; returns it and its corner (x, y)."""
    top, left = centre_pad(height - image.shape[0]), centre_pad(width - image.shape[1])
    padded = np.full((height, width, *image.shape[2:]), fill, np.uint8)
    padded[top : top + image.shape[0], left : left + image.shape[1]] = image
    return padded, (left, top)


def centre_pad(rest: int) -> int:
    """Border before the image when `rest` pixels are left over on an axis: the smaller half."""
    return round(rest / 2 - 0.1)


def unletterbox(
    boxes: NDArray[np.floating],
    scale: float | tuple[float, float],
    pad: tuple[float, float],
    height: int,
    width: int,
) -> NDArray[np.float32]:
    """Boxes (n, 4) xyxy in letterboxed pixels back to pixels of the original `height` x `width`, clipped to it.

    `scale` is one number, or (x, y) where the axes were rounded apart; `pad` is the image's corner (x, y).
    """
    scales = np.broadcast_to(np.asarray(scale, np.float64), (2,))
    back = (np.asarray(boxes, np.float64).reshape(-1, 4) - np.tile(pad, 2)) / np.tile(scales, 2)
    return np.clip(back, 0, [width, height, width, height]).astype(np.float32)
