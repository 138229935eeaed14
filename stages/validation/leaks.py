"""Repeated images: inside a split, and across splits.

A finding names the image to remove: of two in one split the later one; across splits the one that matters less for the
measurement (train before val, val before test).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stages.images.near_duplicates import BITS, near_pairs

_RANK = {"train": 0, "val": 1, "test": 2}
"""The higher the rank, the worse a leaked image."""


@dataclass(frozen=True)
class Picture:
    """The compared facts of an image."""

    split: str
    file_name: str
    sha256: str | None
    """Digest of the file's bytes; None if unreadable."""
    hash: str | None
    """Difference hash, hexadecimal; None where there is none."""

    def __str__(self) -> str:
        return f"{self.split}/{self.file_name}"


@dataclass(frozen=True)
class Repetitions:
    """For every image, the one that it repeats, or None."""

    repeats: list[str | None]
    """An earlier file of the same split with the same bytes."""
    also_in: list[str | None]
    """A file of another split with the same bytes."""
    nearly_in: list[str | None]
    """A file of another split that looks nearly the same, with the distance."""


@dataclass
class _Group:
    """Images with the same bytes or hash: the first of every split."""

    first: dict[str, int] = field(default_factory=dict)

    def elsewhere(self, split: str, test_is_val: bool) -> int | None:
        """The first image in the split that is ranked highest above `split`; None where there is none."""
        higher = [other for other in self.first if _RANK[other] > _RANK[split]]
        if test_is_val and split == "val":
            return None
        return self.first[max(higher, key=_RANK.__getitem__)] if higher else None


def find_repetitions(pictures: Sequence[Picture], *, bits: int | None, test_is_val: bool) -> Repetitions:
    """Compare all images; near duplicates within `bits` of 128 (None: do not look for them).

    `test_is_val`: test is a copy of val and the two are not compared. A file that two records of a split name is not a
    repetition of itself.
    """
    same: dict[str, _Group] = defaultdict(_Group)
    alike: dict[str, _Group] = defaultdict(_Group)
    for position, picture in enumerate(pictures):
        for groups, key in ((same, picture.sha256), (alike, picture.hash)):
            if key is not None:
                groups[key].first.setdefault(picture.split, position)
    near = _near_groups(alike, bits)
    repeats: list[str | None] = []
    also_in: list[str | None] = []
    nearly_in: list[str | None] = []
    for picture in pictures:
        group = same[picture.sha256] if picture.sha256 is not None else _Group()
        first = group.first.get(picture.split)
        earlier = None if first is None else pictures[first]
        repeats.append(None if earlier is None or earlier.file_name == picture.file_name else str(earlier))
        other = group.elsewhere(picture.split, test_is_val)
        also_in.append(None if other is None else str(pictures[other]))
        found = None
        if other is None and bits is not None and picture.hash is not None:
            found = _nearest(picture, near.get(picture.hash, []), alike, test_is_val)
        nearly_in.append(None if found is None else f"{pictures[found[1]]} ({found[0]} of {BITS} bits differ)")
    return Repetitions(repeats, also_in, nearly_in)


def _near_groups(alike: dict[str, _Group], bits: int | None) -> dict[str, list[tuple[int, str]]]:
    """For every hash, the other hashes within `bits` and their distance."""
    near: dict[str, list[tuple[int, str]]] = defaultdict(list)
    if bits is None:
        return near
    keys = list(alike)
    hashes = [np.frombuffer(bytes.fromhex(key), np.uint64) for key in keys]
    for first, second, distance in near_pairs(hashes, bits):
        near[keys[first]].append((distance, keys[second]))
        near[keys[second]].append((distance, keys[first]))
    return near


def _nearest(
    picture: Picture, near: Sequence[tuple[int, str]], alike: dict[str, _Group], test_is_val: bool
) -> tuple[int, int] | None:
    """Distance and position of the nearest image in a split above the picture's own."""

    def candidates() -> Iterator[tuple[int, int]]:
        for distance, key in [(0, picture.hash or ""), *near]:
            other = alike[key].elsewhere(picture.split, test_is_val)
            if other is not None:
                yield distance, other

    return min(candidates(), default=None)
