"""Images of more than 8 bits a channel: which range of their values becomes 0 to 255.

Cameras for X-rays, heat or science store 10 to 14 bits in 16, signed or floating values. Only the whole set shows the
range in use: scaled one by one, images would lose the brightness that tells them apart.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.errors import ConfigError

_SIGNED, _FLOAT = 2, 3
"""Sample formats of TIFF (revision 6.0, section 19)."""
_PNM_HEAD = re.compile(rb"P([1-6])\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*(\d+)\s")
_PAM_HEAD = re.compile(rb"P7\n(?:[^\n]*\n){1,8}?DEPTH (\d+)\n")
_SUN = b"\x59\xa6\x6a\x95"
_BGR_FLAGS = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR


@dataclass(frozen=True)
class PixelRange:
    """The values that become black and white; those between them become grey in proportion."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"a range of pixel values is two numbers, the smaller first, got {self}")

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def scale(self, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Values of any type as 0 to 255; those outside the range become black or white, and NaN black."""
        exact: NDArray[np.floating] = pixels.astype(np.float32 if pixels.dtype.itemsize <= 2 else np.float64)
        exact = (exact - self.low) * (255.0 / (self.high - self.low))
        np.nan_to_num(exact, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        np.clip(exact, 0.0, 255.0, out=exact)
        return np.rint(exact, out=exact).astype(np.uint8)


UNIT = PixelRange(0.0, 1.0)
"""Of floating values by convention."""


def decode_deep(data: bytes) -> NDArray[np.generic] | None:
    """The values of an image as they are, (height, width) or (height, width, 3) RGB; None if it is damaged.

    EXIF orientations are applied. Raises :class:`cv2.error` as OpenCV does.
    """
    content = np.frombuffer(data, np.uint8)
    if data.startswith(_SUN):  # grey ones come empty but as colour; they never have more than 8 bits
        return cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
    pixels = cv2.imdecode(content, _BGR_FLAGS)
    if pixels is None or pixels.ndim == 2 or data.startswith(b"P7\n"):  # PAM comes in its own order
        return pixels
    return np.ascontiguousarray(pixels[..., ::-1])


def needs_range(data: bytes) -> bool:
    """True for signed and floating values and those of 32 bits: no reader knows what of them is white."""
    if data[:3] in (b"PF\n", b"Pf\n"):
        return True
    bits, form = tiff_samples(data)
    return bits > 16 or form in (_SIGNED, _FLOAT)


def declared_maximum(data: bytes) -> int | None:
    """The largest value that a PNM declares; None for other formats."""
    found = _PNM_HEAD.match(data[:1024]) if data[:1] == b"P" else None
    return None if found is None or found[1] in (b"1", b"4") else int(found[2][:6])


def declared_range(data: bytes) -> PixelRange | None:
    """The range that a binary PNM of up to 8 bits declares; OpenCV ignores it."""
    highest = declared_maximum(data) if data[:2] in (b"P5", b"P6") else None
    return PixelRange(0.0, float(highest)) if highest is not None and 1 <= highest < 255 else None


def pam_channels(data: bytes) -> int | None:
    """Channels of a PAM; None for another format."""
    found = _PAM_HEAD.match(data[:1024])
    return None if found is None else int(found[1][:6])


def tiff_samples(data: bytes) -> tuple[int, int]:
    """Bits and sample format of the first page of a TIFF; (0, 0) for other formats and damaged ones."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return 0, 0
    try:
        (directory,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, directory)
        found = {258: 1, 339: 1}
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
            if tag in found and kind == 3:
                place = entry + 8 if number <= 2 else struct.unpack_from(order + "I", data, entry + 8)[0]
                (found[tag],) = struct.unpack_from(order + "H", data, place)
    except struct.error:
        return 0, 0
    return found[258], found[339]


DARK = 32
"""Of 255: an image is nearly black if all of its pixels but the brightest lie below."""
TAIL = 0.005
"""Share of the pixels at either end that is left aside: hot and dead pixels."""


def is_dark_and_deep(data: bytes, image: NDArray[np.uint8]) -> bool:
    """True if an image of more than 8 bits a channel became nearly black: its range is probably another one."""
    return _is_deep(data) and float(np.quantile(image[::4, ::4], 1 - TAIL)) < DARK


def _is_deep(data: bytes) -> bool:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data[24:25] == b"\x10"
    if data.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        header = data.find(b"ihdr", 0, 1024)
        return header >= 0 and data[header + 14] & 0x7F > 7
    return tiff_samples(data)[0] > 8 or (declared_maximum(data) or 0) > 255
