"""A log line now and then in long work over many items, with the time left."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

_EVERY = 15.0
"""Seconds between two lines; shorter work is silent."""


class Progress:
    """Counts items."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._done = 0
        self._started = self._told = time.monotonic()

    def add(self, count: int = 1) -> None:
        """That many more items are done."""
        self._done += count
        now = time.monotonic()
        if now - self._told < _EVERY or self._done >= self._total:
            return
        self._told = now
        speed = self._done / (now - self._started)
        left = time_left((self._total - self._done) / speed)
        logger.info(
            "%s: %s of %s, %.0f a second, %s left", self._what, f"{self._done:,}", f"{self._total:,}", speed, left
        )


def time_left(seconds: float) -> str:
    """A time in words that fit its size: `40 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
