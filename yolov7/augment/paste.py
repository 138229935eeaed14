"""Copy-paste inside a mosaic and pasting cut-outs of other images into a sample (training sheet, 4.5 and 4.6).

Both need outlines. Which objects go where is decided from sizes and outlines alone; only images whose pixels end up
in the sample are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from yolov7.augment.affine import flip_boxes_left_right, visible_extents
from yolov7.augment.mosaic import Overlay, Scene, gather, outline_mask, plan_mosaic4
from yolov7.augment.sample import Floats, Image, SampleSource
from yolov7.polygons import Polygons, join_polygons

MAX_COVER = 0.30
"""No existing label may be covered by this share of its area or more."""
POOL = 30
"""Cut-outs are collected until there are this many."""
POOL_ROUNDS = 16
"""Most mosaics looked through for cut-outs: a data set with very few outlines must not hold up a sample."""
POOL_SHARE = 0.5
"""Share of a mosaic's outlined objects that become cut-outs."""
TARGET_SCALES = (0.75,) * 2 + (0.5,) * 4 + (0.25,) * 4 + (0.125,) * 4 + (0.0625,) * 6
"""Largest sides of the rectangles tried, as shares of the output's."""
SKIP = 0.2
"""Probability of leaving a rectangle out."""
MIN_TARGET = 20
"""A rectangle must be larger than this many pixels both ways."""
MIN_PASTED = 10
"""A pasted cut-out must be larger than this many pixels both ways."""
MIN_MASK = 60
"""Its mask must have more than this many pixels."""


def copy_paste(
    scene: Scene, share: float, rng: np.random.Generator, *, of: Literal["all", "eligible"] = "all"
) -> Scene:
    """Mirror a share of the outlined objects left to right on the canvas and paste them there, with their labels.

    An object is left out where its copy would cover 30 % or more of some label, one pasted before included. With `of`
    `eligible` the share is of the objects whose copy covers no label of the scene so far, and all of these are pasted
    (reference sheet: yolov9-training, section 3).
    """
    if scene.polygons is None or share <= 0 or not len(scene.boxes):
        return scene
    outlined = np.unique(scene.polygons.owners)
    mirror = np.array([[-1.0, 0.0, scene.side], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    mirrored = flip_boxes_left_right(scene.boxes, scene.side)
    if of == "eligible":
        outlined = outlined[[not _covers(mirrored[number], scene.boxes) for number in outlined]]
    chosen = rng.choice(outlined, size=round(share * len(outlined)), replace=False)
    boxes, overlays, copied = scene.boxes, list(scene.overlays), []
    for number in chosen.tolist():
        box = mirrored[number]
        if (box[2:] <= box[:2]).any() or (of == "all" and _covers(box, boxes)):
            continue
        boxes = np.concatenate([boxes, box[None]])
        overlays.append(Overlay(scene.tiles[scene.tile_numbers[number]], mirror, scene.polygons.of(number)))
        copied.append(number)
    parts: list[tuple[Polygons | None, int]] = [(scene.polygons, len(scene.boxes))]
    for number in copied:
        only = scene.polygons.take(np.arange(len(scene.boxes)) == number)
        parts.append((only.mapped((-1, 1), (scene.side, 0)), 1))
    return replace(
        scene,
        boxes=boxes,
        labels=np.concatenate([scene.labels, scene.labels[copied]]),
        tile_numbers=np.concatenate([scene.tile_numbers, scene.tile_numbers[copied]]),
        clips=np.concatenate([scene.clips, flip_boxes_left_right(scene.clips[copied], scene.side)]),
        polygons=join_polygons(parts),
        overlays=overlays,
    )


def _covers(rectangle: Floats, boxes: Floats) -> bool:
    """True if a rectangle (4,) covers too much of any of the boxes (n, 4)."""
    return bool((covered_shares(boxes, rectangle) >= MAX_COVER).any())


def covered_shares(boxes: Floats, rectangle: Floats) -> Floats:
    """(n,) share of the area of each box (n, 4) that lies inside the rectangle (4,)."""
    sides = np.minimum(boxes[:, 2:], rectangle[2:]) - np.maximum(boxes[:, :2], rectangle[:2])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.prod(np.maximum(sides, 0), axis=1) / np.maximum(areas, 1e-9)


@dataclass(frozen=True)
class CutOut:
    """An outlined object of an image, not yet cut: the facts that decide its place."""

    source: int
    label: int
    box: Floats
    """(4,) xyxy of its visible part, in pixels of the image."""
    outlines: list[Floats]
    """(k, 2) xy each, in pixels of the image."""


def collect_cut_outs(source: SampleSource, size: int, rng: np.random.Generator) -> list[CutOut]:
    """At least 30 random cut-outs from random mosaics, or none if the first mosaic has no outlined object."""
    pool: list[CutOut] = []
    for round_number in range(POOL_ROUNDS):
        scene = gather(source, plan_mosaic4(source, int(rng.integers(len(source))), size, rng), 2 * size)
        found = _outlined_objects(scene, rng)
        if round_number == 0 and not found:
            break
        pool += found
        if len(pool) >= POOL:
            break
    return pool


def _outlined_objects(scene: Scene, rng: np.random.Generator) -> list[CutOut]:
    """A random half of the outlined objects that the canvas keeps something of."""
    if scene.polygons is None:
        return []
    extents = visible_extents(scene.polygons, scene.clips, np.eye(3), scene.side)
    visible = np.flatnonzero((extents[:, 2:] > extents[:, :2] + 1).all(1))
    cut_outs = []
    for number in rng.choice(visible, size=round(POOL_SHARE * len(visible)), replace=False).tolist():
        tile = scene.tiles[scene.tile_numbers[number]]
        offset = np.array([tile.x, tile.y], np.float64)
        outlines = [points - offset for points in scene.polygons.of(number)]
        box = extents[number] - np.tile(offset, 2)
        cut_outs.append(CutOut(tile.source, int(scene.labels[number]), box, outlines))
    return cut_outs


def paste_in(
    image: Image, boxes: Floats, labels: NDArray[np.int64], source: SampleSource, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int64]]:
    """Paste cut-outs of random images into `image` (S, S, 3), in place; returns boxes (n, 4) and labels with theirs.

    For each of 20 random rectangles that leave every label at least 70 % free: a random cut-out, scaled to fit inside.
    """
    if not source.has_polygons:
        return boxes, labels
    size = len(image)
    pool = collect_cut_outs(source, size, rng)
    added = []
    for target_scale in TARGET_SCALES if pool else ():
        if rng.random() < SKIP:
            continue
        largest = max(int(size * target_scale), 1)
        height, width = (int(side) for side in rng.integers(1, largest + 1, 2))
        y, x = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
        target = np.array([x, y, x + width, y + height], np.float64)
        if min(height, width) <= MIN_TARGET or (covered_shares(boxes, target) >= MAX_COVER).any():
            continue
        cut_out = pool[int(rng.integers(len(pool)))]
        box = _paste(image[y : y + height, x : x + width], source, cut_out)
        if box is not None:
            boxes = np.concatenate([boxes, (box + np.array([x, y, x, y]))[None]])
            added.append(cut_out.label)
    return boxes, np.concatenate([labels, np.array(added, np.int64)])


def _paste(window: Image, source: SampleSource, cut_out: CutOut) -> Floats | None:
    """Scale the cut-out to fit the window (h, w, 3) and copy it to its top-left corner.

    Returns its box (4,) in the window, or None where it would be too small.
    """
    low, high = np.floor(cut_out.box[:2]).astype(int), np.ceil(cut_out.box[2:]).astype(int)
    across, down = (high - low).tolist()
    scale = min(window.shape[1] / across, window.shape[0] / down)
    width, height = int(across * scale), int(down * scale)
    if min(width, height) <= MIN_PASTED:
        return None
    scales = np.array([width / across, height / down])
    mask = outline_mask([(points - low) * scales for points in cut_out.outlines], 0, 0, width, height)
    if cv2.countNonZero(mask) <= MIN_MASK:
        return None
    shown = source.shown(cut_out.source, float(scales.max()))
    if shown.scale == (1.0, 1.0):
        pixels = shown.image[low[1] : high[1], low[0] : high[0]]
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (width, height), interpolation=interpolation)
    else:  # averaged already, and the corner need not be a whole pixel
        across_map, down_map = shown.scale / scales
        corner = low * shown.scale - 0.5 + np.array([across_map, down_map]) / 2
        inverse = np.array([[across_map, 0, corner[0]], [0, down_map, corner[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        pixels = cv2.warpAffine(shown.image, inverse, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    cv2.copyTo(pixels, mask, window[:height, :width])
    return (cut_out.box - np.tile(low, 2)) * np.tile(scales, 2)
