"""Latency of exported files side by side, on the same test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.project.params import Evaluate
from yolov7.data.decode import read_image
from yolov7.data.index import Index
from yolov7.predict import load_detector
from yolov7.predict.benchmark import Benchmark, compare

TIMED_IMAGES = 20


def first_images(index: Index, most: int = TIMED_IMAGES) -> list[np.ndarray]:
    """The first images of the test split."""
    return [read_image(index.image_path(position)) for position in range(min(most, len(index)))]


def timed(
    files: Mapping[str, Path], images: Sequence[np.ndarray], settings: Evaluate, *, rounds: int = TIMED_IMAGES
) -> dict[str, Benchmark]:
    """Time each file, all in turn, with the views of its evaluation: AP of several views needs their time."""
    predictors = {
        name: load_detector(file, augment=settings.augment, rectangular=settings.rectangular)
        for name, file in files.items()
    }
    return compare(predictors, list(images), rounds=rounds, warmup=3)
