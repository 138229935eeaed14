"""Fitting images to the network's input, for prediction, evaluation and serving alike, and boxes back to the original.

An image keeps its ratio, shrinks by area averages or grows bilinearly, and is centred on grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.errors import ConfigError

Image = NDArray[np.uint8]

FILL = 114
"""Grey level of every pixel that no image covers, in training and evaluation (training sheet, section 4)."""


@dataclass(frozen=True)
class Border:
    """Grey around the images of an evaluation, and the way back (reference sheet: yolov6-training, section 8).

    The defaults are how this project evaluates, predicts and serves: no grey but what the image's ratio leaves, and an
    exact way back.
    """

    pixels: int = 0
    """Grey along the image's long side, half of it on each end: that side is the input's minus this."""
    integer_offset: bool = True
    """Subtract the corner that the image was placed at. False: half of the grey, which is half a pixel off where the
    grey is odd."""
    exact_scale: bool = True
    """Divide x and y by their own scales, which differ by the truncation of the sides. False: both by the height's."""
    spare: float = 0.5
    """Strides added to each side of a rectangular batch before it is rounded up to whole ones: 0.5, or 0 for the least
    grey."""

    def way_back(self, fitted: Fitted) -> tuple[tuple[float, float], tuple[float, float]]:
        """`scale` and `pad` of :func:`to_original`, each as x, y."""
        (across, down), (height, width) = fitted.scale, fitted.image.shape[:2]
        old_height, old_width = fitted.size
        half = (width - round(old_width * across)) / 2, (height - round(old_height * down)) / 2
        return (across if self.exact_scale else down, down), fitted.pad if self.integer_offset else half


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

    `long_side` is the long side of the resized image in pixels; default: as long as fits, with at least `border`
    pixels of each axis grey. With a border the sides are truncated as published, see :func:`released_load_size`. An
    image that is larger than the input after that is shrunk once more, bilinearly.
    """
    old_height, old_width = image.shape[:2]
    if long_side is None:
        # The longer side decides, unless the input is flatter than the image.
        ratio = min((height - border) / old_height, (width - border) / old_width)
        long_side = round(max(old_height, old_width) * ratio)
    size = (released_load_size if border else load_size)(old_height, old_width, long_side)
    resized = _shrunk_into(_resized(image, size, area=True), height, width)
    scale = (resized.shape[1] / old_width, resized.shape[0] / old_height)
    padded, pad = pad_to(resized, height, width)
    return Fitted(padded, scale, pad, (old_height, old_width))


def check_border(pixels: int, sides: tuple[int, int]) -> int:
    """`pixels`; :class:`ConfigError` for a border that leaves no room for an image in an input of these sides."""
    if not 0 <= pixels < min(sides):
        raise ConfigError(f"a border of 0 to {min(sides) - 1} pixels is expected for this input, got {pixels}")
    return pixels


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


def released_load_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """As :func:`load_size`, in the floating-point arithmetic of YOLOv6's release.

    Some sides come out a pixel short, 301 x (634 / 301) as 633 (reference sheet: yolov6-training, section 8).
    """
    ratio = long_side / max(height, width)
    return max(int(height * ratio), 1), max(int(width * ratio), 1)


def resize_to_long_side(image: Image, long_side: int, *, area: bool = False) -> Image:
    """Resize (height, width, C) to :func:`load_size`; bilinear, or with `area` by area averages where it shrinks.

    Training uses bilinear, evaluation area (training sheet, section 4). Returns `image` itself if the size fits.
    """
    return _resized(image, load_size(image.shape[0], image.shape[1], long_side), area=area)


def _resized(image: Image, size: tuple[int, int], *, area: bool) -> Image:
    height, width = size
    if (height, width) == image.shape[:2]:
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if area and shrinks else cv2.INTER_LINEAR)


def _shrunk_into(image: Image, height: int, width: int) -> Image:
    """`image` (h, w, C) no larger than `height` x `width`, sides rounded; an image that fits is returned itself."""
    scale = min(height / image.shape[0], width / image.shape[1])
    if scale >= 1:
        return image
    new_height, new_width = (max(round(side * scale), 1) for side in image.shape[:2])
    return cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)


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
