"""Profile of one training step: kernels, launches, waits for the device; the trace is saved."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from gpu_kit.settings import Figures, Item, Settings
from gpu_kit.step import OURS, Step, synthetic_batch
from gpu_kit.training import WARM_UP, training_side

PROFILED = ("yolov7-tiny", "yolov9-c", "yolov6-s")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
READS = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")
"""Operators whose result the host reads, or whose size it needs."""
TOP = 15


def items(settings: Settings) -> list[Item]:
    """One step of a variant of each family."""
    names = settings.chosen(PROFILED)
    return [Item(name, functools.partial(measure, settings, name), 12.0, kind="profile") for name in names]


def measure(settings: Settings, variant: str) -> Figures:
    """All options on but compiling, on a synthetic batch."""
    device, side = torch.device(settings.device), training_side(settings, variant)
    step = Step(settings, variant, OURS, side)
    batch = step.on_host(synthetic_batch(settings, side))
    for _ in range(1 if settings.tiny else WARM_UP):
        step(batch)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as seen:
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
    trace = settings.folder / f"trace-{variant}.json.gz"
    seen.export_chrome_trace(str(trace))
    column = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=column, row_limit=40, max_name_column_width=70)
    with (settings.folder / "profile.txt").open("a", encoding="utf-8") as file:
        file.write(f"{variant}, {side} px, batch {settings.batch}\n{table}\n")
    return {
        "variant": variant,
        "side": side,
        "batch": settings.batch,
        "trace": trace.name,
        **summary(seen.events() or ()),
    }


def summary(events: Iterable[FunctionEvent]) -> Figures:
    """Counts and the most expensive kernels; without kernels the most expensive operators."""
    calls: Counter[str] = Counter()
    times: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for event in events:
        on_device = event.device_type == DeviceType.CUDA
        if not on_device:
            calls[event.name] += 1
        spent = event.time_range.elapsed_us() if on_device else event.self_cpu_time_total
        times[on_device][event.name] += spent
    kernels = {name: us for name, us in times[True].items() if not name.startswith(("Memcpy", "Memset"))}
    chosen = Counter(kernels) if kernels else times[False]
    whole = sum(chosen.values()) or 1.0
    return {
        "launches": sum(calls[name] for name in LAUNCHES),
        "waits": sum(calls[name] for name in WAITS),
        "copies": calls["cudaMemcpyAsync"],
        "reads": {name: calls[name] for name in READS},
        "operators": sum(count for name, count in calls.items() if name.startswith("aten::")),
        "kernel_ms": round(sum(kernels.values()) / 1e3, 3) if kernels else None,
        "top": [
            {"name": name[:120], "ms": round(us / 1e3, 4), "share": round(us / whole, 4)}
            for name, us in chosen.most_common(TOP)
        ],
    }
