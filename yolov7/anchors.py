"""Anchors that fit the data: best possible recall, k-means, evolution (training sheet, section 5).

Legend: M boxes, K anchors, L levels, A anchors per level. Sizes are width, height in pixels of the training image.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Sizes = NDArray[np.float64]

_ENOUGH = 0.98
"""Anchors that reach this share of the boxes are kept."""


def shape_match(sizes: Sizes, anchors: Sizes) -> Sizes:
    """How well box sizes (M, 2) agree with anchors (K, 2): (M, K), the worst side ratio, 1 for equal shapes."""
    ratio = sizes[:, None] / anchors[None]
    return np.minimum(ratio, 1.0 / ratio).min(axis=2)


def best_possible_recall(sizes: Sizes, anchors: Sizes, threshold: float = 4.0) -> float:
    """Share of the boxes (M, 2) whose best anchor of (K, 2) is within the ratio `threshold`; 1 without boxes."""
    if not len(sizes):
        return 1.0
    return float((shape_match(sizes, anchors).max(axis=1) > 1.0 / threshold).mean())


def fitness(sizes: Sizes, anchors: Sizes, threshold: float) -> float:
    """Mean over boxes of the best match, counted only where it is within the threshold."""
    best = shape_match(sizes, anchors).max(axis=1)
    return float((best * (best > 1.0 / threshold)).mean())


def fit_anchors(
    sizes: Sizes, count: int, generator: np.random.Generator, threshold: float = 4.0, generations: int = 1000
) -> Sizes:
    """`count` anchors (count, 2) for the box sizes (M, 2), by area: k-means on whitened sizes, then evolution.

    Every random number comes from `generator`. Raises ValueError with fewer usable boxes than anchors.
    """
    usable = sizes[(sizes >= 2.0).any(axis=1)]
    if len(usable) < count:
        raise ValueError(f"{count} anchors need as many boxes of 2 pixels or more, there are {len(usable)}")
    spread = usable.std(axis=0)
    spread[spread == 0] = 1.0
    anchors = _k_means(usable / spread, count, generator) * spread
    best = fitness(sizes, anchors, threshold)
    for _ in range(generations):
        chosen = generator.random(anchors.shape) < 0.9
        steps = 1.0 + chosen * generator.random() * generator.standard_normal(anchors.shape) * 0.1
        mutated = np.maximum(anchors * np.clip(steps, 0.3, 3.0), 2.0)
        score = fitness(sizes, mutated, threshold)
        if score > best:
            anchors, best = mutated, score
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def check_anchors(
    sizes: Sizes, anchors: NDArray[np.floating], threshold: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The anchors (L, A, 2) to train with: the given ones where they reach 98 % of the boxes, else fitted ones.

    Fitted anchors are taken only if more boxes are within their reach; levels go from small to large.
    """
    given = np.asarray(anchors, dtype=np.float64)
    sizes = np.asarray(sizes, dtype=np.float64)
    sizes = sizes[(sizes > 0).all(axis=1)]
    flat = given.reshape(-1, 2)
    present = best_possible_recall(sizes, flat, threshold)
    if present >= _ENOUGH or len(sizes) < len(flat):
        return given
    fitted = fit_anchors(sizes, len(flat), generator, threshold)
    reached = best_possible_recall(sizes, fitted, threshold)
    log.info("anchors: the given ones reach %.1f %% of the boxes, fitted ones %.1f %%", 100 * present, 100 * reached)
    return fitted.reshape(given.shape) if reached > present else given


def _k_means(points: Sizes, count: int, generator: np.random.Generator, restarts: int = 30, rounds: int = 50) -> Sizes:
    """Centres (count, 2) of the best of several runs of Lloyd's algorithm."""
    best, least = points[:count], np.inf
    for _ in range(restarts):
        centres = points[generator.choice(len(points), count, replace=False)]
        for _ in range(rounds):
            nearest = ((points[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
            members = np.bincount(nearest, minlength=count)
            sums = np.stack([np.bincount(nearest, points[:, axis], minlength=count) for axis in (0, 1)], axis=1)
            moved = np.where(members[:, None] > 0, sums / np.maximum(members, 1)[:, None], centres)
            if np.allclose(moved, centres):
                break
            centres = moved
        distortion = ((points[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1).mean()
        if distortion < least:
            best, least = centres, distortion
    return best
