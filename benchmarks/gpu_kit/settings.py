"""Settings of a run of the kit, and the items that its parts consist of. Nothing here needs a package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRAINED = ("yolov7-tiny", "yolov7", "yolov7-w6", "yolov9-c", "yolov6-s")
"""Variants whose training is measured."""
SMALLEST = ("yolov6-n",)
"""The variant of a tiny run."""

Figures = dict[str, Any]
"""What an item found: plain values for JSON."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how large."""

    folder: Path
    """Traces and the log go here."""
    device: str = "cuda"
    tiny: bool = False
    """A few variants, small images, few rounds, no generated kernels: a trial of the kit itself."""
    side: int = 640
    """Side of the training images in pixels."""
    batch: int = 32
    """Images of a training batch, and of the large inference batch."""
    variants: tuple[str, ...] = ()
    """Only these; empty: all."""
    workers: int = 0
    """Loader processes; 0: as many as the machine has cores."""
    fail: tuple[str, ...] = ()
    """Parts that fail on purpose, to try what comes of it."""

    @property
    def seconds(self) -> float:
        """Time for the repeats of one figure."""
        return 0.02 if self.tiny else 0.5

    @property
    def steps(self) -> int:
        """Timed training steps of one figure, at least."""
        return 1 if self.tiny else 12

    def chosen(self, names: tuple[str, ...], few: tuple[str, ...] = SMALLEST) -> tuple[str, ...]:
        """Those of `names` that were asked for; in a tiny run `few` instead."""
        return few if self.tiny else tuple(name for name in names if not self.variants or name in self.variants)


@dataclass(frozen=True)
class Item:
    """One row of a part's table."""

    name: str
    measure: Callable[[], Figures]
    seconds: float = 5.0
    """Expected time on a GPU. An item that the time left does not allow is skipped."""
    kind: str = ""
    """Items of one kind take about as long as each other: the longest so far is the expectation for the next."""


@dataclass
class Expectations:
    """What the next item will take: the longest of its kind so far, at first its own guess."""

    longest: dict[str, float] = field(default_factory=dict)

    def of(self, item: Item) -> float:
        """Seconds."""
        return self.longest.get(item.kind or item.name, item.seconds)

    def saw(self, item: Item, seconds: float) -> None:
        """Learn from an item that ran."""
        kind = item.kind or item.name
        self.longest[kind] = max(self.longest.get(kind, 0.0), seconds)


class SkipItem(Exception):  # noqa: N818  no error
    """Raised by an item that cannot be measured here; its text says why."""


class FailedItem(Exception):  # noqa: N818
    """Raised by an item that has found a fault, with the figures that show it."""

    def __init__(self, why: str, figures: Figures) -> None:
        super().__init__(why)
        self.figures = figures
