"""Confidence intervals of AP by resampling the images with replacement (the percentile bootstrap).

A test split is a sample; another one of its size would give another AP. Two models on the same images share that luck,
so their difference is resampled in pairs, the same images for both: a much narrower interval than two separate ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolov7.errors import DataError
from yolov7.evaluate.matches import Matching


@dataclass(frozen=True)
class Interval:
    """A figure and its interval from `low` to `high` at the requested confidence."""

    value: float
    low: float
    high: float


def ap_interval(matches: Matching, *, resamples: int = 200, confidence: float = 0.95, seed: int = 0) -> Interval:
    """AP with its interval over images; the same seed gives the same interval.

    Resamples without any object, whose AP is undefined, are left out.
    """
    drawn = [matches.average_precision(weights) for weights in _draws(matches, resamples, seed)]
    return _interval(matches.average_precision(), drawn, confidence)


def ap_difference_interval(
    first: Matching, second: Matching, *, resamples: int = 200, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """AP of `first` minus AP of `second`, resampled in pairs.

    Raises :class:`DataError` if the two were not matched on the same images with the same objects.
    """
    if first.image_ids != second.image_ids or not np.array_equal(first.truths, second.truths):
        raise DataError("the two evaluations are of different images or annotations and cannot be compared")
    drawn = [
        first.average_precision(weights) - second.average_precision(weights)
        for weights in _draws(first, resamples, seed)
    ]
    return _interval(first.average_precision() - second.average_precision(), drawn, confidence)


def _draws(matches: Matching, resamples: int, seed: int) -> np.ndarray:
    """(at most resamples, images): how often each image was drawn, in total as often as there are images.

    Draws without any object are left out: they have no AP.
    """
    images = len(matches.image_ids)
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    return drawn[drawn @ matches.truths.sum(axis=0) > 0]


def _interval(value: float, drawn: list[float], confidence: float) -> Interval:
    if not drawn:  # no object at all
        return Interval(float(value), float(value), float(value))
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))
