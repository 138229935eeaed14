"""Decoded, resized images that all worker processes share, in memory or in a file."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolov7.errors import DataError
from yolov7.files import atomic_path

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

MEMORY_SHARE = 0.8
"""A cache takes at most this share of the memory, or of the disk, that is free when it is made."""


class ImageCache:
    """The first images of a data set, as many as fit, each stored once for all processes.

    Without `file` the memory is an unnamed file that lives in memory only (where the system has that; else a temporary
    file, already unlinked when the program ends). Forked workers inherit the mapping; others, to which the cache is
    pickled, map the same file. It is filled before any worker starts and never written again, so no locks are needed.

    With `file` the pixels lie on disk and outlive the program: a file that is there is mapped, not filled again, and
    the process that fills it locks the others out until it is complete. Its name must change with its inputs.
    """

    def __init__(
        self,
        shapes: NDArray[np.integer],
        read: Callable[[int], Image],
        *,
        limit: int | None = None,
        threads: int | None = None,
        file: Path | None = None,
    ) -> None:
        """`shapes` (I, 2) height, width of every image; `read` gives its pixels and is called from threads.

        `limit` in bytes (default: 80 % of what is free). Images that `read` refuses with a :class:`DataError` stay
        out, and so do those beyond the limit. Raises :class:`DataError` where `file` cannot be written.
        """
        self._shapes = np.asarray(shapes, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(3 * self._shapes.prod(1))])
        if file is None:
            self._fill_memory(read, limit, threads)
        else:
            self._map_or_fill_file(file, read, limit, threads)

    def _fill_memory(self, read: Callable[[int], Image], limit: int | None, threads: int | None) -> None:
        free = available_memory()
        fitting = self._fitting(int(free * MEMORY_SHARE) if limit is None else limit, "memory")
        try:
            self._path = _shared_file(self, max(int(self._starts[fitting]), 1))
        except OSError as error:  # a limit on the size of files (ulimit -f), to the system this is one
            log.warning("image cache: the system gives no memory for it (%s); images are decoded every time", error)
            fitting = 0
            self._path = _shared_file(self, 1)
        self._pixels = _map(self._path)
        self._present = np.zeros(fitting, np.bool_)
        self._fill(read, threads)
        log.info("image cache: %d images, %.2f GB", int(self._present.sum()), self._starts[fitting] / 2**30)

    def _map_or_fill_file(
        self, file: Path, read: Callable[[int], Image], limit: int | None, threads: int | None
    ) -> None:
        """The file holds the pixels of the first images and, behind them, a byte for each: whether it was readable."""
        # Imported here: it warns at once where a system has no file locks, and only this file needs one.
        from filelock import FileLock

        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # The system frees the lock if its holder is killed; the marker file that FileLock falls back to where the
            # file system has no locks would stay.
            with FileLock(file.with_suffix(".lock"), fallback_to_soft=False):
                if not file.is_file():
                    self._fill_file(file, read, limit, threads)
        except OSError as error:
            raise DataError(f"the image cache cannot be written: {error.strerror}", path=file) from None
        self._path, self._pixels = str(file), _map(str(file), writable=False)
        ends = self._starts + np.arange(len(self._starts))  # file sizes by number of images
        fitting = int(np.searchsorted(ends, len(self._pixels)))
        if fitting == len(ends) or ends[fitting] != len(self._pixels):
            raise DataError("the image cache is damaged; remove it and it is filled again", path=file)
        self._present = self._pixels[self._starts[fitting] :].view(np.bool_)
        log.info("image cache: %d images, %.2f GB in %s", int(self._present.sum()), len(self._pixels) / 2**30, file)

    def _fill_file(self, file: Path, read: Callable[[int], Image], limit: int | None, threads: int | None) -> None:
        for leftover in file.parent.glob(f".{file.stem}-*.tmp{file.suffix}"):  # of a program that was killed
            leftover.unlink(missing_ok=True)
        free = shutil.disk_usage(file.parent).free
        fitting = self._fitting(int(free * MEMORY_SHARE) if limit is None else limit, "disk space")
        total = int(self._starts[fitting])
        with atomic_path(file) as temporary:
            with temporary.open("r+b") as handle:
                # Claimed, not only promised: writing to a mapped file when the disk is full would end the program.
                claim = os.posix_fallocate if hasattr(os, "posix_fallocate") else _promise
                claim(handle.fileno(), 0, max(total + fitting, 1))
            self._pixels = _map(str(temporary))
            self._present = self._pixels[total : total + fitting].view(np.bool_)
            self._fill(read, threads)

    def _fitting(self, limit: int, what: str) -> int:
        """Number of images, counted from the first, that fit into `limit` bytes."""
        count = len(self._shapes)
        fitting = int(np.searchsorted(self._starts[1:] + np.arange(1, count + 1), limit, side="right"))
        if fitting < count:
            log.warning(
                "image cache: %d of %d images fit into %.1f GB of free %s; the others are decoded every time",
                fitting, count, limit / 2**30, what,
            )  # fmt: skip
        return fitting

    def _fill(self, read: Callable[[int], Image], threads: int | None) -> None:
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            self._present[:] = list(pool.map(lambda i: self._store(i, read), range(len(self._present))))

    def _store(self, i: int, read: Callable[[int], Image]) -> bool:
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
        state = {name: value for name, value in self.__dict__.items() if name != "_pixels"}
        return state | {"_present": np.array(self._present)}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._pixels = _map(self._path, writable=False)


def available_memory() -> int:
    """Bytes a new allocation may take: the system's available memory, or less inside a memory-limited container."""
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
        weakref.finalize(owner, os.close, handle)
        os.truncate(handle, size)
        return f"/proc/{os.getpid()}/fd/{handle}"
    handle, path = tempfile.mkstemp(prefix="yolov7-image-cache-")
    weakref.finalize(owner, _unlink, path)
    try:
        os.truncate(handle, size)
    finally:
        os.close(handle)
    return path


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):  # some systems refuse while it is mapped
        Path(path).unlink()


def _promise(handle: int, _start: int, size: int) -> None:
    os.truncate(handle, size)


def _map(path: str, *, writable: bool = True) -> Image:
    with Path(path).open("r+b" if writable else "rb") as file:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=access), np.uint8)
