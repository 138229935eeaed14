"""Repeated images: inside a split, and across splits.

A finding names the image to remove: of two in one split the later one; across splits the one that matters less for the
measurement (train before val, val before test).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.images.near_duplicates import BITS, near_pairs

_RANKS = ("train", "val", "test")
"""The later in this order, the worse a leaked image."""
_NONE = -1


@dataclass(frozen=True)
class Pictures:
    """The compared facts of images, each a sequence with an item per image."""

    splits: Sequence[str]
    file_names: Sequence[str] | NDArray[np.object_]
    sha256: Sequence[str | None]
    """Digest of the file's bytes; None if unreadable."""
    hashes: Sequence[str | None]
    """Difference hash, hexadecimal; None where there is none."""

    def __len__(self) -> int:
        return len(self.splits)

    def name(self, row: int) -> str:
        """The image, for messages."""
        return f"{self.splits[row]}/{self.file_names[row]}"


@dataclass(frozen=True)
class Repetitions:
    """For every image, the one that it repeats, or None."""

    repeats: list[str | None]
    """An earlier file of the same split with the same bytes."""
    also_in: list[str | None]
    """A file of another split with the same bytes."""
    nearly_in: list[str | None]
    """A file of another split that looks nearly the same, with the distance."""


class _Groups:
    """Images with equal keys, by number: the first row of every split, in arrays."""

    def __init__(self, keys: Sequence[str | None], ranks: NDArray[np.int8], test_is_val: bool) -> None:
        numbers: dict[str, int] = {}
        self.of = np.fromiter(
            (_NONE if key is None else numbers.setdefault(key, len(numbers)) for key in keys), np.int32, len(keys)
        )
        """(N,) the group of each image; -1 where there is no key."""
        self.keys = list(numbers)
        first = np.full((len(numbers), len(_RANKS)), _NONE, np.int32)
        rows = np.flatnonzero(self.of >= 0)[::-1]
        first[self.of[rows], ranks[rows]] = rows  # of several rows the last in this order stays: the first image
        self.first = first
        """(groups, splits)"""
        self.elsewhere = np.full_like(first, _NONE)
        """(groups, splits): the first image in the split that is ranked highest above this one."""
        for rank in range(len(_RANKS)):
            if test_is_val and _RANKS[rank] == "val":
                continue
            for higher in range(rank + 1, len(_RANKS)):
                there = first[:, higher] != _NONE
                self.elsewhere[there, rank] = first[there, higher]


def find_repetitions(pictures: Pictures, *, bits: int | None, test_is_val: bool) -> Repetitions:
    """Compare all images; near duplicates within `bits` of 128 (None: do not look for them).

    `test_is_val`: test is a copy of val and the two are not compared. A file that two records of a split name is not a
    repetition of itself.
    """
    ranks = np.fromiter(map(_RANKS.index, pictures.splits), np.int8, len(pictures))
    same = _Groups(pictures.sha256, ranks, test_is_val)
    nothing: list[str | None] = [None] * len(pictures)
    found = Repetitions(nothing, [*nothing], [*nothing])
    known = np.flatnonzero(same.of >= 0)
    earlier = same.first[same.of[known], ranks[known]]
    for row, first in _pairs(known, earlier, earlier != known):
        if pictures.file_names[first] != pictures.file_names[row]:
            found.repeats[row] = pictures.name(first)
    others = np.full(len(pictures), _NONE, np.int32)
    others[known] = same.elsewhere[same.of[known], ranks[known]]
    for row, other in _pairs(np.arange(len(pictures)), others, others != _NONE):
        found.also_in[row] = pictures.name(other)
    if bits is not None:
        alike = _Groups(pictures.hashes, ranks, test_is_val)
        near = _near_groups(alike.keys, bits)
        for row in np.flatnonzero((alike.of >= 0) & (others == _NONE)).tolist():
            nearest = _nearest(int(alike.of[row]), int(ranks[row]), near, alike)
            if nearest is not None:
                found.nearly_in[row] = f"{pictures.name(nearest[1])} ({nearest[0]} of {BITS} bits differ)"
    return found


def _pairs(rows: NDArray[Any], others: NDArray[Any], chosen: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    return zip(rows[chosen].tolist(), others[chosen].tolist(), strict=True)


def _near_groups(keys: Sequence[str], bits: int) -> dict[int, list[tuple[int, int]]]:
    """For every group, the distance and number of the others within `bits`; groups without any are left out."""
    near: dict[int, list[tuple[int, int]]] = defaultdict(list)
    hashes = [np.frombuffer(bytes.fromhex(key), np.uint64) for key in keys]
    for first, second, distance in near_pairs(hashes, bits):
        near[first].append((distance, second))
        near[second].append((distance, first))
    return near


def _nearest(group: int, rank: int, near: dict[int, list[tuple[int, int]]], alike: _Groups) -> tuple[int, int] | None:
    """Distance and row of the nearest image in a split above the picture's own."""
    candidates = [(0, group), *near.get(group, ())]
    rows = ((distance, int(alike.elsewhere[other, rank])) for distance, other in candidates)
    return min((pair for pair in rows if pair[1] != _NONE), default=None)
