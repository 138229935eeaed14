"""Annotations given twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 17
"""Boxes handled at a time."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, its bits spread evenly: 2**64 divided by the golden ratio (Knuth, The Art of Computer Programming 3, 6.4)."""
_HALF = np.uint64(32)


def find_repeated(images: NDArray[Any], labels: NDArray[Any], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True for every box (N, 4) that an earlier one repeats exactly: same image, class and box. NaN equals nothing.

    `images` (N,) and `labels` (N,) are whole numbers that tell images and classes apart.
    """
    repeated = np.zeros(len(boxes), np.bool_)
    # Sorted by everything, boxes would take a minute for twenty million; numbers that stand for them take seconds.
    ordered = np.sort(_hashes(images, labels, boxes))
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    del ordered
    rows = _rows_with(twice, images, labels, boxes) if len(twice) else np.zeros(0, np.int64)
    while len(rows):
        hashes = _hashes(images[rows], labels[rows], boxes[rows])
        order = np.argsort(hashes, kind="stable")  # of equal boxes, the first of the file stays first
        begins = np.diff(hashes[order], prepend=~hashes[order[0]]) != 0
        rows = rows[order]
        firsts = rows[begins][np.cumsum(begins) - 1]
        same = _are_same(rows, firsts, images, labels, boxes)
        repeated[rows[same & ~begins]] = True
        rows = np.sort(rows[~same])  # other boxes that have the hash of a first one
    return repeated


def _hashes(images: NDArray[Any], labels: NDArray[Any], boxes: NDArray[np.float64]) -> NDArray[np.uint64]:
    """(N,) equal for equal boxes of one image and class; for others, equal by chance (1 in 2**64) only."""
    hashes = np.empty(len(boxes), np.uint64)
    for start in range(0, len(boxes), _PIECE):
        some = slice(start, start + _PIECE)
        sides = np.ascontiguousarray((boxes[some] + 0.0).T)  # -0.0 equals 0.0, and becomes it
        found = images[some].astype(np.int64).view(np.uint64) * _FACTOR
        for words in (labels[some].astype(np.int64), *sides):
            found ^= found >> _HALF
            found += words.view(np.uint64)
            found *= _FACTOR
        hashes[some] = found ^ (found >> _HALF)
    return hashes


def _rows_with(
    hashes: NDArray[np.uint64], images: NDArray[Any], labels: NDArray[Any], boxes: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Rows of the boxes with one of these hashes, which are sorted, without those that have a NaN."""
    found = []
    for start in range(0, len(boxes), _PIECE):
        some = slice(start, start + _PIECE)
        own = _hashes(images[some], labels[some], boxes[some])
        known = hashes[np.searchsorted(hashes, own).clip(max=len(hashes) - 1)] == own
        found.append(start + np.flatnonzero(known & ~np.isnan(boxes[some]).any(axis=1)))
    return np.concatenate(found)


def _are_same(
    rows: NDArray[np.int64],
    others: NDArray[np.int64],
    images: NDArray[Any],
    labels: NDArray[Any],
    boxes: NDArray[np.float64],
) -> NDArray[np.bool_]:
    same = np.empty(len(rows), np.bool_)
    for start in range(0, len(rows), _PIECE):
        one, other = rows[start : start + _PIECE], others[start : start + _PIECE]
        alike = (boxes[one] == boxes[other]).all(axis=1)
        same[start : start + _PIECE] = alike & (images[one] == images[other]) & (labels[one] == labels[other])
    return same
