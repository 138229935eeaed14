"""Anchors that fit the data: best possible recall, k-means, evolution (reference sheet: training, section 5).

Sizes are width, height in pixels of the training image. All randomness comes from the generator that is passed in.

Legend: M boxes, K anchors, L levels, A anchors per level.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from yolov7.errors import DataError

log = logging.getLogger(__name__)

Sizes = NDArray[np.float64]

ENOUGH = 0.98  # anchors that reach this share of the boxes are kept
SMALLEST = 2.0  # pixels: smaller boxes do not shape the anchors, and no anchor is smaller
# Beyond this many boxes a sample is enough: its quantiles are within a percent of the whole, and COCO's 860,000 boxes
# would take minutes.
SAMPLE = 20_000
RESTARTS, ROUNDS = 30, 100


def best_possible_recall(sizes: NDArray[np.floating], anchors: NDArray[np.floating], threshold: float = 4.0) -> float:
    """Share of the boxes (M, 2) whose best anchor of (K, 2) has no side longer or shorter by `threshold`.

    1 without boxes.
    """
    if not len(sizes):
        return 1.0
    return float((_best_match(sizes, anchors) > 1 / threshold).mean())


def fit_anchors(
    sizes: NDArray[np.floating],
    count: int,
    generator: np.random.Generator,
    threshold: float = 4.0,
    generations: int = 1000,
) -> Sizes:
    """`count` anchors (count, 2) for the box sizes (M, 2), by area: k-means on whitened sizes, then evolution.

    Raises :class:`DataError` with fewer usable boxes than anchors.
    """
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    usable = sizes[np.isfinite(sizes).all(axis=1) & (sizes > 0).all(axis=1) & (sizes >= SMALLEST).any(axis=1)]
    if len(usable) < count:
        raise DataError(f"{count} anchors need as many boxes of {SMALLEST:g} pixels or more, there are {len(usable)}")
    if len(usable) > SAMPLE:
        usable = usable[generator.choice(len(usable), SAMPLE, replace=False)]
    spread = usable.std(axis=0)
    spread[spread == 0] = 1.0
    anchors = np.maximum(_k_means(usable / spread, count, generator) * spread, SMALLEST)
    anchors = _evolve(usable, anchors, generator, threshold, generations)
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def check_anchors(
    sizes: NDArray[np.floating], anchors: NDArray[np.floating], threshold: float, generator: np.random.Generator
) -> Sizes:
    """The anchors (L, A, 2) to train with, for box sizes (M, 2).

    The given ones if they reach 98 % of the boxes; otherwise fitted ones, if these reach more. Their levels go from
    small to large. Boxes without finite, positive sides do not count.
    """
    given = np.asarray(anchors, dtype=np.float64)
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    sizes = sizes[np.isfinite(sizes).all(axis=1) & (sizes > 0).all(axis=1)]
    flat = given.reshape(-1, 2)
    present = best_possible_recall(sizes, flat, threshold)
    if present >= ENOUGH or int((sizes >= SMALLEST).any(axis=1).sum()) < len(flat):
        return given
    fitted = fit_anchors(sizes, len(flat), generator, threshold)
    reached = best_possible_recall(sizes, fitted, threshold)
    log.info("anchors: the given ones reach %.1f %% of the boxes, fitted ones %.1f %%", 100 * present, 100 * reached)
    return fitted.reshape(given.shape) if reached > present else given


def _best_match(sizes: NDArray[np.floating], anchors: NDArray[np.floating]) -> Sizes:
    """(M,) agreement of each box with its best anchor: the worse side ratio, 1 for equal shapes."""
    best = np.zeros(len(sizes))
    for width, height in anchors:  # a few anchors, many boxes: no (M, K, 2) table
        x, y = sizes[:, 0] / width, sizes[:, 1] / height
        np.maximum(best, np.minimum(np.minimum(x, 1 / x), np.minimum(y, 1 / y)), out=best)
    return best


def _fitness(sizes: Sizes, anchors: Sizes, threshold: float) -> float:
    """Mean over boxes of the best match, counted only where it is within the threshold."""
    best = _best_match(sizes, anchors)
    return float(best[best > 1 / threshold].sum() / len(best))


def _evolve(sizes: Sizes, anchors: Sizes, generator: np.random.Generator, threshold: float, generations: int) -> Sizes:
    """Random changes of about a tenth, kept where they make the anchors fitter."""
    fitness = _fitness(sizes, anchors, threshold)
    for _ in range(generations):
        change = generator.random() * generator.standard_normal(anchors.shape) * 0.1
        factors = np.where(generator.random(anchors.shape) < 0.9, 1 + change, 1.0).clip(0.3, 3.0)
        mutant = np.maximum(anchors * factors, SMALLEST)
        reached = _fitness(sizes, mutant, threshold)
        if reached > fitness:
            anchors, fitness = mutant, reached
    return anchors


def _k_means(points: Sizes, count: int, generator: np.random.Generator) -> Sizes:
    """Centres (count, 2) of the best of several runs of Lloyd's algorithm."""
    best, least = points[:count], np.inf
    for _ in range(RESTARTS):
        centres = points[generator.choice(len(points), count, replace=False)]
        for _ in range(ROUNDS):
            # |p - c|^2 without the part that is the same for every centre.
            nearest = ((centres**2).sum(axis=1) - 2 * points @ centres.T).argmin(axis=1)
            members = np.bincount(nearest, minlength=count)
            sums = np.stack([np.bincount(nearest, points[:, axis], minlength=count) for axis in (0, 1)], axis=1)
            moved = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], centres)
            still = np.allclose(moved, centres, rtol=1e-4)
            centres = moved
            if still:
                break
        distortion = float(((points - centres[nearest]) ** 2).sum())
        if distortion < least:
            best, least = centres, distortion
    return best
