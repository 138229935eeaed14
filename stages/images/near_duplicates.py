"""Find near-duplicates: difference hashes of images, and all pairs of hashes within a few bits.

The hash has 128 bits: the grey image is averaged to 9 x 8 and 8 x 9 cells, and each bit tells whether a cell is
brighter than its neighbour to the right, or below. Scaling, compression and slight changes of brightness keep nearly
all bits; cropping, turning and mirroring do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.data.depth import PixelRange, decode_deep
from yolov7.data.header import MAX_PIXELS, read_header
from yolov7.data.orientation import turn_upright
from yolov7.data.sandbox import Died, breaks_out, run_limited

BITS = 128
_CELLS = 8
_PER_PROCESS = 16
_BLOCK = 2048
"""Hashes compared at a time: 4 million pairs, about 100 MB."""

Hash = NDArray[np.uint64]
"""(2,): the horizontal and the vertical half."""


def difference_hashes(paths: Sequence[Path]) -> list[Hash | None]:
    """The hash of every image, upright; None if it is unreadable, huge, or without contrast.

    They are decoded in processes with limits. Raises :class:`DataError` naming an image that breaks out of them.
    """
    hashes: list[Hash | None] = []
    for path, value in zip(paths, run_limited(difference_hash, paths, per_process=_PER_PROCESS), strict=True):
        if isinstance(value, Died):
            raise breaks_out(path, value)
        hashes.append(value)
    return hashes


def difference_hash(path: Path) -> Hash | None:
    """The hash of one image file, as :func:`difference_hashes`, decoded in this process."""
    header = read_header(path)
    if header is None or header.bits > 8:
        return _hash_of_any(path)
    if header.width * header.height > MAX_PIXELS:
        return None
    # JPEG decodes to a half, a quarter or an eighth at a fraction of the cost; 128 pixels are plenty for 9 cells.
    side = min(header.width, header.height)
    flags = {
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        1: cv2.IMREAD_GRAYSCALE,
    }
    try:
        data = np.fromfile(path, np.uint8)
        pixels = cv2.imdecode(data, flags[next(factor for factor in flags if factor == 1 or side // factor >= 128)])
    except (OSError, cv2.error):
        return None
    return None if pixels is None else hash_pixels(pixels)


def _hash_of_any(path: Path) -> Hash | None:
    """The hash of an image of any format and depth, its own range of values stretched: the hash only compares them."""
    try:
        data = path.read_bytes()
        pixels = decode_deep(data)
    except (OSError, cv2.error):
        return None
    if pixels is None or pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        return None
    if pixels.dtype == np.uint8:
        grey = pixels
    else:
        low, high = float(np.nanmin(pixels)), float(np.nanmax(pixels))
        if not high - low > 0 or not np.isfinite(high - low):
            return None
        grey = PixelRange(low, high).scale(pixels)
    grey = turn_upright(data, np.asarray(grey, np.uint8))
    return hash_pixels(np.asarray(cv2.cvtColor(grey, cv2.COLOR_RGB2GRAY) if grey.ndim == 3 else grey, np.uint8))


def hash_pixels(pixels: NDArray[np.uint8]) -> Hash | None:
    """The hash of a grey image (height, width); None if all cells are equally bright."""
    exact = pixels.astype(np.float32)
    across = cv2.resize(exact, (_CELLS + 1, _CELLS), interpolation=cv2.INTER_AREA)
    down = cv2.resize(exact, (_CELLS, _CELLS + 1), interpolation=cv2.INTER_AREA)
    if np.ptp(across) < 1.0 and np.ptp(down) < 1.0:
        return None
    bits = np.concatenate([(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])
    return np.packbits(bits).view(np.uint64)


def near_pairs(hashes: Sequence[Hash | None], limit: int) -> Iterator[tuple[int, int, int]]:
    """Pairs of positions whose hashes differ in at most `limit` of 128 bits, with the distance.

    Every such pair occurs at least once; equal hashes are paired with the first of them only, enough to join them. Two
    hashes within `limit` bits agree in at least one of `limit + 1` pieces, so only hashes that share a piece are
    compared: for 100,000 images a few million pairs instead of five thousand million.
    """
    positions: dict[bytes, int] = {}
    for position, value in enumerate(hashes):
        if value is None:
            continue
        first = positions.setdefault(value.tobytes(), position)
        if first != position:
            yield first, position, 0
    if limit == 0 or len(positions) < 2:
        return
    places = np.fromiter(positions.values(), np.int64, len(positions))
    unique = np.frombuffer(b"".join(positions), np.uint64).reshape(-1, 2)
    bits = np.unpackbits(unique.view(np.uint8), axis=1)
    for piece in np.array_split(np.arange(BITS), limit + 1):
        for members in _agreeing(bits[:, piece]):
            for first, second, distance in _within(unique, members, limit):
                yield int(places[first]), int(places[second]), distance


def _agreeing(bits: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """Groups of two or more equal rows."""
    keys = np.packbits(bits, axis=1)
    padded = np.zeros((len(keys), -(-keys.shape[1] // 8) * 8), np.uint8)
    padded[:, : keys.shape[1]] = keys
    words = padded.view(np.uint64)
    order = np.lexsort(words.T)
    changes = np.flatnonzero((words[order[1:]] != words[order[:-1]]).any(1)) + 1
    for members in np.split(order, changes):
        if len(members) > 1:
            yield members


def _within(unique: NDArray[np.uint64], members: NDArray[np.int64], limit: int) -> Iterator[tuple[int, int, int]]:
    for start in range(0, len(members), _BLOCK):
        rows = members[start : start + _BLOCK]
        for other in range(start, len(members), _BLOCK):
            columns = members[other : other + _BLOCK]
            apart = sum(
                np.bitwise_count(unique[rows, half][:, None] ^ unique[columns, half][None]).astype(np.int16)
                for half in (0, 1)
            )
            for row, column in np.argwhere(apart <= limit):
                if start + row < other + column:
                    yield int(rows[row]), int(columns[column]), int(apart[row, column])
