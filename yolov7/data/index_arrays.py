"""From annotations to the arrays of the memory-mapped index (`index.py` writes and opens them)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolov7.data.columns import CocoColumns, Outlines, Rows, columns_of
from yolov7.data.formats.coco import CocoAnnotations, classes_of
from yolov7.data.repeated import find_repeated
from yolov7.errors import DataError

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

_PIECE = 1 << 17
"""Boxes handled at a time: what is computed of them on the way takes megabytes."""

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


@dataclass(frozen=True)
class Pieces:
    """An array of the index, made piece by piece: in the order of the index, boxes would be in memory twice."""

    rows: int
    """Of the whole array."""
    values: Iterator[NDArray[Any]]
    """To be taken once. Whole numbers may be narrower than in :data:`ARRAYS`."""


def arrays_of(coco: CocoAnnotations | CocoColumns) -> dict[str, Pieces]:
    """All arrays of :data:`ARRAYS` for the annotations; :class:`DataError` as :func:`yolov7.data.index.build_index`."""
    columns = columns_of(coco)
    _, category_ids = classes_of(columns)
    arrays = _image_arrays(columns)
    boxes = _box_arrays(columns, np.array(category_ids), arrays["sizes"])
    return {name: Pieces(len(array), iter([array])) for name, array in arrays.items()} | boxes


def _image_arrays(coco: CocoColumns) -> Arrays:
    images = coco.images
    if not len(images):
        raise DataError("there are no images", path=coco.path)
    repeated = _first_repeated(images.ids)
    if repeated is not None:
        raise DataError("image id given twice", path=coco.path, record=f"image {repeated}")
    _check_images(coco)
    names = [name.encode("utf-8") for name in images.names]
    return {
        "image_ids": images.ids,
        "sizes": np.stack([images.heights, images.widths], axis=1).astype(np.int32),
        "names": np.frombuffer(b"".join(names), np.uint8),
        "name_starts": np.cumsum([0, *map(len, names)], dtype=np.int64),
    }


def _first_repeated(ids: NDArray[Any]) -> int | None:
    """The smallest id given more than once."""
    ordered = np.sort(ids)
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    return int(ordered[again[0]]) if len(again) else None


def _check_images(coco: CocoColumns) -> None:
    """Refuse the first record with a name or a size that an index cannot hold."""
    images = coco.images
    faults = {
        "name": np.fromiter(map(_leads_out, images.names), np.bool_, len(images)),
        "height": ~_is_side(images.heights),
        "width": ~_is_side(images.widths),
    }
    rows = np.flatnonzero(np.logical_or.reduce(list(faults.values())))
    if not len(rows):
        return
    row = int(rows[0])
    what = next(name for name, wrong in faults.items() if wrong[row])
    if what == "name":
        message = f"file_name {images.names[row]!r} leads out of the image folder; give it relative to that folder"
    else:
        value = (images.heights if what == "height" else images.widths)[row : row + 1].tolist()[0]
        message = f"{what} is {value!r}; a positive whole number of pixels is expected"
    raise DataError(message, path=coco.path, record=f"image {images.ids[row]}")


def _is_side(values: NDArray[Any]) -> NDArray[np.bool_]:
    sides = values.astype(np.float64)
    return np.isfinite(sides) & (sides == np.floor(sides)) & (sides > 0) & (sides < 2**24)


def _leads_out(name: str) -> bool:
    if ".." not in name and ":" not in name and name[:1] not in "/\\":
        return False  # almost every name; paths take a hundred times longer
    absolute = name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive)
    return absolute or ".." in PurePosixPath(name.replace("\\", "/")).parts


def _box_arrays(coco: CocoColumns, category_ids: NDArray[np.int64], sizes: NDArray[np.int32]) -> dict[str, Pieces]:
    """Arrays per box, sorted by image; within one image as in the file."""
    records, image_ids = coco.annotations, coco.images.ids
    repeated = _first_repeated(records.ids)
    if repeated is not None:
        raise DataError("annotation id given twice", path=coco.path, record=f"annotation {repeated}")
    _refuse(coco, _not_finite(records.boxes), "the box is not finite")
    images = _positions(coco, records.image_ids, "image_id", image_ids)
    labels = _positions(coco, records.category_ids, "category_id", category_ids)
    trainable = _trainable(coco, images, labels, sizes)
    starts = np.concatenate([[0], np.cumsum(np.bincount(images, minlength=len(image_ids)))])
    in_order = bool((images[1:] >= images[:-1]).all())
    order = None if in_order else np.argsort(images, kind="stable").astype(np.int32)
    del images

    def areas(rows: Rows) -> NDArray[np.float64]:
        given, boxes = records.areas[rows], records.boxes[rows]
        return np.where(np.isfinite(given), given, boxes[:, 2] * boxes[:, 3])

    made: dict[str, Callable[[Rows], NDArray[Any]]] = {
        "boxes": lambda rows: records.boxes[rows],
        "labels": lambda rows: labels[rows],
        "annotation_ids": lambda rows: records.ids[rows],
        "areas": areas,
        "crowd": lambda rows: records.crowd[rows],
        "trainable": lambda rows: trainable[rows],
    }
    count = len(records)
    per_box = {name: Pieces(count, map(take, _orders(count, order))) for name, take in made.items()}
    return {"box_starts": Pieces(len(starts), iter([starts])), **per_box, **_outline_arrays(records.outlines, order)}


def _orders(count: int, order: NDArray[np.int32] | None) -> Iterator[NDArray[np.int64]]:
    """The rows of the index, by their places in the file, a piece at a time."""
    for start in range(0, count, _PIECE):
        end = min(start + _PIECE, count)
        yield np.arange(start, end) if order is None else order[start:end].astype(np.int64)


def _outline_arrays(outlines: Outlines, order: NDArray[np.int32] | None) -> dict[str, Pieces]:
    if order is None:
        arrays = (outlines.polygon_starts, outlines.point_starts, outlines.points)
        names = ("polygon_starts", "point_starts", "points")
        return {name: Pieces(len(array), _slices(array)) for name, array in zip(names, arrays, strict=True)}

    def pieces() -> Iterator[Outlines]:
        return map(outlines.take, _orders(len(outlines.polygon_starts) - 1, order))

    def joined(starts: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        yield np.zeros(1, np.int64)
        last = 0
        for some in starts:
            yield some[1:] + last
            last += int(some[-1])

    return {
        "polygon_starts": Pieces(len(outlines.polygon_starts), joined(part.polygon_starts for part in pieces())),
        "point_starts": Pieces(len(outlines.point_starts), joined(part.point_starts for part in pieces())),
        "points": Pieces(len(outlines.points), (part.points for part in pieces())),
    }


def _slices(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (array[start : start + _PIECE] for start in range(0, len(array), _PIECE))


def _trainable(
    coco: CocoColumns, images: NDArray[np.int32], labels: NDArray[Any], sizes: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """(N,) in the order of the file; what training leaves out is logged."""
    records = coco.annotations
    outside = _outside(images, records.boxes, sizes)
    repeated = find_repeated(images, labels, records.boxes)
    for lost, words in ((outside, "empty or outside their images"), (repeated, "exact repetitions of another")):
        if lost.any():
            log.warning("%s: %d boxes are %s; training leaves them out", coco.path, int(lost.sum()), words)
    return ~(outside | repeated | records.crowd)


def _not_finite(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The corners become float32: what overflows there is as unusable as infinity."""
    wrong = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(boxes), _PIECE):
        piece = boxes[start : start + _PIECE]
        with np.errstate(over="ignore", invalid="ignore"):
            corners = np.hstack([piece, piece[:, :2] + piece[:, 2:]])
            wrong[start : start + _PIECE] = ~np.isfinite(corners.astype(np.float32)).all(axis=1)
    return wrong


def _positions(coco: CocoColumns, wanted: NDArray[Any], field: str, known: NDArray[Any]) -> NDArray[Any]:
    """Place in `known` of every wanted id; an unknown one is refused."""
    by_value = np.argsort(known, kind="stable").astype(np.int16 if len(known) < 1 << 15 else np.int32)
    ordered = known[by_value]
    places = np.empty(len(wanted), by_value.dtype)
    unknown = np.empty(len(wanted), np.bool_)
    for start in range(0, len(wanted), _PIECE):
        some = slice(start, start + _PIECE)
        places[some] = by_value[np.clip(np.searchsorted(ordered, wanted[some]), 0, len(known) - 1)]
        unknown[some] = known[places[some]] != wanted[some]
    what = "image" if field == "image_id" else "category"
    if unknown.any():
        value = wanted[int(np.argmax(unknown))]
        _refuse(coco, unknown, f"{field} {value} names no {what} of this file")
    return places


def _refuse(coco: CocoColumns, wrong: NDArray[np.bool_], message: str) -> None:
    if wrong.any():
        more = int(wrong.sum()) - 1
        message += f" (and {more} more of the kind)" if more else ""
        record = f"annotation {coco.annotations.ids[int(np.argmax(wrong))]}"
        raise DataError(message, path=coco.path, record=record)


def left_out(arrays: Arrays) -> dict[str, NDArray[np.bool_]]:
    """Flags (N,) of the boxes that training leaves out: crowds; boxes with nothing inside their image; exact
    repetitions (same image, class and box) of one that comes before. A box may have several.
    """
    boxes = arrays["boxes"]
    images = np.repeat(np.arange(len(arrays["sizes"]), dtype=np.int32), np.diff(arrays["box_starts"]))
    outside = _outside(images, boxes, arrays["sizes"])
    repeated = find_repeated(images, arrays["labels"], boxes)
    return {"crowd": arrays["crowd"], "outside": outside, "repeated": repeated}


def _outside(images: NDArray[Any], boxes: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(N,) True for boxes that have nothing inside their image."""
    outside = np.zeros(len(boxes), np.bool_)
    for start in range(0, len(boxes), _PIECE):
        some = slice(start, start + _PIECE)
        sides = sizes[images[some]][:, ::-1].astype(np.float64)
        corners = np.clip(np.stack([boxes[some, :2], boxes[some, :2] + boxes[some, 2:]]), 0, sides)
        outside[some] = ~(corners[1] > corners[0]).all(1)
    return outside


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
