"""Figures for parts of the data: AP over images that are dark or crowded, recall of objects that are small or long.

Properties of an image (brightness, crowding) select images, and AP is measured on them. Properties of an object (size,
shape) give only recall at one confidence: a false detection belongs to no object, so a kind of object has no precision
and no AP. (The COCO tool's AP by size counts false detections by their own size.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolov7.data.index import Index
from yolov7.evaluate.matches import Matching
from yolov7.evaluate.mistakes import Errors

_SIZES = (
    ("up to 16²", 0, 16**2),
    ("16² to 32²", 16**2, 32**2),
    ("32² to 96²", 32**2, 96**2),
    ("above 96²", 96**2, np.inf),
)
_SHAPES = (
    ("3 times as high as wide, or more", 0, 1 / 3),
    ("higher", 1 / 3, 1 / 1.5),
    ("about square", 1 / 1.5, 1.5),
    ("wider", 1.5, 3),
    ("3 times as wide as high, or more", 3, np.inf),
)
_CROWDING = (("no object", 0, 1), ("1 object", 1, 2), ("2 to 5", 2, 6), ("6 to 15", 6, 16), ("16 and more", 16, np.inf))
_BRIGHTNESS = (("dark: mean below 64", 0, 64), ("64 to 128", 64, 128), ("128 to 192", 128, 192), ("bright", 192, 256))


@dataclass(frozen=True)
class Slice:
    """One part of the data and its figure."""

    group: str
    name: str
    count: int
    """Images for AP, objects for recall."""
    figure: str
    """`AP` or `recall`."""
    value: float
    """NaN if the part holds no object."""


def object_slices(index: Index, errors: Errors) -> list[Slice]:
    """Recall (IoU 0.5, at the errors' confidence) by size and by shape of the objects; empty parts are left out."""
    found, areas, shapes = [], [], []
    for image in errors.images:
        counts = ~index.crowd(image.position)
        boxes = index.boxes(image.position)[counts]
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
        found.append(image.found[counts])
        areas.append(index.areas(image.position)[counts])
        shapes.append(sides[:, 0] / sides[:, 1])
    if not found:
        return []
    right = np.concatenate(found)
    slices = _recalls("object size in pixels", _SIZES, np.concatenate(areas), right)
    return slices + _recalls("object shape", _SHAPES, np.concatenate(shapes), right)


def image_slices(index: Index, matches: Matching, brightness: Sequence[float] | None = None) -> list[Slice]:
    """AP by number of objects in the image, and by `brightness` (mean pixel value of each image, 0 to 255)."""
    objects = np.array([int((~index.crowd(position)).sum()) for position in range(len(index))])
    slices = _precisions("objects in the image", _CROWDING, objects, index, matches)
    if brightness is not None:
        slices += _precisions("brightness of the image", _BRIGHTNESS, np.asarray(brightness), index, matches)
    return slices


def _recalls(
    group: str, parts: Sequence[tuple[str, float, float]], values: np.ndarray, right: np.ndarray
) -> list[Slice]:
    inside = [(name, (values >= low) & (values < high)) for name, low, high in parts]
    return [
        Slice(group, name, int(part.sum()), "recall", float(right[part].mean())) for name, part in inside if part.any()
    ]


def _precisions(
    group: str, parts: Sequence[tuple[str, float, float]], values: np.ndarray, index: Index, matches: Matching
) -> list[Slice]:
    # The matching's images are in another order than the index's.
    place = {image_id: position for position, image_id in enumerate(matches.image_ids)}
    order = np.array([place[index.image_id(position)] for position in range(len(index))], dtype=np.int64)
    slices = []
    for name, low, high in parts:
        part = (values >= low) & (values < high)
        if not part.any():
            continue
        weights = np.zeros(len(order))
        weights[order[part]] = 1.0
        value = matches.average_precision(weights)
        slices.append(Slice(group, name, int(part.sum()), "AP", value if value >= 0 else float("nan")))
    return slices
