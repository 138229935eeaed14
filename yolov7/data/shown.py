"""Images read no larger than a sample shows them (`augment.reduced_decode`), and at load size otherwise.

A reduced JPEG of sides that its divisor does not divide has a last pixel that covers fewer of the original's. So places
are mapped by the true sides and the divisor, never by the size of the smaller image, and labels stay exact.
"""

from __future__ import annotations

import cv2
import numpy as np

from yolov7.augment.sample import Image, Shown
from yolov7.data.annotated import decode_annotated
from yolov7.data.decode import is_jpeg, read_file, reduction_for
from yolov7.data.header import jpeg_header
from yolov7.data.index import Index
from yolov7.data.orientation import UPRIGHT
from yolov7.letterbox import load_size, resize_to_long_side


def read_shown(index: Index, i: int, long_side: int, reduction: int) -> Shown:
    """Image `i`, decoded at 1 / `reduction` of its sides, and resized to `long_side` if it is still larger.

    A file that cannot be reduced so exactly (no JPEG, or one that is turned and whose sides leave a rest) is read at
    load size. Raises :class:`DataError` as :func:`yolov7.data.annotated.read_annotated` does.
    """
    height, width = index.size(i)
    data = read_file(index.image_path(i))
    rest = bool(height % reduction or width % reduction)
    if not is_jpeg(data) or (rest and not _is_upright(data, height, width)):
        reduction, rest = reduction_for(height, width, long_side), False
    image = decode_annotated(index, i, data, reduction=reduction)
    larger = max(height, width) >= reduction * long_side
    if not rest and (larger or reduction == 1):
        return Shown(resize_to_long_side(image, long_side))
    size = load_size(height, width, long_side)
    scale = (width / (size[1] * reduction), height / (size[0] * reduction))
    return Shown(_resized(image, size, scale)) if larger else Shown(image, scale)


def _is_upright(data: bytes, height: int, width: int) -> bool:
    """True if a JPEG is stored the right way up, at exactly this size: then a rest lies right and at the bottom."""
    header = jpeg_header(data)
    return header is not None and (header.orientation, header.height, header.width) == (UPRIGHT, height, width)


def _resized(image: Image, size: tuple[int, int], scale: tuple[float, float]) -> Image:
    """Shrink bilinearly by `scale` (x, y), and cut to `size` (height, width)."""
    # With factors instead of a size OpenCV keeps to them; what it makes of the rest of a pixel may be one too many.
    resized = cv2.resize(image, None, fx=1 / scale[0], fy=1 / scale[1], interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized[: size[0], : size[1]])
