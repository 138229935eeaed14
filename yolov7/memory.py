"""Peak memory of this process."""

from __future__ import annotations

import math
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


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
