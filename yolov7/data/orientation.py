"""Orientation of AVIF and JPEG 2000 images, which OpenCV does not apply; of other formats it does.

Both are made of boxes (ISO/IEC 14496-12, section 4.2). AVIF turns and mirrors by properties of its first item
(ISO/IEC 23008-12, sections 6.5.10 and 6.5.12), which outrank EXIF; JPEG 2000 holds EXIF data in a box of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

_MOST_BOXES = 4096
_JP2_EXIF = b"JpgTiffExif->JP2"
ORIENTATION_TAG, _SHORT = 0x0112, 3
"""Of TIFF (revision 6.0): the tag, and the type of its value."""
UPRIGHT = 1
"""EXIF orientation of an image that is stored the right way up."""

Turn = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

_EXIF: dict[int, Turn] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, 3),
    7: lambda pixels: np.rot90(np.swapaxes(pixels, 0, 1), 2),
    8: np.rot90,
}


def turn_upright(data: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pixels of an AVIF or JPEG 2000 file, as decoded, the right way up; those of other formats as they are."""
    try:
        if data[4:8] == b"ftyp":
            turned = _turn_avif(data, pixels)
        elif data.startswith(b"\0\0\0\x0cjP  "):
            turned = _turn_jp2(data, pixels)
        else:
            return pixels
    except (struct.error, IndexError, ValueError):  # boxes that end early: the decoder made an image all the same
        return pixels
    return np.ascontiguousarray(turned)


def turn_back(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The pixels as stored, of an image that was turned upright as its EXIF orientation (1 to 8) says."""
    opposite = {6: 8, 8: 6}.get(orientation, orientation)  # the others undo themselves
    return np.ascontiguousarray(_EXIF.get(opposite, _same)(pixels))


def _turn_jp2(data: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"uuid" and data[start : start + 16] == _JP2_EXIF:
            body = data[start + 16 : end]
            return _EXIF.get(exif_orientation(body[6:] if body.startswith(b"Exif\0\0") else body), _same)(pixels)
    return pixels


def exif_orientation(tiff: bytes) -> int:
    """The orientation (1 to 8) of EXIF data, a small TIFF file; upright if the entry is missing or invalid."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if tag == ORIENTATION_TAG:
                return int(value) if kind == _SHORT and 1 <= value <= 8 else UPRIGHT
    except struct.error:
        return UPRIGHT
    return UPRIGHT


def _same(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def _turn_avif(data: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn first, then mirror, whatever their order in the file: as libavif does."""
    found = dict(_primary_properties(data))
    if b"irot" in found:
        pixels = np.rot90(pixels, data[found[b"irot"]] & 3)  # anticlockwise
    if b"imir" in found:
        pixels = np.fliplr(pixels) if data[found[b"imir"]] & 1 else np.flipud(pixels)
    return pixels


def _primary_properties(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and place of each property of the first item."""
    meta = next(((start, end) for kind, start, end in _boxes(data, 0, len(data)) if kind == b"meta"), None)
    if meta is None:
        return
    inside = {kind: (start, end) for kind, start, end in _boxes(data, meta[0] + 4, meta[1])}
    if b"pitm" not in inside or b"iprp" not in inside:
        return
    start = inside[b"pitm"][0]
    primary = struct.unpack_from(">I" if data[start] else ">H", data, start + 4)[0]
    parts = list(_boxes(data, *inside[b"iprp"]))
    properties: list[tuple[bytes, int]] = []
    for kind, start, end in parts:
        if kind == b"ipco":
            properties = [(name, place) for name, place, _ in _boxes(data, start, end)]
    for kind, start, _ in parts:
        if kind == b"ipma":
            for number in _associated(data, start, primary):
                if 1 <= number <= len(properties):
                    yield properties[number - 1]


def _associated(data: bytes, start: int, item: int) -> Iterator[int]:
    """Numbers of the properties of an item, from an `ipma` box."""
    version, wide = data[start], data[start + 3] & 1
    (entries,) = struct.unpack_from(">I", data, start + 4)
    place = start + 8
    for _ in range(min(entries, _MOST_BOXES)):
        number = struct.unpack_from(">I" if version else ">H", data, place)[0]
        place += 4 if version else 2
        count = data[place]
        place += 1
        for _ in range(count):
            value = struct.unpack_from(">H" if wide else ">B", data, place)[0]
            place += 2 if wide else 1
            if number == item:
                yield value & (0x7FFF if wide else 0x7F)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each box between two places, and start and end of its body."""
    for _ in range(_MOST_BOXES):
        if start + 8 > end:
            return
        (length,) = struct.unpack_from(">I", data, start)
        kind, head = data[start + 4 : start + 8], 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        elif length == 0:  # to the end of the file
            length = end - start
        if length < head:
            return
        yield kind, start + head, min(start + length, end)
        start += length
