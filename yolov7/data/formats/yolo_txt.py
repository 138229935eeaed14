"""Read and write YOLO text labels: one `.txt` per image, one row per object, coordinates as shares of the sides.

A row is `class x y w h` (centre and size of a box) or `class x1 y1 x2 y2 x3 y3 ...` (a polygon of at least three
points); a file may hold both. Class numbers count from 0; as categories they become 1, 2, ..., in the same order.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath

import yaml

from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.data.formats.label_files import (
    LabelledImage,
    Ring,
    by_image,
    copy_images,
    finite_number,
    fresh_folder,
    read_text,
    ring_area,
    ring_bounds,
    text_lines,
)
from yolov7.data.index_arrays import classes_of
from yolov7.errors import DataError

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Tolerance outside 0 to 1: the error of rounding to six decimals."""
_OUTLINE_TOLERANCE = 0.25
"""A polygon is written instead of its box if its bounds are this close to the box, in pixels."""
_NOTICEABLE = 0.01
"""Boxes that lose less than this at the image's edge, in pixels, are not reported as clipped."""
_LISTED = 5


@dataclass(frozen=True)
class YoloImage:
    """An image and its label file."""

    file_name: str
    """Relative to the image folder."""
    height: int
    """Pixels, upright."""
    width: int
    label: Path | None
    """None: no label file, so no objects."""


@dataclass(frozen=True)
class _Row:
    line: int
    label: int
    values: tuple[float, ...]
    """Four for a box, six or more for a polygon."""


@dataclass
class _Defects:
    """Bad and repeated rows of all files: every row is checked before the first few bad ones are reported."""

    bad: list[tuple[Path, int, str]] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


def read_yolo(
    images: Sequence[YoloImage],
    class_names: Sequence[str],
    *,
    path: Path,
    first_image_id: int = 1,
    first_annotation_id: int = 1,
) -> tuple[CocoAnnotations, list[str]]:
    """Read the label files of `images`; returns the annotations and notes on what was left out.

    Every annotation keeps its `line`; polygons become a `segmentation` of one ring, and its bounds the box. Exactly
    repeated rows of a file are read once and noted. `path` names the source in messages and in the result.

    Raises :class:`DataError` naming file and line for: a row of neither 5 nor an odd number of 7 or more columns, a
    value that is not a finite number within 0 to 1, a class number that is not a whole number or has no name.
    """
    defects = _Defects()
    records: list[Record] = []
    annotations: list[Record] = []
    for image_id, image in enumerate(images, first_image_id):
        size = {"width": image.width, "height": image.height}
        records.append({"id": image_id, "file_name": image.file_name, **size})
        for row in _rows(image, len(class_names), defects):
            identity = first_annotation_id + len(annotations)
            annotations.append({"id": identity, "image_id": image_id, **_annotation(row, image)})
    if defects.bad:
        raise _bad_rows(defects.bad)
    categories: list[Record] = [{"id": number, "name": name} for number, name in enumerate(class_names, 1)]
    coco = CocoAnnotations(path=path, images=records, annotations=annotations, categories=categories)
    return coco, _notes(defects.repeated)


def _rows(image: YoloImage, classes: int, defects: _Defects) -> list[_Row]:
    if image.label is None:
        return []
    rows: dict[tuple[int, tuple[float, ...]], _Row] = {}
    for line, text in enumerate(text_lines(read_text(image.label)), 1):
        columns = text.split()
        if not columns:
            continue
        row = _row(columns, line, classes)
        if isinstance(row, str):
            defects.bad.append((image.label, line, row))
        elif (row.label, row.values) in rows:
            name = PurePosixPath(image.file_name).with_suffix(".txt")
            defects.repeated.append(f"{name} line {line} (as line {rows[row.label, row.values].line})")
        else:
            rows[row.label, row.values] = row
    return list(rows.values())


def _row(columns: list[str], line: int, classes: int) -> _Row | str:
    """One row, or the reason why it is bad."""
    count = len(columns)
    if count != 5 and (count < 7 or count % 2 == 0):
        return (
            f"{count} columns; a box has 5 (class x y w h), a polygon 7 or more, an odd number (class x1 y1 x2 y2 ...)"
        )
    numbers = [finite_number(column) for column in columns]
    values: list[float] = []
    for column, number in zip(columns, numbers, strict=True):
        if number is None:
            return f"{_shown(column)} is not a finite number"
        values.append(number)
    label = values[0]
    if label != int(label) or not 0 <= label < classes:
        return (
            f"class {_shown(columns[0])}; expected a whole number from 0 to {classes - 1}: {classes} classes are named"
        )
    for column, value in zip(columns[1:], values[1:], strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            return f"{_shown(column)} is not within 0 to 1; divide by the image's width or height"
    return _Row(line, int(label), tuple(values[1:]))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _annotation(row: _Row, image: YoloImage) -> Record:
    """Box, area and outline in pixels."""
    if len(row.values) == 4:
        x, y, w, h = row.values
        width, height = w * image.width, h * image.height
        box = [x * image.width - width / 2, y * image.height - height / 2, width, height]
        return {"category_id": row.label + 1, "bbox": box, "area": width * height, "iscrowd": 0, "line": row.line}
    sides = (image.width, image.height)
    ring = [value * sides[place % 2] for place, value in enumerate(row.values)]
    left, top, right, bottom = ring_bounds(ring)
    return {
        "category_id": row.label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": ring_area(ring),
        "iscrowd": 0,
        "segmentation": [ring],
        "line": row.line,
    }


def _bad_rows(bad: list[tuple[Path, int, str]]) -> DataError:
    (file, line, reason), *others = bad
    if others:
        listed = "; ".join(f"{path} line {number}: {why}" for path, number, why in others[: _LISTED - 1])
        further = len(bad) - _LISTED
        reason += f" ({len(bad)} bad rows in all: {listed}{f'; and {further} more' if further > 0 else ''})"
    return DataError(reason, path=file, record=f"line {line}")


def _notes(repeated: list[str]) -> list[str]:
    if not repeated:
        return []
    more = f" and {len(repeated) - _LISTED} more" if len(repeated) > _LISTED else ""
    return [f"{len(repeated)} repeated label rows were left out: {', '.join(repeated[:_LISTED])}{more}"]


def read_class_names(path: Path) -> list[str]:
    """Class names by number: a text file with one name per line, or a YAML file whose `names` is a list or a mapping.

    Raises :class:`DataError` if there are none, if a line between others is blank, or if numbers are missing.
    """
    text = read_text(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _names_of_yaml(path, text)
    names = [line.strip() for line in text_lines(text)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError("no class names; write one name per line", path=path)
    if "" in names:
        message = "a blank line between class names: the numbers of the names below it are ambiguous"
        raise DataError(message, path=path, record=f"line {names.index('') + 1}")
    return names


def _names_of_yaml(path: Path, text: str) -> list[str]:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"not readable as YAML: {' '.join(str(error).split())[:200]}", path=path) from None
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise DataError(f"the keys of `names` are not 0 to {len(names) - 1}", path=path)
        by_number = {int(number): name for number, name in names.items()}
        names = [by_number[number] for number in range(len(by_number))]
    if not isinstance(names, list) or not names:
        raise DataError("no `names`; expected a list of class names, or a mapping from number to name", path=path)
    for number, name in enumerate(names):
        if not isinstance(name, str | int) or str(name).strip() == "":
            raise DataError(f"the name is {name!r}; expected a text", path=path, record=f"class {number}")
    return [str(name) for name in names]


def write_yolo(coco: CocoAnnotations, out: Path, *, images_folder: Path | None = None, polygons: bool = True) -> int:
    """Write `out/labels/**/*.txt` (one per image, empty without objects) and `out/classes.txt`.

    Returns the number of rows. With `images_folder`, the image files are copied to `out/images`. Objects whose outline
    is one polygon that agrees with the box become polygon rows, unless `polygons` is false; all others box rows. The
    format has neither crowds nor coordinates outside the image: crowd boxes and boxes wholly outside are omitted,
    others are clipped to the image, each with a warning. Class numbers follow the order of the category ids.

    Raises :class:`DataError` for content that the format cannot hold
    (:func:`yolov7.data.formats.label_files.by_image`; an unknown category; a class name that is not one line of text)
    and if `out` is not empty. On any error `out` is not created.
    """
    names, category_ids = classes_of(coco)
    for name in names:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(f"the class name {name!r} cannot be a line of classes.txt; rename it", path=coco.path)
    numbers = {category: number for number, category in enumerate(category_ids)}
    images = by_image(coco, ".txt")
    rows = 0
    cut = left_out = 0
    with fresh_folder(out) as folder:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        for image in images:
            written, cut_here = _lines(image, numbers, coco.path, polygons=polygons)
            cut += cut_here
            left_out += len(image.annotations) - len(written)
            rows += len(written)
            file = folder / "labels" / image.label
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(written), encoding="ascii")
        if images_folder is not None:
            copy_images(images, images_folder, folder / "images")
    if cut:
        logger.warning("%s: %d boxes were clipped to their images", coco.path, cut)
    if left_out:
        message = "%s: %d boxes of crowds, or wholly outside their image, were left out"
        logger.warning(message, coco.path, left_out)
    return rows


def _lines(image: LabelledImage, numbers: dict[int, int], path: Path, *, polygons: bool) -> tuple[list[str], int]:
    """The rows of one label file, and the number of clipped boxes."""
    sides = (float(image.record["width"]), float(image.record["height"]))
    lines: list[str] = []
    cut = 0
    for annotation in image.annotations:
        if annotation["category_id"] not in numbers:
            message = f"category_id {annotation['category_id']} is not a category of this file"
            raise DataError(message, path=path, record=f"annotation {annotation['id']}")
        if annotation.get("iscrowd"):
            continue
        x, y, w, h = annotation["bbox"]
        corners = (x, y, x + w, y + h)
        left, top, right, bottom = (min(max(value, 0.0), sides[i % 2]) for i, value in enumerate(corners))
        if right <= left or bottom <= top:
            continue
        cut += max(abs(a - b) for a, b in zip(corners, (left, top, right, bottom), strict=True)) > _NOTICEABLE
        ring = _outline(annotation, (left, top, right, bottom), sides) if polygons else None
        if ring is None:
            ring = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        shares = (value / sides[place % 2] for place, value in enumerate(ring))
        lines.append(" ".join(chain([str(numbers[annotation["category_id"]])], map(_decimal, shares))) + "\n")
    return lines, cut


def _outline(annotation: Record, corners: tuple[float, float, float, float], sides: tuple[float, float]) -> Ring | None:
    """The polygon to write instead of the box, clipped to the image; None if its bounds are not the box."""
    rings = annotation.get("segmentation")
    if not isinstance(rings, list) or len(rings) != 1 or len(rings[0]) < 6 or len(rings[0]) % 2:
        return None
    if not all(abs(value) < float("inf") for value in rings[0]):
        return None
    ring = [min(max(value, 0.0), sides[place % 2]) for place, value in enumerate(rings[0])]
    apart = max(abs(a - b) for a, b in zip(ring_bounds(ring), corners, strict=True))
    return ring if apart <= _OUTLINE_TOLERANCE else None


def _decimal(share: float) -> str:
    """Ten decimals: less than a hundredth of a pixel on the largest possible image."""
    return f"{share:.10f}".rstrip("0").rstrip(".")
