"""Image files to arrays: RGB, orientation applied, and never half an image passed off as a whole one.

Decoders fill the missing part of a truncated JPEG with grey and report success, so the end of the file is checked
before decoding. Everything here works on bytes that are read once; no decoder opens a path itself, which also makes
names outside the system's code page work.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.data.depth import UNIT, PixelRange, declared_range, decode_deep, needs_range, pam_channels
from yolov7.data.image_kind import READ, kind_of
from yolov7.data.orientation import turn_upright
from yolov7.errors import DataError

Image = NDArray[np.uint8]


# Decoders of JPEG can leave out the finer half, three quarters or seven eighths of the frequencies on the way.
_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def read_image(path: str | os.PathLike[str], *, pixel_range: PixelRange | None = None) -> Image:
    """Read an image file as uint8 (height, width, 3) RGB, turned upright as its orientation says.

    Grey images get three equal channels, an alpha channel is dropped, 16-bit values are reduced to 8: by `pixel_range`,
    or to their upper half. Raises :class:`DataError` for a file that is missing, unreadable, truncated or no image.
    """
    return decode_image(read_file(path), path=path, pixel_range=pixel_range)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file; :class:`DataError` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError("no such image file", path=path) from None
    except OSError as error:
        raise DataError(f"the image cannot be read: {error.strerror}", path=path) from None


def is_jpeg(data: bytes) -> bool:
    """True if these are the bytes of a JPEG file, the format that can be reduced while it is decoded."""
    return data.startswith(b"\xff\xd8")


def decode_image(
    data: bytes,
    *,
    path: str | os.PathLike[str] | None = None,
    reduction: int = 1,
    pixel_range: PixelRange | None = None,
) -> Image:
    """The bytes of an image file as uint8 (height, width, 3) RGB; `path` is only named in errors.

    `reduction` (1, or for a JPEG 2, 4 or 8, see :func:`reduction_for`) divides the sides, rests rounded up.
    `pixel_range`: the values of more than 8 bits that become black and white. Without it, the upper 8 of 16 bits are
    taken, and floating values from 0 to 1. Raises :class:`DataError` as :func:`read_image` does, and for values that
    need a range.
    """
    if not data:
        raise DataError("the image file is empty", path=path)
    if _is_truncated(data):
        raise DataError("the image is truncated (its end is missing); fetch or export it again", path=path)
    if pam_channels(data) in (2, 4):
        raise DataError("a PAM with transparency is not read here; convert it to PNG", path=path)
    needs, declared = needs_range(data), declared_range(data)
    try:
        if needs or declared is not None or pixel_range is not None:
            image = _decode_scaled(data, path, pixel_range, declared, needs=needs)
        else:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduction])
    except cv2.error as error:
        raise DataError(f"the image cannot be decoded: {error.err}", path=path) from None
    if image is None:
        raise DataError(_no_image(data, path), path=path)
    return turn_upright(data, image)


def _decode_scaled(
    data: bytes,
    path: str | os.PathLike[str] | None,
    pixel_range: PixelRange | None,
    declared: PixelRange | None,
    *,
    needs: bool,
) -> Image | None:
    """An image whose values are scaled to 8 bits if they have more, or declare that they use fewer."""
    pixels = decode_deep(data)
    if pixels is None:
        return None
    if pixels.dtype != np.uint8:
        if needs and pixel_range is None:
            low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
            if pixels.dtype.kind != "f" or low < 0 or high > 1:
                raise DataError(
                    f"holds values from {low:g} to {high:g}, not 8 bits: a range of values (black and white) is needed",
                    path=path,
                )
        if pixel_range is None and not needs:
            return cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[1])
        pixels = (pixel_range or UNIT).scale(pixels)
    elif declared is not None:
        pixels = declared.scale(pixels)
    grey = np.asarray(pixels, np.uint8)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8) if grey.ndim == 2 else grey


def _no_image(data: bytes, path: str | os.PathLike[str] | None) -> str:
    kind = kind_of(data[:1024], "" if path is None else path)
    if kind is not None and not kind.read:
        return kind.advice
    return f"not an image of a known format, or damaged (read are {READ})"


def reduction_for(height: int, width: int, long_side: float, *, rest: bool = False) -> int:
    """Divisor of the sides at which an image can be decoded for a target of `long_side`: 1, 2, 4 or 8.

    :func:`yolov7.letterbox.resize_to_long_side` does the rest. Decoding without the finer frequencies is faster, and
    the result has been averaged where bilinear shrinking by more than 2 would pick single pixels. Only divisors without
    remainder are taken, so that every pixel of the smaller image covers exactly as many of the larger one and boxes
    stay where they are. `rest` takes the others too, for callers that reckon with a last pixel that covers fewer.
    """
    longest = max(height, width)
    fitting = (by for by in (8, 4, 2) if longest >= by * long_side and (rest or not (height % by or width % by)))
    return next(fitting, 1)


def _is_truncated(data: bytes) -> bool:
    """True if a JPEG, PNG, WebP or BMP is cut short. Other formats: False, their decoders refuse half a file."""
    if is_jpeg(data):
        return _jpeg_is_truncated(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data.rfind(b"IEND", 8) < 0
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) < struct.unpack_from("<I", data, 4)[0] + 8
    if data.startswith(b"BM") and len(data) >= 6:
        return len(data) < struct.unpack_from("<I", data, 2)[0]
    return False


def _jpeg_is_truncated(data: bytes) -> bool:
    """Walk the segments to the first scan, then look for the end marker behind it.

    The walk is needed because a thumbnail inside an EXIF segment has an end marker of its own; behind the start of the
    first scan the two bytes can only be the end of the image (inside coded data, FF is always followed by 00).
    """
    position, end = 2, len(data)
    while position + 4 <= end:
        if data[position] != 0xFF:
            return False  # no marker where one must be: damaged rather than truncated, the decoder judges it
        kind = data[position + 1]
        if kind == 0xFF:  # fill byte
            position += 1
            continue
        if kind == 0xDA:
            return data.rfind(b"\xff\xd9", position) < 0
        standalone = kind == 0x01 or 0xD0 <= kind <= 0xD8
        position += 2 if standalone else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True
