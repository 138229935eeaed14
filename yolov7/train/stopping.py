"""Signals that ask a training to save its state and stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGTERM, signal

from yolov7.train.distributed import launched


class StopRequests:
    """Tells, when called, whether the trainer is asked to save and stop."""

    def __init__(self, orphaned: Callable[[], bool]) -> None:
        self.signals: list[int] = []
        """Those that have come, in their order."""
        self._orphaned = orphaned

    def __call__(self) -> bool:
        """True after the first signal."""
        return bool(self.signals) or self._orphaned()


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Yield a function that tells whether SIGTERM or SIGINT has asked the trainer to save and stop.

    A second signal ends the process at once. One of several processes keeps waiting for the others instead, and also
    stops when its parent is gone: an orphan would train alongside the next run.
    """
    several, parent = launched(), os.getppid()
    requests = StopRequests(lambda: several and os.getppid() != parent)

    def ask(signum: int, frame: object) -> None:
        if requests.signals and not several:
            raise SystemExit(128 + signum)
        requests.signals.append(signum)

    before = {number: signal(number, ask) for number in (SIGTERM, SIGINT)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal(number, handler)
