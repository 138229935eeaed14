"""Objects that a training never uses, counted before the first epoch by reason and class.

Crowds, repetitions and boxes outside their image are left out by the index. An object can be used, but be lost in
samples: the augmentation drops what is too small or too thin (training sheet, section 4.3), and the assignment finds no
anchor (section 6) or no cell for some sizes. Both depend on the random scale of the sample, so an object counts as
unused for such a reason if it is lost in more than half of the scales. Cuts by the edges of a mosaic do not count: they
meet every object now and then.

Legend: N objects, M usable objects, C classes, K scales.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.augment.affine import MIN_SIDE, POLYGON_AREA_SHARE, draw_matrix
from yolov7.config import AnchorLoss, Train
from yolov7.data.index import Index
from yolov7.data.tally import Tally, named_counts, tally
from yolov7.loss import Criterion
from yolov7.text import listed

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SCALES = 41
"""K."""
_EXACT = 20_000
"""Up to this many objects are compared with the anchors at their exact sizes."""
_KEPT = 0.75
"""An advised setting keeps this share of the objects it is advised for."""
_LARGEST_SIDE = 4096
"""No larger image is advised."""

CROWD = "crowds"
OUTSIDE = "empty or outside their image"
REPEATED = "exact repetitions of another"
OUTLINE = f"with an outline of under {POLYGON_AREA_SHARE:.0%} of their box"
SMALL = f"too small ({MIN_SIDE:g} px or less wide or high) in most samples"
THIN = "too thin in most samples"
UNREADABLE = "on images that could not be read"


@dataclass(frozen=True)
class Unused:
    """Result of :func:`find_unused`."""

    counts: Tally
    warnings: tuple[str, ...]
    """A line for each class that loses most of its objects, or has none, and one for objects that are too large for the
    head; with the setting that would keep them."""


@dataclass(frozen=True)
class _Objects:
    """The usable objects."""

    sides: Floats
    """(M, 2) width, height in pixels of the training image, before the random scale."""
    lost: dict[str, Flags]
    """Reason to (M,) flags; an object has one reason at most."""
    misfit: Floats
    """(M,) median over the scales of :meth:`Criterion.misfit`."""


def find_unused(
    index: Index, params: Train, criterion: Criterion, *, stride: int, validation: Index | None = None
) -> Unused:
    """Count the objects of `index` that a training with `params` and `criterion` never uses.

    `stride`: multiples of it are advised for `image_size`. With `validation` its classes that training cannot learn
    are named too. Deterministic; touches no generator of the training.
    """
    flags = index.left_out()
    usable = np.ones(index.num_boxes, np.bool_)
    lost = {}
    for key, reason in (("crowd", CROWD), ("outside", OUTSIDE), ("repeated", REPEATED)):
        lost[reason] = index.counts(usable & flags[key])
        usable &= ~flags[key]
    objects, labels = _objects(index, usable, params, criterion), index.all_labels()
    for reason, found in objects.lost.items():
        lost[reason] = np.bincount(labels[usable][found], minlength=index.num_classes)
    counts = tally("training", index.class_names, index.counts(), lost)
    warnings = [
        _warning(counts, label, params, objects, labels[usable] == label, criterion, stride)
        for label in counts.mostly_lost()
    ]
    warnings += _too_large(objects.sides, params, criterion, stride)
    warnings += _without_objects(index, validation)
    warnings += _without_weight(params)
    return Unused(counts, tuple(warnings))


def report_unused(unused: Unused) -> None:
    """Log the counts and the warnings."""
    report_tally(unused.counts)
    for line in unused.warnings:
        log.warning("%s", line)


def report_tally(counts: Tally, *, lost_only: bool = False) -> None:
    """Log the counts, as a warning if any object is left out; with `lost_only` nothing else."""
    level = logging.WARNING if counts.lost else logging.INFO
    for line in () if lost_only and not counts.lost else counts.lines():
        log.log(level, "%s", line)


def with_unreadable(counts: Tally, index: Index, images: list[int]) -> Tally:
    """The counts and the objects on `images`, positions in the index, which could not be read while training."""
    if not images:
        return counts
    found = np.zeros(index.num_classes, np.int64)
    for i in images:
        found += np.bincount(index.labels(i)[index.trainable(i)], minlength=index.num_classes)
    return tally(counts.what, counts.class_names, counts.objects, {**counts.lost, UNREADABLE: found})


def _objects(index: Index, usable: Flags, params: Train, criterion: Criterion) -> _Objects:
    """The objects flagged in `usable` (N,)."""
    boxes, extents = (found[usable] for found in index.all_extents())
    scale = params.image_size / index.all_image_sizes()[index.image_numbers()[usable]].max(1, initial=1)
    sides = (extents[:, 2:] - extents[:, :2]) * scale[:, None]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) * scale**2
    filled = sides.prod(1) / np.maximum(areas, 1e-12)
    hollow = filled <= POLYGON_AREA_SHARE
    wide, slim, matched, misfit = _shares(sides, params, criterion)
    # The filters come in this order: the first that loses most samples is the reason.
    failed = np.stack([wide, slim, matched]) < 0.5
    reasons, rare = failed.argmax(0), failed.any(0) & ~hollow
    lost = {OUTLINE: hollow} | {r: rare & (reasons == n) for n, r in enumerate((SMALL, THIN, params.loss.unmatched))}
    return _Objects(sides, lost, misfit)


def _shares(sides: Floats, params: Train, criterion: Criterion) -> tuple[Floats, Floats, Floats, Floats]:
    """(M,) shares of the samples in which an object is wide and high enough, is not too thin, and is matched; and its
    median misfit. `sides` (M, 2) before the random scale.
    """
    matrices, limit = _matrices(params), params.augment.max_aspect
    wide, slim = np.zeros(len(sides)), np.zeros(len(sides))
    for matrix in matrices:
        seen = sides @ matrix.T
        shorter, longer = np.minimum(seen[:, 0], seen[:, 1]), np.maximum(seen[:, 0], seen[:, 1])
        wide += shorter > MIN_SIDE
        slim += longer < limit * shorter
    sizes, place = _rounded(sides)
    misfits = np.empty((SCALES, len(sizes)), np.float32)
    for number, matrix in enumerate(matrices):
        # A training at several scales resizes the whole sample once more.
        factor = 0.5 + (number * 0.6180339887) % 1 if params.multi_scale else 1.0
        seen = np.maximum(sizes @ matrix.T * factor, 1e-6).astype(np.float32)
        misfits[number] = criterion.misfit(torch.from_numpy(seen)).numpy()
    matched = (misfits < 1).mean(0)[place]
    median = np.median(misfits, axis=0)[place] if len(sides) else np.zeros(0)
    return wide / SCALES, slim / SCALES, matched, median.astype(np.float64)


def _rounded(sides: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Distinct sizes (n, 2) and the place (M,) of each object among them. Of many objects the sides are rounded to 2 %,
    because COCO's 860,000 would take a minute.
    """
    if len(sides) <= _EXACT:
        return sides, np.arange(len(sides))
    steps = np.rint(np.log2(np.maximum(sides, 1e-3)) * 32).astype(np.int64)
    numbers = (steps[:, 0] << 32) + steps[:, 1]
    _, first, place = np.unique(numbers, return_index=True, return_inverse=True)
    return np.exp2(steps[first] / 32), place


def _matrices(params: Train) -> list[Floats]:
    """K maps (2, 2) from the sides of an object to those of its extents: scales evenly over their range, rotation and
    shear as they are drawn.
    """
    augment = params.augment
    low, high = 1 - augment.scale, 1 + augment.scale_surplus + augment.scale
    rng = np.random.default_rng(0)
    maps = []
    for scale in np.linspace(low, high, 2 * SCALES + 1)[1::2]:
        matrix, drawn = draw_matrix(rng, augment, params.image_size, params.image_size)
        maps.append(np.abs(matrix[:2, :2]) / drawn * scale)
    return maps


def _warning(
    counts: Tally, label: int, params: Train, objects: _Objects, own: Flags, criterion: Criterion, stride: int
) -> str:
    """The line for a class that loses most of its objects; `own` (M,) flags its usable ones."""
    found = counts.of_class(label)
    advice = [text for reason in found if (text := _advice(reason, params, objects, own, criterion, stride))]
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.items())
    line = (
        f"class {counts.class_names[label]!r} loses {sum(found.values())} of {counts.objects[label]} objects: {reasons}"
    )
    return f"{line}; {'; '.join(advice)}"


def _advice(reason: str, params: Train, objects: _Objects, own: Flags, criterion: Criterion, stride: int) -> str:
    """The setting that would keep the objects of a class that are lost for `reason`."""
    if reason == CROWD:
        return "crowds that are single objects are learned with data.coco.crowd_is_object: true"
    if reason == OUTSIDE:
        return "correct the boxes, or the width and height of the images"
    if reason == OUTLINE:
        return "correct the outlines"
    if reason == REPEATED:
        return "a repetition adds nothing: no setting keeps it"
    chosen = objects.lost[reason] & own
    if reason == SMALL or (reason == params.loss.unmatched and not params.loss.has_anchors):
        side = _side_that_keeps(objects.sides[chosen], params, criterion, stride)
        wanted = f"train.image_size: {side} keeps most of these"
        return wanted if side else "cut the images into tiles, because no train.image_size in use keeps these"
    if reason == THIN:
        aspect = np.quantile(objects.sides[chosen].max(1) / np.maximum(objects.sides[chosen].min(1), 1e-9), _KEPT)
        return f"train.augment.max_aspect: {math.floor(aspect) + 1} keeps most of these"
    fit = "" if params.anchors == "fit" else "train.anchors: fit, or "
    threshold = params.loss.anchor_threshold if isinstance(params.loss, AnchorLoss) else 1.0
    needed = float(np.quantile(objects.misfit[chosen], _KEPT)) * threshold
    return f"{fit}train.loss.anchor_threshold: {math.ceil(2 * needed + 1e-6) / 2:g}, keeps most of these"


def _side_that_keeps(sides: Floats, params: Train, criterion: Criterion, stride: int) -> int:
    """The least image size, in steps of about a tenth, at which most objects of `sides` (n, 2) are large enough and
    are matched; 0 if it would be too large. Where the anchors stay too large for them, size alone decides.
    """
    found = 0
    for step in range(1, 60):
        side = math.ceil(params.image_size * 1.1**step / stride) * stride
        if side > _LARGEST_SIDE:
            break
        wide, _, matched, _ = _shares(sides * (side / params.image_size), params, criterion)
        if (wide >= 0.5).mean() < _KEPT:
            continue
        found = found or side
        # Anchors that are not kept are fitted again at the new size.
        if (params.loss.has_anchors and params.anchors != "keep") or ((wide >= 0.5) & (matched >= 0.5)).mean() >= _KEPT:
            return side
    return found


def _too_large(sides: Floats, params: Train, criterion: Criterion, stride: int) -> list[str]:
    """A line about objects whose boxes the head cannot predict exactly; `sides` (M, 2)."""
    limit, longest = criterion.largest_side(), sides.max(1, initial=0)
    count = int((longest > limit).sum())
    if not count:
        return []
    fitting = int(params.image_size * limit / longest.max()) // stride * stride
    advice = f"train.image_size: {fitting}, or a head with more bins, reaches them all"
    return [
        f"{count} of {len(sides)} objects are larger than {limit:.0f} px at train.image_size {params.image_size}, "
        f"beyond the reach of the head's bins at every level: their boxes are learned only up to that reach; {advice}"
    ]


def _without_objects(index: Index, validation: Index | None) -> list[str]:
    """Lines about classes without a single object to train on."""
    objects = index.counts()
    empty = [name for name, count in zip(index.class_names, objects, strict=True) if not count]
    lines = []
    if empty and objects.any():
        shown = listed(list(map(repr, empty)), most=10)
        have = "1 class has no objects" if len(empty) == 1 else f"{len(empty)} classes have no objects"
        lines.append(f"{have} in the training images, so nothing is learned of it: {shown}")
    if validation is not None and validation.class_names == index.class_names:
        wanted = np.where(objects == 0, validation.counts(), 0)
        if wanted.any():
            named = named_counts(zip(index.class_names, wanted, strict=True))
            lines.append(f"the validation images have objects of classes that the training images lack: {named}")
    return lines


def _without_weight(params: Train) -> list[str]:
    """A line about classes whose weight is 0: their boxes are learned, their class is not."""
    weights = params.class_weights if isinstance(params.class_weights, Mapping) else {}
    names = [repr(name) for name, weight in weights.items() if weight == 0]
    return [f"train.class_weights is 0 for {', '.join(names)}: boxes are learned, the class is not"] if names else []
