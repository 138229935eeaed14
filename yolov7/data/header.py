"""Size, orientation and kind of pixels of an image file, from its headers (JPEG, PNG, WebP, BMP, GIF, TIFF).

A few small reads per image show whether it must be turned or converted and whether it is too large to decode. Pillow
opens the same files but needs more of them: it finds no size in a WebP that is cut short or a JPEG cut before its scan,
so ingest would stop where validation can drop the record. On damaged files its parsers also raise exceptions of many
kinds (an IndexError for half a GIF).
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from yolov7.data.orientation import ORIENTATION_TAG, UPRIGHT, exif_orientation

MAX_PIXELS = 100_000_000
"""Larger images are not decoded: a file of a few kilobytes can claim any size."""

_SHORT = 3
_MAX_PARTS = 4096
"""Most segments or chunks before the pixels; ordinary images have far fewer."""
_MAX_BLOCKS = 1 << 18
"""Most blocks of one picture of a GIF, of up to 255 bytes each."""
_MAX_STRAY = 1 << 16
"""Most bytes to skip between two segments of a JPEG, as decoders do."""


@dataclass(frozen=True)
class ImageHeader:
    """The content of the header; the pixels may still be missing."""

    format: str
    """`jpeg`, `png`, `webp`, `bmp`, `gif` or `tiff`."""
    width: int
    """Of the pixels as stored, before any orientation is applied."""
    height: int
    orientation: int
    """EXIF orientation, 1 to 8 (EXIF 2.32, section 4.6.5): 1 upright, 5 to 8 lie on their side."""
    bits: int = 8
    """Most bits of any channel."""
    cmyk: bool = False
    """The channels are cyan, magenta, yellow and black, for printing."""
    animated: bool = False
    """The file has several pictures: frames, or pages."""

    @property
    def lies_on_its_side(self) -> bool:
        """True if width and height swap when the image is turned upright."""
        return self.orientation >= 5

    @property
    def peculiarity(self) -> str | None:
        """A property that programs decode in different ways, or ignore; None if there is none."""
        if self.cmyk:
            return "CMYK"
        if self.bits > 8:
            return f"{self.bits} bits a channel"
        return "several pictures in one file" if self.animated else None


def read_header(path: Path) -> ImageHeader | None:
    """The header of an image; None if the file is of another format, damaged, or unreadable."""
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
            if start[:6] in (b"GIF87a", b"GIF89a"):
                return _gif(file)
            if start[:4] in (b"II*\0", b"MM\0*"):
                return _tiff(file, "<" if start[:2] == b"II" else ">")
    except (OSError, struct.error):  # struct.error: fewer bytes than the format promises
        return None
    return None


def jpeg_header(data: bytes) -> ImageHeader | None:
    """The header of a JPEG from its bytes; None if it is damaged."""
    try:
        return _jpeg(io.BytesIO(data))
    except struct.error:
        return None


def _jpeg(file: IO[bytes]) -> ImageHeader | None:
    """JPEG (ITU T.81, annex B): segments up to the scan; the frame header has the size, APP1 the EXIF data."""
    orientation = UPRIGHT
    size: tuple[int, int] | None = None
    bits = channels = stray = 0
    file.seek(2)
    for _ in range(_MAX_PARTS):
        byte = file.read(1)
        while byte and byte != b"\xff" and stray < _MAX_STRAY:
            byte, stray = file.read(1), stray + 1
        while byte == b"\xff" and stray < _MAX_STRAY:
            byte, stray = file.read(1), stray + 1
        if stray >= _MAX_STRAY or not byte or byte == b"\xda" or byte == b"\xd9":
            break
        marker = byte[0]
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue
        (length,) = struct.unpack(">H", file.read(2))
        body_at = file.tell()
        if marker == 0xE1:
            body = file.read(length - 2)
            if body.startswith(b"Exif\0\0"):
                orientation = exif_orientation(body[6:])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", file.read(6))
            size = (width, height)
        file.seek(body_at + max(length, 2) - 2)
    return ImageHeader("jpeg", *size, orientation, bits=bits, cmyk=channels == 4) if size else None


def _png(file: IO[bytes]) -> ImageHeader | None:
    """PNG (third edition, section 5): chunks; IHDR comes first, eXIf anywhere, acTL before the pixels."""
    orientation = UPRIGHT
    size: tuple[int, int] | None = None
    bits, animated = 8, False
    file.seek(8)
    for kind, length in _chunks(file, ">I", kind_first=False):
        if kind == b"IHDR":
            width, height, bits = struct.unpack(">IIB", file.read(9))
            size = (width, height)
        elif kind == b"acTL":
            animated = struct.unpack(">I", file.read(4))[0] > 1
        elif kind == b"eXIf":
            orientation = exif_orientation(file.read(min(length, 1 << 20)))
        elif kind == b"IEND":
            break
    return ImageHeader("png", *size, orientation, bits=bits, animated=animated) if size else None


def _webp(file: IO[bytes]) -> ImageHeader | None:
    """WebP (RFC 9649, section 2): RIFF chunks; the three kinds of picture have their size in different places."""
    orientation = UPRIGHT
    size: tuple[int, int] | None = None
    animated = False
    file.seek(12)
    for kind, length in _chunks(file, "<I", kind_first=True):
        if kind == b"VP8X":
            body = file.read(10)
            animated = bool(body[0] & 0x02) if body else False
            size = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif kind == b"VP8 " and size is None:
            width, height = struct.unpack("<6xHH", file.read(10))
            size = (width & 0x3FFF, height & 0x3FFF)
        elif kind == b"VP8L" and size is None:
            (bits,) = struct.unpack("<xI", file.read(5))
            size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        elif kind == b"EXIF":
            body = file.read(min(length, 1 << 20))
            orientation = exif_orientation(body.removeprefix(b"Exif\0\0"))
    return ImageHeader("webp", *size, orientation, animated=animated) if size else None


def _bmp(file: IO[bytes]) -> ImageHeader | None:
    """BMP (Windows bitmap, all headers since version 3): the size follows the first fields of the two headers; no
    orientation. A negative height means rows from top to bottom.
    """
    file.seek(14)
    length, width, height = struct.unpack("<Iii", file.read(12))
    if length < 40 or width <= 0 or height == 0:
        return None
    return ImageHeader("bmp", width, abs(height), UPRIGHT)


def _gif(file: IO[bytes]) -> ImageHeader | None:
    """GIF (version 89a, sections 18 to 26): the screen, then blocks; a second picture makes it an animation."""
    file.seek(6)
    width, height, packed = struct.unpack("<HHB2x", file.read(7))
    file.seek(_colour_table(packed), os.SEEK_CUR)
    pictures = 0
    for _ in range(_MAX_PARTS):
        kind = file.read(1)
        if kind == b"\x21":  # extension: a label, then blocks
            file.seek(1, os.SEEK_CUR)
        elif kind == b"\x2c":
            pictures += 1
            file.seek(_colour_table(struct.unpack("<8xB", file.read(9))[0]) + 1, os.SEEK_CUR)
        else:
            break
        if pictures > 1:
            break
        for _ in range(_MAX_BLOCKS):
            length = file.read(1)
            if length in (b"", b"\0"):
                break
            file.seek(length[0], os.SEEK_CUR)
    return ImageHeader("gif", width, height, UPRIGHT, animated=pictures > 1)


def _colour_table(packed: int) -> int:
    """Bytes of the colour table announced by a packed field."""
    return 3 << (1 + (packed & 7)) if packed & 0x80 else 0


def _tiff(file: IO[bytes], order: str) -> ImageHeader | None:
    """TIFF (revision 6.0, sections 2 and 8): the first directory describes the first page."""
    file.seek(4)
    (directory,) = struct.unpack(order + "I", file.read(4))
    file.seek(directory)
    (count,) = struct.unpack(order + "H", file.read(2))
    entries = file.read(12 * count)
    (following,) = struct.unpack(order + "I", file.read(4))
    values: dict[int, int] = {}
    for tag, kind, number, raw in struct.iter_unpack(order + "HHI4s", entries):
        inline = {_SHORT: 2, 4: 4}.get(kind, 0) * number <= 4
        if kind in (_SHORT, 4) and not inline:  # several values, elsewhere: the first one decides
            file.seek(struct.unpack(order + "I", raw)[0])
            raw = file.read(4)
        if kind in (_SHORT, 4):
            values[tag] = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), raw)[0]
    if 256 not in values or 257 not in values:
        return None
    orientation = values.get(ORIENTATION_TAG, UPRIGHT)
    return ImageHeader(
        "tiff",
        values[256],
        values[257],
        orientation if 1 <= orientation <= 8 else UPRIGHT,
        bits=values.get(258, 1),
        cmyk=values.get(262) == 5,
        animated=following != 0,
    )


def _chunks(file: IO[bytes], length_format: str, *, kind_first: bool) -> Iterator[tuple[bytes, int]]:
    """Yield each chunk's kind and length, with the file at its body; PNG has the length first and a checksum last."""
    for _ in range(_MAX_PARTS):
        head = file.read(8)
        if len(head) < 8:
            return
        kind, size = (head[:4], head[4:]) if kind_first else (head[4:], head[:4])
        (length,) = struct.unpack(length_format, size)
        body_at = file.tell()
        yield kind, length
        file.seek(body_at + (length + length % 2 if kind_first else length + 4))
