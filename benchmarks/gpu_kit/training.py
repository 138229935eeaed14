"""Training images per second: the plain way, and each of our options switched on in turn."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import torch

from gpu_kit.clock import busy_ms, driver_load, reset_peak, synchronize
from gpu_kit.settings import TRAINED, Figures, Item, Settings
from gpu_kit.step import OURS, PLAIN, Step, Way, ladder, synthetic_batch
from yolov7.catalogue import listed_infos
from yolov7.device import peak_memory_gib

WARM_UP = 4
"""Untimed steps: libraries choose their methods, the loss scale finds its place."""


def items(settings: Settings) -> list[Item]:
    """First the plain way and ours of every variant, then the steps between them, compiling last."""
    names, ways = settings.chosen(TRAINED), ladder()
    if settings.tiny:
        few = [_item(settings, name, *way) for name in names for way in (ways[0], *ways[-2:])]
        return [*few, _item(settings, "yolov7-tiny", *ways[0])]
    ends = [way for way in ways if way[1] in (PLAIN, OURS)]
    between = [way for way in ways if way not in ends and not way[1].compile]
    order = [(name, way) for group in (ends, between, ways[-1:]) for name in names for way in group]
    return [_item(settings, name, *way) for name, way in order]


def _item(settings: Settings, variant: str, label: str, way: Way) -> Item:
    call = functools.partial(measure, settings, variant, label, way)
    guess, kind = (60.0, f"compile {variant}") if way.compile else (8.0, variant)
    return Item(f"{variant}, {label}", call, guess, kind=kind)


def training_side(settings: Settings, variant: str) -> int:
    """Side of the images: that of the settings, in a tiny run the least that fits."""
    stride = next(max(info.strides) for info in listed_infos([variant]))
    return max(64, 2 * stride) if settings.tiny else settings.side


def measure(settings: Settings, variant: str, label: str, way: Way) -> Figures:
    """A step on the same synthetic batch again and again; the copy to the device included."""
    device, side = torch.device(settings.device), training_side(settings, variant)
    reset_peak(device)
    step = Step(settings, variant, way, side)
    batch = step.on_host(synthetic_batch(settings, side))
    started = time.perf_counter()
    losses = [float(step(batch)) for _ in range(1 if settings.tiny else WARM_UP)]
    ready = time.perf_counter() - started
    with driver_load(device) as load:
        ms, count = step_ms(lambda: step(batch), device, settings)
    busy = busy_ms(lambda: step(batch), device)
    if not math.isfinite(losses[0]):
        raise ValueError(f"the first loss is {losses[0]}")
    return {
        "variant": variant,
        "way": label,
        "options": way.names(),
        "side": side,
        "batch": settings.batch,
        "steps": count,
        "step_ms": round(ms, 3),
        "images_s": round(settings.batch / ms * 1e3, 1),
        "device_ms": None if busy is None else round(busy, 3),
        "busy": None if busy is None else round(min(busy / ms, 1.0), 3),
        "driver_busy": round(sum(load) / len(load) / 100, 3) if load else None,
        "memory_gib": round(peak_memory_gib(device), 3),
        "warm_up_s": round(ready, 2),
        "loss": round(losses[0], 4),
    }


def step_ms(call: Callable[[], object], device: torch.device, settings: Settings) -> tuple[float, int]:
    """Milliseconds of a step, and how many were timed: at least some, and at least two seconds of them."""
    synchronize(device)
    started, count = time.perf_counter(), 0
    while count < settings.steps or (not settings.tiny and time.perf_counter() - started < 2):
        call()
        count += 1
    synchronize(device)
    return (time.perf_counter() - started) / count * 1e3, count
