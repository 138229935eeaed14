"""Locks between the processes of one machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the exclusive lock on `path`, waiting for it as long as it takes.

    The lock belongs to the open file: the system frees it when the process ends, however it ends. The file stays
    behind, empty; removing it could split waiters into two groups that do not see each other. Not re-entrant: taking
    the same lock twice in one thread raises :class:`RuntimeError`.
    """
    with try_file_lock(path, wait=True):
        yield


@contextlib.contextmanager
def try_file_lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Like :func:`file_lock`, but yields False at once where another process holds the lock and `wait` is false."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # No fallback to a marker file where the file system has no locks: a marker outlives a killed process.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
