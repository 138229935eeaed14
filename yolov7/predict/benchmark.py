"""Latency of a detector: preprocessing, network and postprocessing, each by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolov7.artefact import FILES, PrecisionName, RuntimeName, read_description
from yolov7.model import create_model
from yolov7.model.variants import find_variant
from yolov7.predict.predictor import Predictor, stack, to_original
from yolov7.predict.runtimes import DecodingFile, DetectingFile, DetectingRuntime, Runtime, TorchRuntime


@dataclass(frozen=True)
class Timing:
    """Milliseconds per batch of one part, over all rounds."""

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
    precision: str
    """Of the file: float32, float16 or int8."""
    threads: int
    """Threads requested; 0: the runtime's own choice."""
    image_size: tuple[int, int]
    """(height, width) of the network's input."""
    batch_size: int
    rounds: int
    detections: float
    """Mean number of detections per image; postprocessing takes longer the more there are."""
    timings: tuple[Timing, ...]
    """preprocessing, network, suppression, total; `mapping back` instead of suppression if that is inside the file."""

    @property
    def images_per_second(self) -> float:
        """Throughput by the median of the total."""
        return 1000.0 * self.batch_size / self.timings[-1].median

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "images_per_second": self.images_per_second}


def benchmark(
    predictor: Predictor,
    images: Sequence[np.ndarray],
    *,
    rounds: int = 30,
    warmup: int = 5,
    batch_size: int = 1,
    threads: int = 0,
) -> Benchmark:
    """Time `rounds` batches after `warmup` untimed ones, going through `images` (uint8 HWC RGB) round and round.

    The parts of a round are timed one after the other, so they add up to its total. On an accelerator each part ends
    with a synchronisation. `threads` is the predictor's number, for the record.
    """
    return compare({"": predictor}, images, rounds=rounds, warmup=warmup, batch_size=batch_size, threads=threads)[""]


def compare(
    predictors: Mapping[str, Predictor],
    images: Sequence[np.ndarray],
    *,
    rounds: int = 30,
    warmup: int = 5,
    batch_size: int = 1,
    threads: int = 0,
) -> dict[str, Benchmark]:
    """:func:`benchmark` of several, by name. In each round all of them run the same batch in turn, so that other load
    on the machine affects all alike.
    """
    rows: dict[str, list[list[float]]] = {name: [] for name in predictors}
    found = dict.fromkeys(predictors, 0)
    for number in range(-warmup, rounds):
        start = (number % rounds) * batch_size
        chosen = [images[(start + i) % len(images)] for i in range(batch_size)]
        for name, predictor in predictors.items():
            row, detections = _round(predictor, chosen)
            if number >= 0:
                rows[name].append(row)
                found[name] += detections
    return {
        name: _summary(predictor, rows[name], found[name], batch_size, threads)
        for name, predictor in predictors.items()
    }


def _round(predictor: Predictor, chosen: Sequence[np.ndarray]) -> tuple[list[float], int]:
    """Milliseconds of each part and in total, and the number of detections."""
    runtime = predictor.runtime
    marks = [time.perf_counter()]
    prepared = [predictor.prepare(image) for image in chosen]
    batch = stack([fitted.image for fitted in prepared])
    marks.append(time.perf_counter())
    if isinstance(runtime, Runtime):
        decoded = runtime.decoded(batch)
        _synchronise(decoded)
        marks.append(time.perf_counter())
        detections = predictor.suppress(decoded)
    else:
        detections = predictor.detect(batch)
        marks.append(time.perf_counter())
    mapped = [to_original(found, fitted) for found, fitted in zip(detections, prepared, strict=True)]
    marks.append(time.perf_counter())
    return [1000.0 * value for value in (*np.diff(marks), marks[-1] - marks[0])], sum(map(len, mapped))


def _summary(predictor: Predictor, rows: list[list[float]], found: int, batch_size: int, threads: int) -> Benchmark:
    decodes = isinstance(predictor.runtime, Runtime)
    parts = ("preprocessing", "network", "suppression" if decodes else "mapping back", "total")
    summary = np.percentile(np.array(rows), [50, 10, 90], axis=0)  # (3, parts)
    return Benchmark(
        variant=predictor.metadata.variant,
        runtime=type(predictor.runtime).__name__,
        precision=precision_of(predictor.runtime),
        threads=threads,
        image_size=predictor.canvas,
        batch_size=batch_size,
        rounds=len(rows),
        detections=found / (len(rows) * batch_size),
        timings=tuple(Timing(part, *map(float, summary[:, i])) for i, part in enumerate(parts)),
    )


def precision_of(runtime: Runtime | DetectingRuntime) -> str:
    """float32, float16 or int8, as the file states; PyTorch computes in float32."""
    file = runtime.file if isinstance(runtime, DecodingFile | DetectingFile) else None
    return "float32" if file is None else str(file.about.contract.get("precision", "float32"))


def reference(like: Predictor, *, network: str | None = None) -> Predictor:
    """The network of `like` as PyTorch runs it by default: training form, contiguous float32, eager mode.

    Weights are random, which takes as long as trained ones. `network` is MODULE:FUNCTION of a user's own network.
    Raises :class:`ModelError` for a network that the library does not know and that is not given.
    """
    metadata = like.metadata
    variant = find_variant(metadata.variant, source=network) if network else metadata.variant
    model = create_model(variant, metadata.num_classes)
    runtime = TorchRuntime(model, replace(metadata, form="training"))
    runtime.input_shape = (None, *like.canvas)  # square or not: the same input
    return Predictor(runtime, **asdict(like.thresholds))


def files_in(folder: str | os.PathLike[str]) -> list[tuple[RuntimeName, PrecisionName]]:
    """Runtimes and precisions of the files that an export folder lists."""
    listed = read_description(Path(folder))["files"]
    return [key for key, name in FILES.items() if name in listed]


def _synchronise(result: torch.Tensor) -> None:
    """Wait for an accelerator; a CPU is always done."""
    if result.device.type != "cpu":
        synchronise: Callable[[], None] = getattr(torch, result.device.type).synchronize
        synchronise()
