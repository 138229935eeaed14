"""How long a detector takes: preparing an image, the network, and what comes after it, each by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from yolov7.predict.predictor import Predictor, stack, to_original
from yolov7.predict.runtimes import Runtime


@dataclass(frozen=True)
class Timing:
    """One part, in milliseconds per batch over all rounds."""

    part: str
    median: float
    low: float
    """10th percentile."""
    high: float
    """90th percentile."""


@dataclass(frozen=True)
class Benchmark:
    """Latency of a detector."""

    variant: str
    runtime: str
    image_size: tuple[int, int]
    """(height, width) of the network's input."""
    batch_size: int
    rounds: int
    detections: float
    """Mean number of detections per image: what comes after the network takes longer the more there are."""
    timings: tuple[Timing, ...]
    """preprocessing, network, suppression, total. A network with the suppression inside has no part of that name."""

    @property
    def images_per_second(self) -> float:
        """Throughput by the median of the total."""
        return 1000.0 * self.batch_size / self.timings[-1].median

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "images_per_second": self.images_per_second}


def benchmark(
    predictor: Predictor, images: Sequence[np.ndarray], *, rounds: int = 30, warmup: int = 5, batch_size: int = 1
) -> Benchmark:
    """Time `rounds` batches after `warmup` untimed ones, going through `images` (uint8 HWC RGB) round and round.

    The parts of a round are timed one after the other, so they add up to its total. On an accelerator each part ends
    with a synchronisation.
    """
    runtime = predictor.runtime
    rows: list[list[float]] = []
    found = 0
    for number in range(-warmup, rounds):
        start = (number % rounds) * batch_size
        chosen = [images[(start + i) % len(images)] for i in range(batch_size)]
        marks = [time.perf_counter()]
        prepared = [predictor.prepare(image) for image in chosen]
        batch = stack([one.image for one in prepared])
        marks.append(time.perf_counter())
        if isinstance(runtime, Runtime):
            decoded = runtime.decoded(batch)
            _synchronise(decoded)
            marks.append(time.perf_counter())
            detections = predictor.suppress(decoded)
        else:
            detections = predictor.detect(batch)
            marks.append(time.perf_counter())
        mapped = [to_original(d, p.scale, p.pad, p.size) for d, p in zip(detections, prepared, strict=True)]
        marks.append(time.perf_counter())
        if number >= 0:
            rows.append([1000.0 * value for value in (*np.diff(marks), marks[-1] - marks[0])])
            found += sum(map(len, mapped))
    parts = ("preprocessing", "network", "suppression" if isinstance(runtime, Runtime) else "mapping back", "total")
    summary = np.percentile(np.array(rows), [50, 10, 90], axis=0)  # (3, parts)
    return Benchmark(
        variant=predictor.metadata.variant,
        runtime=type(runtime).__name__,
        image_size=predictor.canvas,
        batch_size=batch_size,
        rounds=rounds,
        detections=found / (rounds * batch_size),
        timings=tuple(Timing(part, *map(float, summary[:, i])) for i, part in enumerate(parts)),
    )


def _synchronise(result: torch.Tensor) -> None:
    """Wait for an accelerator; a CPU is always done."""
    if result.device.type != "cpu":
        synchronise: Callable[[], None] = getattr(torch, result.device.type).synchronize
        synchronise()
