"""Reading an image of an index, checked against the size it is annotated with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolov7.data.decode import decode_image, is_jpeg, read_file
from yolov7.data.index import Index
from yolov7.errors import DataError


def read_annotated(index: Index, i: int, *, reduction: int = 1) -> NDArray[np.uint8]:
    """Image `i` as uint8 (height, width, 3) RGB; :class:`DataError` if unreadable or not of the annotated size.

    A `reduction` that divides the annotated sides decodes a JPEG that much smaller (other formats come whole); its size
    is then checked to as many pixels.
    """
    return decode_annotated(index, i, read_file(index.image_path(i)), reduction=reduction)


def decode_annotated(index: Index, i: int, data: bytes, *, reduction: int = 1) -> NDArray[np.uint8]:
    """The same from the bytes of its file. Where `reduction` leaves a rest, a side may be wrong by less than it."""
    path = index.image_path(i)
    reduction = reduction if is_jpeg(data) else 1
    image = decode_image(data, path=path, reduction=reduction)
    height, width = index.size(i)
    if image.shape[:2] != (-(-height // reduction), -(-width // reduction)):
        found_height, found_width = (image if reduction == 1 else decode_image(data, path=path)).shape[:2]
        message = f"the image is {found_width} x {found_height} but annotated as {width} x {height}"
        raise DataError(message, path=path, record=f"image {index.image_id(i)}")
    return image
