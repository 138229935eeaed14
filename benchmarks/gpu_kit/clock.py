"""Times of calls on a device, the share of time that it is busy, and its load as the driver reports it."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import torch

WARM_UP, LEAST, MOST = 3, 5, 100


def synchronize(device: torch.device) -> None:
    """Wait for everything that was asked of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(
    call: Callable[[], object], device: torch.device, *, seconds: float = 0.5, warm_up: int = WARM_UP
) -> float:
    """Median milliseconds of a call, of as many repeats as fit into `seconds` (at least 5, at most 100).

    On a GPU the time between two events of the stream: a queue that is never empty hides the time of launching, as in
    a loop over batches; where launching is slower than the work, it is the launching that is measured.
    """
    for _ in range(warm_up):
        call()
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    once = max(time.perf_counter() - started, 1e-7)
    repeats = min(max(int(seconds / once), LEAST), MOST)
    if device.type != "cuda":
        return statistics.median(_timed(call) for _ in range(repeats)) * 1e3
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    synchronize(device)
    return statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(marks))


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def total_ms(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end) in microseconds, in milliseconds."""
    whole, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        whole += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return whole / 1e3


def busy_ms(call: Callable[[], object], device: torch.device, *, rounds: int = 3) -> float | None:
    """Milliseconds that a call keeps the device busy: the union of its kernels and copies; None where none is seen."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(rounds):
                call()
            synchronize(device)
    except RuntimeError as error:  # a driver that lets nobody count; the other figures stand
        print(f"the profiler does not work here: {error}", flush=True)
        return None
    intervals = [
        (event.time_range.start, event.time_range.end)
        for event in seen.events() or ()
        if event.device_type == DeviceType.CUDA
    ]
    return total_ms(intervals) / rounds if intervals else None


@contextlib.contextmanager
def driver_load(device: torch.device) -> Iterator[list[int]]:
    """Percentages of time with a kernel running, as `nvidia-smi` samples them; filled at the end, empty without it."""
    samples: list[int] = []
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        yield samples
        return
    command = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        reader = threading.Thread(target=_collect, args=(process, samples), daemon=True)
        reader.start()
        try:
            yield samples
        finally:
            process.terminate()
            reader.join(2)


def _collect(process: subprocess.Popen[str], samples: list[int]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdecimal():
            samples.append(int(line))


def reset_peak(device: torch.device) -> None:
    """Forget the peak of memory so far."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
