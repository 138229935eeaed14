"""From annotation records to the arrays of the memory-mapped index (`index.py` writes and opens them)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolov7.data.formats.coco import CocoAnnotations, classes_of
from yolov7.errors import DataError

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

# name -> (dtype, shape behind the first axis). I images, N boxes, Q polygons, P points.
ARRAYS: dict[str, tuple[type, tuple[int, ...]]] = {
    "image_ids": (np.int64, ()),  # I
    "sizes": (np.int32, (2,)),  # I: height, width in pixels, as annotated
    "names": (np.uint8, ()),  # file names, UTF-8, end to end
    "name_starts": (np.int64, ()),  # I + 1
    "box_starts": (np.int64, ()),  # I + 1
    "boxes": (np.float64, (4,)),  # N: left, top, width, height as annotated
    "labels": (np.int64, ()),  # N: class numbers
    "annotation_ids": (np.int64, ()),  # N
    "areas": (np.float64, ()),  # N: as annotated, width * height where not
    "crowd": (np.bool_, ()),  # N
    "trainable": (np.bool_, ()),  # N: no crowd, no repetition, something of it inside the image
    "polygon_starts": (np.int64, ()),  # N + 1
    "point_starts": (np.int64, ()),  # Q + 1
    "points": (np.float32, (2,)),  # P: x, y
}


def arrays_of(coco: CocoAnnotations) -> Arrays:
    """All arrays of :data:`ARRAYS` for the annotations; :class:`DataError` as :func:`yolov7.data.index.build_index`."""
    _, category_ids = classes_of(coco)
    arrays = _image_arrays(coco)
    arrays |= _box_arrays(coco, arrays["image_ids"], np.array(category_ids))
    order = arrays.pop("order")
    lost = left_out(arrays)
    for what, words in (("outside", "empty or outside their images"), ("repeated", "exact repetitions of another")):
        if lost[what].any():
            log.warning("%s: %d boxes are %s; training leaves them out", coco.path, int(lost[what].sum()), words)
    arrays["trainable"] = ~(lost["outside"] | lost["repeated"] | arrays["crowd"])
    arrays |= _polygon_arrays(coco, order)
    return arrays


def _image_arrays(coco: CocoAnnotations) -> Arrays:
    images = coco.images
    if not images:
        raise DataError("there are no images", path=coco.path)
    ids = np.fromiter((record["id"] for record in images), np.int64, len(images))
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError("image id given twice", path=coco.path, record=f"image {values[counts > 1][0]}")
    names = bytearray()
    starts = np.zeros(len(images) + 1, np.int64)
    sizes = np.empty((len(images), 2), np.int32)
    for i, record in enumerate(images):
        _check_name(coco, record)
        names += record["file_name"].encode("utf-8")
        starts[i + 1] = len(names)
        sizes[i] = _side(coco, record, "height"), _side(coco, record, "width")
    return {"image_ids": ids, "sizes": sizes, "names": np.frombuffer(names, np.uint8), "name_starts": starts}


def _side(coco: CocoAnnotations, record: dict[str, Any], name: str) -> int:
    value = record[name]
    if not (math.isfinite(value) and value == int(value) and 0 < value < 2**24):
        message = f"{name} is {value!r}; a positive whole number of pixels is expected"
        raise DataError(message, path=coco.path, record=f"image {record['id']}")
    return int(value)


def _check_name(coco: CocoAnnotations, record: dict[str, Any]) -> None:
    name = record["file_name"]
    absolute = name.startswith(("/", "\\")) or PureWindowsPath(name).drive
    if absolute or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        message = f"file_name {name!r} leads out of the image folder; give it relative to that folder"
        raise DataError(message, path=coco.path, record=f"image {record['id']}")


def _box_arrays(coco: CocoAnnotations, image_ids: NDArray[np.int64], category_ids: NDArray[np.int64]) -> Arrays:
    """Arrays per box, sorted by image (within one image as in the file), and `order`, their places in the file."""
    records = coco.annotations
    count = len(records)
    ids = np.fromiter((record["id"] for record in records), np.int64, count)
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError("annotation id given twice", path=coco.path, record=f"annotation {values[counts > 1][0]}")
    flat = chain.from_iterable(record["bbox"] for record in records)
    boxes = np.fromiter(flat, np.float64, 4 * count).reshape(count, 4)
    # The corners become float32: what overflows there is as unusable as infinity.
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.hstack([boxes, boxes[:, :2] + boxes[:, 2:]])
        wrong = np.asarray(~np.isfinite(corners.astype(np.float32)).all(axis=1))
    _refuse(coco, ids, wrong, "the box is not finite")
    images = _positions(coco, records, ids, "image_id", image_ids)
    labels = _positions(coco, records, ids, "category_id", category_ids)
    areas = np.fromiter((record.get("area", math.nan) for record in records), np.float64, count)
    crowd = np.fromiter((bool(record.get("iscrowd", 0)) for record in records), np.bool_, count)
    areas = np.where(np.isfinite(areas), areas, boxes[:, 2] * boxes[:, 3])
    order = np.argsort(images, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(images, minlength=len(image_ids)))]).astype(np.int64)
    return {
        "box_starts": starts,
        "boxes": boxes[order],
        "labels": labels[order],
        "annotation_ids": ids[order],
        "areas": areas[order],
        "crowd": crowd[order],
        "order": order,
    }


def _positions(
    coco: CocoAnnotations, records: list[dict[str, Any]], ids: NDArray[np.int64], field: str, known: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Place in `known` of the id that every record gives in `field`; an unknown one is refused."""
    wanted = np.fromiter((record[field] for record in records), np.int64, len(records))
    by_value = np.argsort(known, kind="stable")
    places = by_value[np.clip(np.searchsorted(known, wanted, sorter=by_value), 0, len(known) - 1)]
    unknown = known[places] != wanted
    what = "image" if field == "image_id" else "category"
    if unknown.any():
        value = wanted[int(np.argmax(unknown))]
        _refuse(coco, ids, unknown, f"{field} {value} names no {what} of this file")
    return places


def _refuse(coco: CocoAnnotations, ids: NDArray[np.int64], wrong: NDArray[np.bool_], message: str) -> None:
    if wrong.any():
        more = int(wrong.sum()) - 1
        message += f" (and {more} more of the kind)" if more else ""
        raise DataError(message, path=coco.path, record=f"annotation {ids[int(np.argmax(wrong))]}")


def left_out(arrays: Arrays) -> dict[str, NDArray[np.bool_]]:
    """Flags (N,) of the boxes that training leaves out: crowds; boxes with nothing inside their image; exact
    repetitions (same image, class and box) of one that comes before. A box may have several.
    """
    boxes, labels = arrays["boxes"], arrays["labels"]
    images = np.repeat(np.arange(len(arrays["sizes"])), np.diff(arrays["box_starts"]))
    sides = arrays["sizes"][images][:, ::-1].astype(np.float64)
    corners = np.clip(np.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]), 0, sides)
    inside = (corners[1] > corners[0]).all(1)
    # Sorted by everything (stable, so the first of the file stays first), a repetition follows its original.
    order = np.lexsort((*boxes.T, labels, images))
    same = (boxes[order[1:]] == boxes[order[:-1]]).all(1)
    same &= (labels[order[1:]] == labels[order[:-1]]) & (images[order[1:]] == images[order[:-1]])
    repeated = np.zeros(len(boxes), np.bool_)
    repeated[order[1:]] = same
    return {"crowd": arrays["crowd"], "outside": ~inside, "repeated": repeated}


def boxes_and_extents(arrays: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes (N, 4) xyxy of the objects, and extents (N, 4) of their outlines (of the box without one), cut to the
    image.
    """
    images = np.repeat(np.arange(len(arrays["sizes"])), np.diff(arrays["box_starts"]))
    sides = np.tile(arrays["sizes"][images][:, ::-1].astype(np.float64), 2)
    boxes = arrays["boxes"].copy()
    boxes[:, 2:] += boxes[:, :2]
    extents = boxes.copy()
    polygons = np.diff(arrays["polygon_starts"])
    owners = np.repeat(np.repeat(np.arange(len(polygons)), polygons), np.diff(arrays["point_starts"]))
    if len(owners):
        first = np.flatnonzero(np.diff(owners, prepend=-1))
        points = arrays["points"].astype(np.float64)
        extents[owners[first], :2] = np.minimum.reduceat(points, first)
        extents[owners[first], 2:] = np.maximum.reduceat(points, first)
    return np.clip(boxes, 0, sides), np.clip(extents, 0, sides)


def _polygon_arrays(coco: CocoAnnotations, order: NDArray[np.int64]) -> Arrays:
    """Outlines in the order of the boxes. Run-length masks and rings of fewer than three points count as none."""
    lengths = np.fromiter((sum(1 for _ in _rings(coco.annotations[j])) for j in order), np.int64, len(order))
    point_counts = np.fromiter((len(ring) // 2 for j in order for ring in _rings(coco.annotations[j])), np.int64)
    flat = chain.from_iterable(chain.from_iterable(_rings(coco.annotations[j]) for j in order))
    points = np.fromiter(flat, np.float32, 2 * int(point_counts.sum())).reshape(-1, 2)
    return {
        "polygon_starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "point_starts": np.concatenate([[0], np.cumsum(point_counts)]).astype(np.int64),
        "points": points,
    }


def _rings(record: dict[str, Any]) -> Iterator[list[float]]:
    rings = record.get("segmentation")
    if isinstance(rings, list):
        for ring in rings:
            if len(ring) >= 6 and len(ring) % 2 == 0 and all(abs(value) < 1e9 for value in ring):
                yield ring
