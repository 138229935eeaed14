"""The real loader on JPEGs written for the occasion: its own speed, and training fed by it."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch
from train_step import photographs

from gpu_kit.clock import busy_ms, driver_load, reset_peak, synchronize
from gpu_kit.settings import TRAINED, Figures, Item, Settings
from gpu_kit.step import OURS, Batch, Step, parameters
from gpu_kit.training import WARM_UP, training_side
from yolov7.data.dataset import TrainDataset
from yolov7.data.loader import TrainLoader
from yolov7.device import peak_memory_gib, pins_memory

IMAGES = 16384
"""Enough that the end of an epoch, where the workers run dry, hardly counts."""
CACHED = 4096
"""As many where all are decoded first, by one process."""
SPARED = "images cached, colours on the device"
"""`train.cache: ram` and `augment.hsv_on_device: true`."""


def items(settings: Settings) -> list[Item]:
    """One core, all cores, then training; at last with what spares the loader most."""
    names = settings.chosen(TRAINED)
    found = [
        Item("one core", functools.partial(one_core, settings), 10.0),
        Item("loader alone", functools.partial(alone, settings), 15.0),
    ]
    found += [Item(name, functools.partial(trained, settings, name), 20.0, kind="trained") for name in names]
    spared = functools.partial(trained, settings, names[0], spared=True) if names else None
    return [*found, Item(f"{names[0]}, {SPARED}", spared, 40.0)] if spared else found


def first(settings: Settings) -> str:
    """The variant whose recipe the loader is measured with."""
    return (settings.chosen(TRAINED) or TRAINED)[0]


def workers(settings: Settings) -> int:
    """Loader processes."""
    return settings.workers or os.cpu_count() or 1


@contextlib.contextmanager
def loader_of(settings: Settings, variant: str, *, processes: int, spared: bool = False) -> Iterator[TrainLoader]:
    """The loader of a variant's published recipe on fresh photographs; `spared`: cached, colours on the device."""
    side = training_side(settings, variant)
    with tempfile.TemporaryDirectory() as folder:
        index = photographs(Path(folder), 32 if settings.tiny else CACHED if spared else IMAGES)
        params = parameters(settings, variant, side)
        augment = params.augment.model_copy(update={"hsv_on_device": spared})
        dataset = TrainDataset(index, image_size=side, augment=augment, seed=0, cache="ram" if spared else "none")
        pinned = pins_memory(torch.device(settings.device))
        loader = TrainLoader(dataset, batch_size=settings.batch, workers=processes, pin_memory=pinned)
        try:
            yield loader
        finally:
            loader.close()


def batches(loader: TrainLoader) -> Iterator[Batch]:
    """Batches of one epoch after the other."""
    epoch = 0
    while True:
        for batch in loader.epoch(epoch):
            yield Batch(batch.images, batch.targets, batch.tables)
        epoch += 1


def one_core(settings: Settings) -> Figures:
    """Processor time of an image of yolov7-tiny's recipe in one process."""
    variant = first(settings)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with loader_of(settings, variant, processes=0) as loader:
        source = batches(loader)
        next(source)
        started, count = time.process_time(), 0
        while count < settings.batch * (1 if settings.tiny else 8):
            count += len(next(source).images)
        seconds = (time.process_time() - started) / count
    return {"variant": variant, "image_ms": round(seconds * 1e3, 3), "images_s": round(1 / seconds, 1)}


def alone(settings: Settings) -> Figures:
    """Images per second of all workers, without a network."""
    count, variant = workers(settings), first(settings)
    with loader_of(settings, variant, processes=count) as loader:
        source = batches(loader)
        for _ in range(1 if settings.tiny else 2 * count):  # what was prepared while the processes started
            next(source)
        started, images = time.perf_counter(), 0
        while images < settings.batch or (not settings.tiny and time.perf_counter() - started < 4):
            images += len(next(source).images)
        rate = images / (time.perf_counter() - started)
    return {"variant": variant, "workers": count, "images_s": round(rate, 1)}


def trained(settings: Settings, variant: str, *, spared: bool = False) -> Figures:
    """Training with all options but compiling, fed by the loader."""
    device, count = torch.device(settings.device), workers(settings)
    reset_peak(device)
    step = Step(settings, variant, OURS, training_side(settings, variant))
    with loader_of(settings, variant, processes=count, spared=spared) as loader:
        source = batches(loader)
        for _ in range(1 if settings.tiny else WARM_UP):
            kept = next(source)
            step(kept)
        busy = busy_ms(lambda: step(kept), device)
        synchronize(device)
        for _ in range(0 if settings.tiny else 2 * count):  # what the processes had prepared meanwhile
            step(next(source))
        synchronize(device)
        with driver_load(device) as load:
            ms, waited, steps = _run(settings, device, step, source)
    return {
        "variant": variant,
        "workers": count,
        "batch": settings.batch,
        "side": step.side,
        "steps": steps,
        "step_ms": round(ms, 3),
        "images_s": round(settings.batch / ms * 1e3, 1),
        "waited": round(waited, 3),
        "busy": None if busy is None else round(min(busy / ms, 1.0), 3),
        "driver_busy": round(sum(load) / len(load) / 100, 3) if load else None,
        "memory_gib": round(peak_memory_gib(device), 3),
    }


def _run(settings: Settings, device: torch.device, step: Step, source: Iterator[Batch]) -> tuple[float, float, int]:
    """Milliseconds of a step, share of time spent waiting for the loader, steps; of four seconds at least."""
    started, waited, steps = time.perf_counter(), 0.0, 0
    while steps < settings.steps or (not settings.tiny and time.perf_counter() - started < 4):
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        step(batch)
        steps += 1
    synchronize(device)
    seconds = time.perf_counter() - started
    return seconds / steps * 1e3, waited / seconds, steps
