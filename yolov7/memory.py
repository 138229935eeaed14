"""Memory of this process: its peak, and what becomes of freed blocks."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_STATUS = Path("/proc/self/status")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # parameters of glibc's mallopt(3)
_LARGEST_THRESHOLD = 32 << 20  # glibc raises its thresholds by itself up to this and twice this
_MOST_MAPPINGS = 1 << 16  # glibc's default
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def peak_memory_gib() -> float:
    """Largest resident memory of this process in GiB since its program started; NaN where the system has no such count.

    Not `ru_maxrss` on Linux: a process inherits it from its parent, so a small program started by a large one would
    report the parent's size.
    """
    if _STATUS.exists():
        (peak,) = (line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak) / 2**20
    try:
        import resource
    except ImportError:
        return math.nan
    # macOS counts in bytes, other systems in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Inside it large blocks that are freed stay with this process, for the next ones; whether they do.

    glibc maps every block of 32 MiB or more on its own and unmaps it when it is freed. In a training on the CPU most
    feature maps are that large, so each step has the system find and clear all of their pages again, which is up to a
    third of its time (docs/benchmarks.md). On exit the free blocks go back to the system. Nothing changes with another
    C library, or where the environment configures glibc's allocator (mallopt(3)).
    """
    library = _allocator()
    if library is None:
        yield False
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)  # never
    try:
        yield True
    finally:
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """End what :func:`freed_memory_kept` began, in a process forked inside it: free blocks go back to the system.

    Otherwise the child would hold the parent's free blocks too, and the parent, writing to them, pay for a copy.
    """
    library = _allocator()
    if library is not None:
        library.mallopt(_MMAP_MAX, _MOST_MAPPINGS)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        library.malloc_trim(0)


def _allocator() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc and its allocator not configured by the environment."""
    configured = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name in os.environ for name in _SETTINGS)
    if configured or not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
