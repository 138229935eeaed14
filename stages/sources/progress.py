"""A log line every few seconds while something is fetched."""

from __future__ import annotations

import logging
import threading
import time

from yolov7.folders import gigabytes

logger = logging.getLogger(__name__)

_EVERY = 5.0
"""Seconds between two lines."""


class Progress:
    """Counts bytes, and objects where there are several, from any thread."""

    def __init__(self, name: str, *, have: int = 0, total: int | None, objects: int | None = None):
        self.name, self.have, self.total, self.objects = name, have, total, objects
        self._start, self._since = have, time.monotonic()
        self._logged = self._since
        self._done = 0
        self._lock = threading.Lock()

    def add(self, size: int, *, objects: int = 0) -> None:
        """`size` more bytes have arrived, and that many more objects are complete."""
        with self._lock:
            self.have += size
            self._done += objects
            now = time.monotonic()
            if now - self._logged < _EVERY:
                return
            self._logged = now
            speed = (self.have - self._start) / (now - self._since)
            whole = "" if self.total is None else f" of {gigabytes(self.total)}"
            count = "" if self.objects is None else f"{self._done} of {self.objects} objects, "
            logger.info("%s: %s%s%s, %.1f MB/s", self.name, count, gigabytes(self.have), whole, speed / 1e6)
