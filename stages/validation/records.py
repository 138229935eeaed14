"""Tables with a row per image or annotation record; their columns are made when asked for, a piece at a time.

A data set of 17 million boxes would fill ten gigabytes with all columns at once; a rule needs one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.validation.image_cache import ImageCheck
from stages.validation.leaks import Repetitions
from yolov7.data.columns import CocoColumns
from yolov7.data.repeated import find_repeated

if TYPE_CHECKING:
    import pandas as pd

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Rows = slice | Int64s

PIECE = 1 << 18
"""Rows of a frame."""

_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".mpo"},
    "TIFF": {".tif", ".tiff"},
    "JPEG2000": {".jp2", ".j2k"},
}
"""File extensions by format, if they differ from the format's name."""


class SplitImages:
    """The image records of one split, and what is known of each beyond its own fields."""

    def __init__(self, split: str, coco: CocoColumns, checks: Sequence[ImageCheck], owners: NDArray[np.int32]) -> None:
        """`checks` holds one entry per image; `owners` are the images of the annotations, -1 for unknown ones."""
        self.split, self.coco, self.checks = split, coco, checks
        count, crowd = len(coco.images), coco.annotations.crowd
        self.boxes = np.bincount(owners[owners >= 0], minlength=count)
        self.real_boxes = np.bincount(owners[(owners >= 0) & ~crowd], minlength=count)
        self.repetitions: Repetitions | None = None
        """Rows as here; None where no file was compared."""

    def __len__(self) -> int:
        return len(self.coco.images)

    @cached_property
    def uses_of_id(self) -> Int64s:
        """Records with the same id."""
        return count_uses(self.coco.images.ids)

    @cached_property
    def uses_of_file(self) -> Int64s:
        """Records with the same file."""
        return count_uses(self.coco.images.names)


class SplitAnnotations:
    """The annotation records of one split, and what is known of each beyond its own fields."""

    def __init__(self, split: str, coco: CocoColumns, owners: NDArray[np.int32]) -> None:
        self.split, self.coco, self.owners = split, coco, owners
        sizes = np.stack([coco.images.widths, coco.images.heights], axis=1).astype(np.float64)
        self.sizes = np.vstack([sizes, [np.nan, np.nan]])
        """Width and height of the images; -1 is the row of NaN."""
        self.names = np.append(coco.images.names, [None])

    def __len__(self) -> int:
        return len(self.coco.annotations)

    @cached_property
    def uses_of_id(self) -> Int64s:
        """Records with the same id."""
        return count_uses(self.coco.annotations.ids)

    @cached_property
    def is_repeated(self) -> NDArray[np.bool_]:
        """An earlier record has the same image, category and box."""
        columns = self.coco.annotations
        return find_repeated(columns.image_ids, columns.category_ids, columns.boxes)

    @cached_property
    def category_ids(self) -> Int64s:
        """Ids of the listed categories."""
        return np.array([record["id"] for record in self.coco.categories], np.int64)


class _ImageRows:
    """Some rows of a split's images."""

    def __init__(self, part: SplitImages, rows: Rows) -> None:
        self.part, self.rows = part, rows
        self.images = part.coco.images

    @cached_property
    def checks(self) -> Sequence[ImageCheck]:
        checks, rows = self.part.checks, self.rows
        return checks[rows] if isinstance(rows, slice) else [checks[row] for row in rows]

    @cached_property
    def sides(self) -> tuple[Float64s, Float64s]:
        """Width and height."""
        return (self.images.widths[self.rows].astype(np.float64), self.images.heights[self.rows].astype(np.float64))

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        width, height = self.sides
        return _is_pixel_count(width) & _is_pixel_count(height)

    @cached_property
    def mean_side(self) -> Float64s:
        width, height = self.sides
        return np.sqrt(np.where(self.valid, width, np.nan) * np.where(self.valid, height, np.nan))

    def facts(self, name: str) -> list[Any]:
        """A field of the checks."""
        return [getattr(check, name) for check in self.checks]

    def file_side(self, name: str) -> Float64s:
        return np.array([side or np.nan for side in self.facts(name)], dtype=np.float64)

    def extension_fits(self) -> list[bool | None]:
        names = self.images.names[self.rows]
        return [_extension_fits(name, check.format) for name, check in zip(names, self.checks, strict=True)]

    def size_matches(self) -> NDArray[Any]:
        """Missing if the file could not be decoded, which is another rule's finding."""
        (width, height), file_width = self.sides, self.file_side("width")
        matches = (width == file_width) & (height == self.file_side("height"))
        found = matches.astype(object)
        found[np.isnan(file_width)] = None
        return found

    def repetition(self, name: str) -> list[str | None]:
        found = self.part.repetitions
        if found is None:
            return [None] * len(self.images.ids[self.rows])
        values: list[str | None] = getattr(found, name)
        return values[self.rows] if isinstance(self.rows, slice) else [values[row] for row in self.rows]


class _AnnotationRows:
    """Some rows of a split's annotations."""

    def __init__(self, part: SplitAnnotations, rows: Rows) -> None:
        self.part, self.rows = part, rows
        self.columns = part.coco.annotations
        self.owners = part.owners[rows]
        self.boxes = self.columns.boxes[rows]

    @cached_property
    def sizes(self) -> Float64s:
        return self.part.sizes[self.owners]

    @cached_property
    def finite(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.boxes).all(axis=1))

    @cached_property
    def shape(self) -> dict[str, Float64s]:
        return _shape(self.boxes, self.sizes, self.columns.areas[self.rows], self.columns.crowd[self.rows])

    def category_is_known(self) -> NDArray[np.bool_]:
        return positions(self.part.category_ids, self.columns.category_ids[self.rows]) >= 0


def _whole(values: NDArray[Any]) -> Int64s:
    return values.astype(np.int64)


_IMAGES: Mapping[str, Callable[[_ImageRows], Any]] = {
    "image_id": lambda rows: _whole(rows.images.ids[rows.rows]),
    "file_name": lambda rows: _objects(rows.images.names[rows.rows]),
    "width": lambda rows: _objects(rows.images.widths[rows.rows].tolist()),
    "height": lambda rows: _objects(rows.images.heights[rows.rows].tolist()),
    "boxes": lambda rows: rows.part.boxes[rows.rows],
    "real_boxes": lambda rows: rows.part.real_boxes[rows.rows],
    "uses_of_id": lambda rows: rows.part.uses_of_id[rows.rows],
    "uses_of_file": lambda rows: rows.part.uses_of_file[rows.rows],
    "size_is_valid": lambda rows: rows.valid,
    "mean_side": lambda rows: rows.mean_side,
    "file_exists": lambda rows: np.array(rows.facts("exists"), dtype=bool),
    "extension_fits": lambda rows: _objects(rows.extension_fits()),
    "file_width": lambda rows: rows.file_side("width"),
    "file_height": lambda rows: rows.file_side("height"),
    "brightness": lambda rows: np.array(rows.facts("brightness"), dtype=np.float64),
    "contrast": lambda rows: np.array(rows.facts("contrast"), dtype=np.float64),
    "defect": lambda rows: _objects(rows.facts("defect")),
    "complaint": lambda rows: _objects(rows.facts("complaint")),
    "format": lambda rows: _objects(rows.facts("format")),
    "mode": lambda rows: _objects(rows.facts("mode")),
    "is_animated": lambda rows: _objects(rows.facts("is_animated")),
    "sha256": lambda rows: _objects(rows.facts("sha256")),
    "hash": lambda rows: _objects(rows.facts("hash")),
    "size_matches": lambda rows: _objects(rows.size_matches()),
    "repeats": lambda rows: _objects(rows.repetition("repeats")),
    "also_in": lambda rows: _objects(rows.repetition("also_in")),
    "nearly_in": lambda rows: _objects(rows.repetition("nearly_in")),
}

_ANNOTATIONS: Mapping[str, Callable[[_AnnotationRows], Any]] = {
    "annotation_id": lambda rows: _whole(rows.columns.ids[rows.rows]),
    "image_id": lambda rows: _whole(rows.columns.image_ids[rows.rows]),
    "category_id": lambda rows: _whole(rows.columns.category_ids[rows.rows]),
    "iscrowd": lambda rows: rows.columns.crowd[rows.rows],
    "file_name": lambda rows: _objects(rows.part.names[rows.owners]),
    "left": lambda rows: rows.boxes[:, 0],
    "top": lambda rows: rows.boxes[:, 1],
    "box_width": lambda rows: rows.boxes[:, 2],
    "box_height": lambda rows: rows.boxes[:, 3],
    "area": lambda rows: rows.columns.areas[rows.rows],
    "image_width": lambda rows: rows.sizes[:, 0],
    "image_height": lambda rows: rows.sizes[:, 1],
    "uses_of_id": lambda rows: rows.part.uses_of_id[rows.rows],
    "image_is_known": lambda rows: rows.owners >= 0,
    "category_is_known": lambda rows: rows.category_is_known(),
    "box_is_finite": lambda rows: rows.finite,
    "overhang": lambda rows: _overhang(rows.boxes, rows.sizes, rows.finite),
    "short_side": lambda rows: rows.shape["short_side"],
    "elongation": lambda rows: rows.shape["elongation"],
    "coverage": lambda rows: rows.shape["coverage"],
    "relative_size": lambda rows: rows.shape["relative_size"],
    "area_of_box": lambda rows: rows.shape["area_of_box"],
    "box_is_new": lambda rows: ~rows.part.is_repeated[rows.rows],
}

PartT = TypeVar("PartT", SplitImages, SplitAnnotations)


class RecordTable(Generic[PartT]):
    """One row per record of any split."""

    def __init__(
        self, parts: Sequence[PartT], view: Callable[[PartT, Rows], Any], columns: Mapping[str, Callable[[Any], Any]]
    ) -> None:
        self.parts: Sequence[PartT] = parts
        self._view: Callable[[PartT, Rows], Any] = view
        self._columns = columns
        self._first = np.cumsum([0, *map(len, parts)])
        self.columns = ["row", "split", *columns]

    def __len__(self) -> int:
        return int(self._first[-1])

    def part(self, split: str) -> PartT:
        """The records of a split."""
        return next(part for part in self.parts if part.split == split)

    def rows(self, split: str) -> range:
        """The rows of a split."""
        number = next(number for number, part in enumerate(self.parts) if part.split == split)
        return range(int(self._first[number]), int(self._first[number + 1]))

    def frames(self, names: Collection[str]) -> Iterator[pd.DataFrame]:
        """These columns of all rows, in order, at most `PIECE` rows at a time; one frame if there are no rows."""
        import pandas as pd

        waiting: list[pd.DataFrame] = []
        for number, part in enumerate(self.parts):
            for start in range(0, len(part), PIECE):
                rows = slice(start, min(start + PIECE, len(part)))
                if waiting and sum(map(len, waiting)) + rows.stop - rows.start > PIECE:
                    yield pd.concat(waiting, ignore_index=True)
                    waiting = []
                waiting.append(self._frame(number, rows, names))
        yield pd.concat(waiting or [self._frame(0, slice(0, 0), names)], ignore_index=True)

    def records(self, rows: Sequence[int] | Int64s) -> list[dict[str, Any]]:
        """All columns of some rows, which ascend."""
        wanted = np.asarray(rows, np.int64)
        found: list[dict[str, Any]] = []
        for number, first in enumerate(self._first[:-1]):
            own = wanted[(wanted >= first) & (wanted < self._first[number + 1])]
            for start in range(0, len(own), PIECE):
                frame = self._frame(number, own[start : start + PIECE] - first, self.columns)
                found += frame.to_dict("records")
        return found

    def _frame(self, number: int, rows: Rows, names: Collection[str]) -> pd.DataFrame:
        import pandas as pd

        part = self.parts[number]
        view = self._view(part, rows)
        count = len(np.arange(len(part))[rows]) if isinstance(rows, slice) else len(rows)
        columns: dict[str, Any] = {}
        for name in names:
            if name == "row":
                places = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
                columns[name] = places + self._first[number]
            elif name == "split":
                columns[name] = part.split
            else:
                columns[name] = self._columns[name](view)
        return pd.DataFrame(columns, index=pd.RangeIndex(count))


def image_table(parts: Sequence[SplitImages]) -> RecordTable[SplitImages]:
    """One row per image record: image_id, file_name, width, height, facts of its file, and the image it repeats."""
    return RecordTable(parts, _ImageRows, _IMAGES)


def annotation_table(parts: Sequence[SplitAnnotations]) -> RecordTable[SplitAnnotations]:
    """One row per annotation record: ids, bbox, the image's size, and the position of the box in it."""
    return RecordTable(parts, _AnnotationRows, _ANNOTATIONS)


def _objects(values: Any) -> pd.Series:
    import pandas as pd

    return pd.Series(values, dtype=object)


def count_uses(values: list[Any] | NDArray[Any]) -> Int64s:
    """Number of occurrences of every value."""
    import pandas as pd

    if _are_different(values):
        return np.broadcast_to(np.int64(1), len(values))
    series = pd.Series(values)
    return series.groupby(series).transform("size").to_numpy(dtype=np.int64)


def _are_different(values: list[Any] | NDArray[Any]) -> bool:
    if isinstance(values, list) or values.dtype == object:
        return len(set(values)) == len(values)
    ordered = np.sort(values)  # np.unique takes a hundred times longer for millions of different numbers
    return bool((ordered[1:] != ordered[:-1]).all())


def positions(known: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.int32]:
    """Position of each wanted id among the known ones (the first); -1 if missing."""
    unique, first = np.unique(known, return_index=True)
    found = np.full(len(wanted), -1, np.int32)
    for start in range(0, len(wanted) if len(unique) else 0, PIECE):
        some = wanted[start : start + PIECE]
        at = np.searchsorted(unique, some).clip(max=len(unique) - 1)
        found[start : start + PIECE] = np.where(unique[at] == some, first[at], -1)
    return found


def _extension_fits(name: str, format_: str | None) -> bool | None:
    if format_ is None:
        return None
    return PurePosixPath(name).suffix.lower() in _EXTENSIONS.get(format_, {f".{format_.lower()}"})


def _is_pixel_count(side: Float64s) -> NDArray[np.bool_]:
    return (side >= 1) & (side < 2**31) & (np.floor(side) == side)


def _shape(boxes: Float64s, sizes: Float64s, area: Float64s, crowd: NDArray[np.bool_]) -> dict[str, Float64s]:
    """Size and aspect of a box; NaN for crowds and for boxes or images without a valid size."""
    sides = boxes[:, 2:]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        usable = (np.isfinite(sides) & (sides > 0)).all(axis=1) & ~crowd
        known = usable & (np.isfinite(sizes) & (sizes > 0)).all(axis=1)
        box_area = sides[:, 0] * sides[:, 1]
        return {
            "short_side": np.where(usable, sides.min(axis=1, initial=np.inf), np.nan),
            "elongation": np.where(usable, np.maximum(sides[:, 0] / sides[:, 1], sides[:, 1] / sides[:, 0]), np.nan),
            "coverage": np.where(known, box_area / (sizes[:, 0] * sizes[:, 1]), np.nan),
            "relative_size": np.where(known, np.sqrt(box_area) / sizes.max(axis=1, initial=0), np.nan),
            "area_of_box": np.where(usable & np.isfinite(area), area / box_area, np.nan),
        }


def _overhang(boxes: Float64s, sizes: Float64s, finite: NDArray[np.bool_]) -> Float64s:
    """Overhang of a box beyond its image, in pixels; NaN if the size of either is invalid."""
    with np.errstate(over="ignore", invalid="ignore"):
        far = boxes[:, :2] + boxes[:, 2:] - sizes
        beyond = np.maximum(np.maximum(-boxes[:, :2], far).max(axis=1, initial=-np.inf), 0.0)
    return np.where(finite & np.isfinite(sizes).all(axis=1), beyond, np.nan)
