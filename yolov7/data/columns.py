"""Annotations as columns: arrays with a row per image and per annotation, for data sets of any size.

An annotation takes some 60 bytes, and 8 more for each point of its outline, where a record takes a kilobyte. What
validation and the index use is here; other fields stay in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolov7.data.flags import PLAIN_FIELDS, flag_bits, mark_bits
from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.data.growing import GrowingArray, GrowingStarts, GrowingWholeNumbers

Int64s = NDArray[np.int64]
WholeNumbers = NDArray[np.signedinteger[Any]]
"""As narrow as they fit."""
Rows = NDArray[np.signedinteger[Any]] | NDArray[np.bool_] | slice

_BATCH = 20_000
"""Records turned into columns at a time."""
_LARGEST = 1e9
"""Coordinates of an outline beyond this are damage."""


@dataclass(frozen=True)
class ImageColumns:
    """One row per image record."""

    ids: WholeNumbers
    names: NDArray[np.object_]
    """`file_name`, texts."""
    widths: NDArray[Any]
    """Pixels as annotated: whole numbers as int64; the numbers themselves as objects if one is a fraction."""
    heights: NDArray[Any]
    open_world: NDArray[np.bool_]
    """The image lists classes that are not annotated exhaustively."""

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> ImageColumns:
        """Some of the rows."""
        return ImageColumns(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Outlines:
    """Polygons of N annotations, ragged: those of annotation i are `polygon_starts[i]:polygon_starts[i + 1]`."""

    polygon_starts: WholeNumbers
    """(N + 1,)"""
    point_starts: WholeNumbers
    """(Q + 1,)"""
    points: NDArray[np.float32]
    """(P, 2) x, y in pixels"""

    def take(self, rows: Int64s) -> Outlines:
        """The outlines of some annotations, in the order of `rows`."""
        polygons = _spans(self.polygon_starts, rows)
        point_starts = _starts(_counts(self.point_starts, polygons))
        points = np.empty((int(point_starts[-1]), 2), np.float32)
        for first in range(0, len(polygons), _BATCH):
            some = polygons[first : first + _BATCH]
            place = slice(int(point_starts[first]), int(point_starts[first + len(some)]))
            points[place] = self.points[_spans(self.point_starts, some)]
        return Outlines(_starts(_counts(self.polygon_starts, rows)), point_starts, points)


@dataclass(frozen=True)
class AnnotationColumns:
    """One row per annotation record. Whole numbers are stored as narrow as they fit."""

    ids: WholeNumbers
    image_ids: WholeNumbers
    category_ids: WholeNumbers
    boxes: NDArray[np.float64]
    """(N, 4) left, top, width, height in pixels, as annotated"""
    areas: NDArray[np.float64]
    """As annotated; NaN where there is none."""
    crowd: NDArray[np.bool_]
    flags: NDArray[np.uint8]
    """A bit for each of :data:`yolov7.data.flags.FLAGS`."""
    marks: NDArray[np.uint16]
    """A bit for each mark without effect."""
    outlines: Outlines

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Rows) -> AnnotationColumns:
        """Some of the rows."""
        plain = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "outlines"}
        return replace(self, outlines=self.outlines.take(np.arange(len(self))[rows]), **plain)


@dataclass(frozen=True)
class CocoColumns:
    """One annotation file as columns."""

    path: Path
    """The file that was read, for messages."""
    images: ImageColumns
    annotations: AnnotationColumns
    categories: list[Record]

    def take(self, images: Rows, annotations: Rows) -> CocoColumns:
        """Some of the images and annotations."""
        return replace(self, images=self.images.take(images), annotations=self.annotations.take(annotations))


def columns_of(coco: CocoAnnotations | CocoColumns) -> CocoColumns:
    """The columns of records."""
    if isinstance(coco, CocoColumns):
        return coco
    images = [image_columns(ImageLists(part)) for part in _parts(coco.images)]
    annotations = GrowingAnnotations()
    for part in _parts(coco.annotations):
        annotations.add(annotation_columns(AnnotationLists(part)))
    return CocoColumns(coco.path, join_images(images), annotations.columns(), coco.categories)


def _parts(records: Sequence[Record]) -> list[Sequence[Record]]:
    return [records[start : start + _BATCH] for start in range(0, len(records), _BATCH)]


class ImageLists:
    """The fields of some image records. Raises :class:`KeyError` or :class:`TypeError` where one is missing."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.ids = [record["id"] for record in records]
        self.names = [record["file_name"] for record in records]
        self.widths = [record["width"] for record in records]
        self.heights = [record["height"] for record in records]
        self.open_world = [bool(record.get("not_exhaustive_category_ids")) for record in records]


class AnnotationLists:
    """The fields of some annotation records. Raises :class:`KeyError` or :class:`TypeError` where one is missing."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.ids = [record["id"] for record in records]
        self.image_ids = [record["image_id"] for record in records]
        self.category_ids = [record["category_id"] for record in records]
        self.boxes = [record["bbox"] for record in records]
        self.coordinates = list(chain.from_iterable(self.boxes))
        self.names = set().union(*records)
        """Of all fields."""
        count = len(records)
        self.areas = [record.get("area", np.nan) for record in records] if "area" in self.names else [np.nan] * count
        self.crowd = [record.get("iscrowd", 0) for record in records] if "iscrowd" in self.names else [0] * count
        outlines = [record.get("segmentation", ()) for record in records] if "segmentation" in self.names else []
        self.outlines: list[Any] = outlines
        """Empty tuples where there is none; empty if no record has one."""
        self.rings = [ring for outline in outlines if type(outline) is list for ring in outline]
        self.points = list(chain.from_iterable(self.rings))


def image_columns(lists: ImageLists) -> ImageColumns:
    """Columns of records without faults."""
    names = np.empty(len(lists.names), object)
    names[:] = lists.names
    ids = np.array(lists.ids, np.int64)
    return ImageColumns(ids, names, _sides(lists.widths), _sides(lists.heights), np.array(lists.open_world, np.bool_))


def _sides(values: list[Any]) -> NDArray[Any]:
    if {int}.issuperset(map(type, values)):
        return np.array(values, np.int64)
    sides = np.empty(len(values), object)
    sides[:] = values
    return sides


def annotation_columns(lists: AnnotationLists) -> AnnotationColumns:
    """Columns of records without faults."""
    count = len(lists.ids)
    crowd = np.array(lists.crowd).astype(np.bool_)
    flags, marks = np.zeros(count, np.uint8), np.zeros(count, np.uint16)
    if lists.names <= PLAIN_FIELDS:
        odd = np.flatnonzero(crowd).tolist()
    else:
        odd = [row for row, record in enumerate(lists.records) if crowd[row] or not record.keys() <= PLAIN_FIELDS]
    for row in odd:
        flags[row], marks[row] = flag_bits(lists.records[row]), mark_bits(lists.records[row])
    return AnnotationColumns(
        ids=np.array(lists.ids, np.int64),
        image_ids=np.array(lists.image_ids, np.int64),
        category_ids=np.array(lists.category_ids, np.int64),
        boxes=np.array(lists.coordinates, np.float64).reshape(count, 4),
        areas=np.array(lists.areas, np.float64),
        crowd=crowd,
        flags=flags,
        marks=marks,
        outlines=_outlines(lists),
    )


def _outlines(lists: AnnotationLists) -> Outlines:
    """Run-length masks, rings of fewer than three points and damaged ones count as none."""
    counts = np.zeros(len(lists.ids), np.int64)
    if not lists.rings:
        return Outlines(_starts(counts), _starts(counts[:0]), np.zeros((0, 2), np.float32))
    lengths = np.fromiter(map(len, lists.rings), np.int64, len(lists.rings))
    owners = np.repeat(
        np.arange(len(counts)), [len(outline) if type(outline) is list else 0 for outline in lists.outlines]
    )
    values = np.array(lists.points, np.float64)
    damaged = np.concatenate([[0], np.cumsum(~(np.abs(values) < _LARGEST))])
    ends = np.cumsum(lengths)
    good = (lengths >= 6) & (lengths % 2 == 0) & (damaged[ends] == damaged[ends - lengths])
    kept = values if good.all() else values[np.repeat(good, lengths)]
    with np.errstate(over="ignore"):
        points = kept.astype(np.float32).reshape(-1, 2)
    return Outlines(_starts(np.bincount(owners[good], minlength=len(counts))), _starts(lengths[good] // 2), points)


def join_images(parts: list[ImageColumns]) -> ImageColumns:
    """The rows of several parts, whose list is emptied: they are let go of column by column."""
    nothing = image_columns(ImageLists([]))
    columns = {field.name: [getattr(part, field.name) for part in parts or [nothing]] for field in fields(nothing)}
    parts.clear()
    joined = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
    ids = GrowingWholeNumbers()
    ids.add(joined.pop("ids"))
    return ImageColumns(ids=ids.array(), **joined)


class GrowingAnnotations:
    """Columns that rows are added to."""

    def __init__(self) -> None:
        self._whole = {name: GrowingWholeNumbers() for name in ("ids", "image_ids", "category_ids")}
        self._columns = {
            "boxes": GrowingArray(np.float64, (4,)),
            "areas": GrowingArray(np.float64),
            "crowd": GrowingArray(np.bool_),
            "flags": GrowingArray(np.uint8),
            "marks": GrowingArray(np.uint16),
        }
        self._polygon_starts, self._point_starts = GrowingStarts(), GrowingStarts()
        self._points = GrowingArray(np.float32, (2,))

    def add(self, part: AnnotationColumns) -> None:
        """Add rows."""
        for name, column in (self._whole | self._columns).items():
            column.add(getattr(part, name))
        self._polygon_starts.add(part.outlines.polygon_starts)
        self._point_starts.add(part.outlines.point_starts)
        self._points.add(part.outlines.points)

    def columns(self) -> AnnotationColumns:
        """All rows, in the same memory. No more can be added."""
        outlines = Outlines(self._polygon_starts.array(), self._point_starts.array(), self._points.array())
        arrays: dict[str, Any] = {name: column.array() for name, column in (self._whole | self._columns).items()}
        return AnnotationColumns(outlines=outlines, **arrays)


def _starts(counts: NDArray[Any]) -> Int64s:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _counts(starts: WholeNumbers, rows: Int64s) -> Int64s:
    """Items of some rows of a ragged array."""
    return starts[rows + 1].astype(np.int64) - starts[rows]


def _spans(starts: WholeNumbers, rows: Int64s) -> Int64s:
    """Places of all items of some rows of a ragged array, row by row."""
    counts = _counts(starts, rows)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts[rows] - (ends - counts), counts)
