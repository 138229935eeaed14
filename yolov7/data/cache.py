"""Decoded, resized images in memory that all worker processes share."""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolov7.errors import DataError

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

MEMORY_SHARE = 0.8
"""The cache takes at most this share of the memory that is free when it is made."""


class ImageCache:
    """The first images of a data set, as many as fit, each stored once for all processes.

    The memory is an unnamed file that lives in memory only (where the system has that; else a temporary file, already
    unlinked when the program ends). Forked workers inherit the mapping; others, to which the cache is pickled, map the
    same file. It is filled before any worker starts and never written again, so no locks are needed.
    """

    def __init__(
        self,
        shapes: NDArray[np.integer],
        read: Callable[[int], Image],
        *,
        limit: int | None = None,
        threads: int | None = None,
    ) -> None:
        """`shapes` (I, 2) height, width of every image; `read` gives its pixels and is called from threads.

        `limit` in bytes (default: 80 % of the free memory). Images that `read` refuses with a :class:`DataError` stay
        out, and so do those beyond the limit.
        """
        limit = int(available_memory() * MEMORY_SHARE) if limit is None else limit
        self._shapes = np.asarray(shapes, np.int64)
        ends = np.cumsum(3 * self._shapes.prod(1))
        self._starts = ends - 3 * self._shapes.prod(1)
        fitting = int(np.searchsorted(ends, limit, side="right"))
        self._present = np.zeros(fitting, np.bool_)
        total = int(ends[fitting - 1]) if fitting else 0
        if fitting < len(ends):
            log.warning(
                "image cache: %d of %d images fit into %.1f GB of free memory; the others are decoded every time",
                fitting, len(ends), limit / 2**30,
            )  # fmt: skip
        self._path = _shared_file(self, max(total, 1))
        self._pixels = _map(self._path)
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            self._present[:] = list(pool.map(lambda i: self._fill(i, read), range(fitting)))
        log.info("image cache: %d images, %.2f GB", int(self._present.sum()), total / 2**30)

    def _fill(self, i: int, read: Callable[[int], Image]) -> bool:
        try:
            self._view(i)[:] = read(i)
        except DataError as error:
            log.warning("image cache: %s", error)
            return False
        return True

    def _view(self, i: int) -> Image:
        height, width = self._shapes[i]
        start = self._starts[i]
        return self._pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def get(self, i: int) -> Image | None:
        """Pixels (h, w, 3) of image `i`, read-only by agreement, or None where it is not cached."""
        return self._view(i) if i < len(self._present) and self._present[i] else None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._pixels = _map(self._path)


def available_memory() -> int:
    """Bytes a new allocation may take: what the system calls available, or less inside a memory-limited container."""
    free = _meminfo_available()
    if free is None:
        names = getattr(os, "sysconf_names", {})
        pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else 2**18
        free = pages * (os.sysconf("SC_PAGE_SIZE") if "SC_PAGE_SIZE" in names else 4096) // 2
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    return free if limit is None or used is None else max(min(free, limit - used), 0)


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(values[0]) * 1024 if values else None


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # no such control group, or the word `max`
        return None


def _shared_file(owner: object, size: int) -> str:
    """A file of `size` bytes under a path that other processes of this user can open while `owner` lives."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("yolov7-image-cache")
        os.truncate(handle, size)
        weakref.finalize(owner, os.close, handle)
        return f"/proc/{os.getpid()}/fd/{handle}"
    handle, path = tempfile.mkstemp(prefix="yolov7-image-cache-")
    os.truncate(handle, size)
    os.close(handle)
    weakref.finalize(owner, Path(path).unlink, missing_ok=True)
    return path


def _map(path: str) -> Image:
    with Path(path).open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)
