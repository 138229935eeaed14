"""Fitting images to the network's input, for prediction, evaluation and serving alike, and boxes back to the original.

An image keeps its ratio, shrinks by area averages or grows bilinearly, and is centred on grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

FILL = 114
"""Grey level of every pixel that no image covers, in training and evaluation (training sheet, section 4)."""


@dataclass(frozen=True)
class Fitted:
    """An image fitted to the network's input, and the way back."""

    image: Image
    """uint8 (H, W, C)."""
    scale: tuple[float, float]
    """Input pixels per original pixel along x, y; they differ by the rounding of the sides."""
    pad: tuple[int, int]
    """x, y of the original's top-left corner in the input."""
    size: tuple[int, int]
    """Height, width of the original in pixels."""

    def to_original(self, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes (n, 4) xyxy in input pixels, in pixels of the original, clipped to it."""
        return to_original(boxes, scale=self.scale, pad=self.pad, size=self.size)


def fit(image: Image, height: int, width: int, *, long_side: int | None = None, border: int = 0) -> Fitted:
    """Fit `image` (h, w, C) to an input of `height` x `width` (training sheet, section 9).

    `long_side` is the long side of the resized image in pixels; default: as long as fits. By default the image leaves
    at least `border` pixels of each axis grey.
    """
    old_height, old_width = image.shape[:2]
    if long_side is None:
        # The longer side decides, unless the input is flatter than the image.
        ratio = min((height - border) / old_height, (width - border) / old_width)
        long_side = round(max(old_height, old_width) * ratio)
    resized = resize_to_long_side(image, long_side, area=True)
    scale = (resized.shape[1] / old_width, resized.shape[0] / old_height)
    padded, pad = pad_to(resized, height, width)
    return Fitted(padded, scale, pad, (old_height, old_width))


def to_original(
    boxes: NDArray[np.floating], *, scale: tuple[float, float], pad: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Boxes (n, 4) xyxy in input pixels, in pixels of the original, clipped to it. Parameters: see :class:`Fitted`."""
    height, width = size
    back = (np.asarray(boxes, np.float64).reshape(-1, 4) - np.tile(pad, 2)) / np.tile(scale, 2)
    return np.clip(back, 0, [width, height, width, height]).astype(np.float32)


def load_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Size (height, width) of an image resized so that its long side is `long_side`, sides truncated to whole pixels.

    Reference: training sheet, section 4 (loading). Integer arithmetic: 500 * (640 / 500) in floating point may land
    just below 640.
    """
    longest = max(height, width)
    return max(height * long_side // longest, 1), max(width * long_side // longest, 1)


def resize_to_long_side(image: Image, long_side: int, *, area: bool = False) -> Image:
    """Resize (height, width, C) to :func:`load_size`; bilinear, or with `area` by area averages where it shrinks.

    Training uses bilinear, evaluation area (training sheet, section 4). Returns `image` itself if the size fits.
    """
    height, width = load_size(image.shape[0], image.shape[1], long_side)
    if (height, width) == image.shape[:2]:
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if area and shrinks else cv2.INTER_LINEAR)


def pad_to(image: Image, height: int, width: int, fill: int = FILL) -> tuple[Image, tuple[int, int]]:
    """Centre `image` (h, w, C), which must not be larger, on `height` x `width`; returns it and its corner (x, y).

    An odd remainder goes to the right and the bottom (training sheet, section 9: round(d - 0.1) before the image,
    round(d + 0.1) after it).
    """
    top, left = centre_pad(height - image.shape[0]), centre_pad(width - image.shape[1])
    padded = np.full((height, width, *image.shape[2:]), fill, np.uint8)
    padded[top : top + image.shape[0], left : left + image.shape[1]] = image
    return padded, (left, top)


def centre_pad(rest: int) -> int:
    """Border before the image if `rest` pixels of an axis are left over: the smaller half."""
    return round(rest / 2 - 0.1)
