"""Counts of objects by class, in words and tables, and of those that a program leaves out by the reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CLASSES_NAMED = 8
"""Classes that a count names; it says how many more there are."""


@dataclass(frozen=True)
class Tally:
    """Objects by class, and those left out by reason and class. An object is left out for one reason alone."""

    what: str
    """The user of the objects, as the subject of a sentence: `training`."""
    class_names: tuple[str, ...]
    objects: NDArray[np.int64]
    """(C,) annotated objects of each class, lost ones included."""
    lost: Mapping[str, NDArray[np.int64]]
    """Reason, as it follows `12 `, to (C,) objects of each class; reasons without any are left out."""

    @property
    def total(self) -> int:
        """Objects left out."""
        return int(sum(counts.sum() for counts in self.lost.values()))

    def of_class(self, label: int) -> dict[str, int]:
        """The objects of a class that are left out, by reason, most first."""
        counts = {reason: int(found[label]) for reason, found in self.lost.items() if found[label]}
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def mostly_lost(self) -> list[int]:
        """Classes that lose more than half of their objects."""
        everywhere = sum(self.lost.values(), np.zeros(len(self.class_names), np.int64))
        return np.flatnonzero(2 * everywhere > self.objects).tolist()

    def lines(self) -> list[str]:
        """A line for the total and one for each reason, with its classes; one line if nothing is left out."""
        objects = int(self.objects.sum())
        if not self.lost:
            return [f"{self.what} uses all {objects} objects"]
        reasons = [
            f"  {int(counts.sum())} {reason}: {named_counts(zip(self.class_names, counts, strict=True))}"
            for reason, counts in self.lost.items()
        ]
        return [f"{self.what} leaves out {self.total} of {objects} objects:", *reasons]

    def summary(self) -> str:
        """The same in a few words, without classes."""
        if not self.lost:
            return f"none of {int(self.objects.sum())}"
        reasons = ", ".join(f"{int(counts.sum())} {reason}" for reason, counts in self.lost.items())
        return f"{self.total} of {int(self.objects.sum())}: {reasons}"

    def document(self) -> dict[str, Any]:
        """For JSON: objects, and those left out by reason and class."""
        lost = {
            reason: {name: int(count) for name, count in zip(self.class_names, counts, strict=True) if count}
            for reason, counts in self.lost.items()
        }
        return {"total": int(self.objects.sum()), "left_out": lost}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: one for each class that loses objects, then the sum."""
        header = ["class", "objects", "left out", *self.lost]
        rows = []
        for label, name in enumerate(self.class_names):
            counts = [int(found[label]) for found in self.lost.values()]
            if any(counts):
                rows.append([name, *map(str, [int(self.objects[label]), sum(counts), *counts])])
        sums = [int(found.sum()) for found in self.lost.values()]
        rows.append(["all", *map(str, [int(self.objects.sum()), sum(sums), *sums])])
        return header, rows


def tally(what: str, class_names: Sequence[str], objects: NDArray[np.int64], lost: Mapping[str, Any]) -> Tally:
    """A tally of the reasons that some object has; `lost` maps each to (C,) counts."""
    found = {reason: np.asarray(counts, np.int64) for reason, counts in lost.items() if np.any(counts)}
    return Tally(what, tuple(class_names), np.asarray(objects, np.int64), found)


def named_counts(counts: Iterable[tuple[str, int]]) -> str:
    """Counts by class name, the largest first, equal ones as given: `person 28, car 2`; many are cut short."""
    present = sorted(((name, count) for name, count in counts if count), key=lambda item: -item[1])
    more = len(present) - _CLASSES_NAMED
    listed = ", ".join(f"{name} {count}" for name, count in present[:_CLASSES_NAMED])
    return listed + (f" and {more} more classes" if more > 0 else "")
