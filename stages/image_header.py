"""Size and orientation from the first bytes of a JPEG, PNG, WebP or BMP file, without decoding it.

Enough to know, for every image of a large set and at the price of one small read, whether it must be turned and
whether decoding it would take more memory than anyone meant to spend.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

UPRIGHT = 1
"""EXIF orientation of an image stored as it is meant to be seen."""

MAX_PIXELS = 100_000_000
"""Larger images are not decoded: a file of a few kilobytes can claim any size, and decoding pays for all of it."""

_ORIENTATION_TAG = 0x0112
_SHORT = 3
_MAX_PARTS = 4096
"""Segments or chunks looked at; a file with more before its pixels is no ordinary image."""


@dataclass(frozen=True)
class ImageHeader:
    """What the header says; the pixels may still be missing."""

    format: str
    """`jpeg`, `png`, `webp` or `bmp`."""
    width: int
    """Of the pixels as stored, before any orientation is applied."""
    height: int
    orientation: int
    """EXIF orientation, 1 to 8 (EXIF 2.32, section 4.6.5): 1 upright, 5 to 8 lie on their side."""

    @property
    def lies_on_its_side(self) -> bool:
        """Whether width and height swap when the image is turned upright."""
        return self.orientation >= 5


def read_header(path: Path) -> ImageHeader | None:
    """The header of an image, or None where the file is of another format, damaged, or cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            if start.startswith(b"\xff\xd8"):
                return _jpeg(file)
            if start.startswith(b"\x89PNG\r\n\x1a\n"):
                return _png(file)
            if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
                return _webp(file)
            if start[:2] == b"BM":
                return _bmp(file)
    except (OSError, struct.error):  # struct.error: fewer bytes than the format promises
        return None
    return None


def _jpeg(file: IO[bytes]) -> ImageHeader | None:
    """JPEG (ITU T.81, annex B): segments up to the scan; the frame header holds the size, APP1 the EXIF data."""
    orientation = UPRIGHT
    size: tuple[int, int] | None = None
    file.seek(2)
    for _ in range(_MAX_PARTS):
        byte = file.read(1)
        while byte and byte != b"\xff":
            byte = file.read(1)
        while byte == b"\xff":
            byte = file.read(1)
        if not byte or byte == b"\xda" or byte == b"\xd9":
            break
        marker = byte[0]
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack(">H", file.read(2))
        body_at = file.tell()
        if marker == 0xE1:
            body = file.read(length - 2)
            if body.startswith(b"Exif\0\0"):
                orientation = _exif_orientation(body[6:])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">xHH", file.read(5))
            size = (width, height)
        file.seek(body_at + max(length, 2) - 2)
    return ImageHeader("jpeg", *size, orientation) if size else None


def _png(file: IO[bytes]) -> ImageHeader | None:
    """PNG (third edition, section 5): chunks; IHDR comes first, eXIf anywhere."""
    orientation = UPRIGHT
    size: tuple[int, int] | None = None
    file.seek(8)
    for kind, length in _chunks(file, ">I", kind_first=False):
        if kind == b"IHDR":
            width, height = struct.unpack(">II", file.read(8))
            size = (width, height)
        elif kind == b"eXIf":
            orientation = _exif_orientation(file.read(min(length, 1 << 20)))
        elif kind == b"IEND":
            break
    return ImageHeader("png", *size, orientation) if size else None


def _webp(file: IO[bytes]) -> ImageHeader | None:
    """WebP (RFC 9649, section 2): RIFF chunks; each of the three kinds of picture keeps its size elsewhere."""
    orientation = UPRIGHT
    size: tuple[int, int] | None = None
    file.seek(12)
    for kind, length in _chunks(file, "<I", kind_first=True):
        if kind == b"VP8X":
            body = file.read(10)
            size = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif kind == b"VP8 " and size is None:
            width, height = struct.unpack("<6xHH", file.read(10))
            size = (width & 0x3FFF, height & 0x3FFF)
        elif kind == b"VP8L" and size is None:
            (bits,) = struct.unpack("<xI", file.read(5))
            size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        elif kind == b"EXIF":
            body = file.read(min(length, 1 << 20))
            orientation = _exif_orientation(body.removeprefix(b"Exif\0\0"))
    return ImageHeader("webp", *size, orientation) if size else None


def _bmp(file: IO[bytes]) -> ImageHeader | None:
    """BMP (Windows bitmap, all headers since version 3): sizes behind the two headers' first fields; no orientation.

    A negative height means rows from top to bottom.
    """
    file.seek(14)
    length, width, height = struct.unpack("<Iii", file.read(12))
    if length < 40 or width <= 0 or height == 0:
        return None
    return ImageHeader("bmp", width, abs(height), UPRIGHT)


def _chunks(file: IO[bytes], length_format: str, *, kind_first: bool) -> Iterator[tuple[bytes, int]]:
    """Each chunk's kind and length, the file standing at its body; PNG puts the length first and a checksum last."""
    for _ in range(_MAX_PARTS):
        head = file.read(8)
        if len(head) < 8:
            return
        kind, size = (head[:4], head[4:]) if kind_first else (head[4:], head[:4])
        (length,) = struct.unpack(length_format, size)
        body_at = file.tell()
        yield kind, length
        file.seek(body_at + (length + length % 2 if kind_first else length + 4))


def _exif_orientation(tiff: bytes) -> int:
    """The orientation entry of EXIF data (a small TIFF file); upright where there is none or it makes no sense."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else UPRIGHT
    except struct.error:
        return UPRIGHT
    return UPRIGHT
