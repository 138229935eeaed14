"""Read and write YOLO text labels: one `.txt` per image, one row per object, coordinates as shares of the sides.

A row is `class x y w h` (centre and size of a box) or `class x1 y1 x2 y2 x3 y3 ...` (a polygon of at least three
points); a file may hold both. What else a row may be: `yolo_rows.py`. Class numbers count from 0; as categories they
become 1, 2, ..., in the same order.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath

from yolov7.data.formats.coco import CocoAnnotations, Record, classes_of
from yolov7.data.formats.label_files import (
    LabelledImage,
    Ring,
    by_image,
    collected,
    copy_images,
    fresh_folder,
    raise_together,
    ring_area,
    ring_bounds,
)
from yolov7.data.formats.yolo_rows import RawRow, Row, RowFormat, parse_row, read_rows, settle
from yolov7.errors import DataError

logger = logging.getLogger(__name__)

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


@dataclass
class RowCounts:
    """What was met in the rows of a set. Every row is checked before the first few bad ones are reported."""

    bad: list[tuple[Path, int, str]] = field(default_factory=list)
    """File, line and reason."""
    repeated: list[str] = field(default_factory=list)
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Objects by kind and class name: `box`, `polygon`, `obb`, `pose`; and `rotated`, some of the others."""
    extra: int = 0
    """Rows whose confidence or track number was left out."""
    cut: int = 0
    """Oriented boxes that reached beyond their image."""
    empty_files: int = 0
    mixed_files: int = 0
    """Files with both boxes and outlines."""
    shared_boxes: int = 0
    """Boxes that stand in a file with more than one class."""

    def refusal(self) -> DataError | None:
        """The error about the bad rows; None if there are none."""
        return _bad_rows(self.bad) if self.bad else None


def read_yolo(
    images: Sequence[YoloImage],
    class_names: Sequence[str],
    *,
    path: Path,
    rows: RowFormat = RowFormat(),  # noqa: B008 (frozen)
    first_image_id: int = 1,
    first_annotation_id: int = 1,
) -> tuple[CocoAnnotations, list[str]]:
    """Read the label files of `images`; returns the annotations and notes on what was left out or guessed.

    Every annotation keeps its `line`; polygons become a `segmentation` of one ring, and its bounds the box. Exactly
    repeated rows of a file are read once and noted. `path` names the source in messages and in the result.

    Raises :class:`DataError` naming file and line for: a row that `rows` does not describe, a value that is not a
    finite number within 0 to 1, a class number that is not a whole number or has no name; and for rows that may mean
    two things (:func:`yolov7.data.formats.yolo_rows.settle`).
    """
    raw = read_label_files(images)
    settled, notes, ambiguous = settle(chain.from_iterable(raw), rows)
    if ambiguous is not None:
        raise DataError(ambiguous, path=path)
    names = dict(enumerate(class_names))
    first = (first_image_id, first_annotation_id)
    coco, counts = join_rows(images, raw, names, settled, path=path, first=first)
    refusal = counts.refusal()
    if refusal is not None:
        raise refusal
    return coco, [*repeated_note(counts), *notes]


def read_label_files(images: Sequence[YoloImage]) -> list[list[RawRow]]:
    """The rows of every image's label file. Raises :class:`DataError` naming all files that cannot be read."""
    problems: list[DataError] = []
    rows: list[list[RawRow]] = []
    for image in images:
        rows.append([])
        with collected(problems):
            rows[-1] = [] if image.label is None else read_rows(image.label)
    raise_together(problems)
    return rows


def join_rows(
    images: Sequence[YoloImage],
    raw: Sequence[Sequence[RawRow]],
    names: Mapping[int, str],
    rows: RowFormat,
    *,
    path: Path,
    first: tuple[int, int] = (1, 1),
) -> tuple[CocoAnnotations, RowCounts]:
    """Annotations in pixels from the rows of every image, and what was met; bad rows are counted, not raised.

    `names`: class names by the number in the rows; the categories are 1, 2, ... in the order of the numbers. `first`:
    the first image id and the first annotation id.
    """
    counts = RowCounts()
    categories = {number: place for place, number in enumerate(names, 1)}
    records: list[Record] = []
    annotations: list[Record] = []
    for image_id, (image, lines) in enumerate(zip(images, raw, strict=True), first[0]):
        records.append({"id": image_id, "file_name": image.file_name, "width": image.width, "height": image.height})
        counts.empty_files += image.label is not None and not lines
        for row in _good_rows(image, lines, names, rows, counts):
            place = {"id": first[1] + len(annotations), "image_id": image_id, "category_id": categories[row.label]}
            annotations.append({**place, **_geometry(row, image, names[row.label], counts)})
    listed: list[Record] = [{"id": place, "name": names[number]} for number, place in categories.items()]
    return CocoAnnotations(path=path, images=records, annotations=annotations, categories=listed), counts


def _good_rows(
    image: YoloImage, lines: Sequence[RawRow], names: Mapping[int, str], rows: RowFormat, counts: RowCounts
) -> list[Row]:
    found: dict[tuple[int, tuple[float, ...]], Row] = {}
    for raw in lines:
        row = parse_row(raw, names, rows)
        if isinstance(row, str):
            assert image.label is not None
            counts.bad.append((image.label, raw.line, row))
        elif (row.label, row.values) in found:
            name = PurePosixPath(image.file_name).with_suffix(".txt")
            counts.repeated.append(f"{name} line {raw.line} (as line {found[row.label, row.values].line})")
        else:
            found[row.label, row.values] = row
            counts.extra += row.extra
    counts.shared_boxes += len(found) - len({values for _, values in found})
    kinds = {row.kind for row in found.values()}
    counts.mixed_files += "box" in kinds and "polygon" in kinds
    return list(found.values())


def _geometry(row: Row, image: YoloImage, name: str, counts: RowCounts) -> Record:
    """Box, area and outline in pixels."""
    counts.kinds[row.kind][name] += 1
    if len(row.values) == 4:
        x, y, w, h = row.values
        width, height = w * image.width, h * image.height
        box = [x * image.width - width / 2, y * image.height - height / 2, width, height]
        return {"bbox": box, "area": width * height, "iscrowd": 0, "line": row.line}
    sides = (image.width, image.height)
    ring = [value * sides[place % 2] for place, value in enumerate(row.values)]
    counts.kinds["rotated"][name] += len(ring) == 8 and _is_rotated(ring)
    if row.kind == "obb":
        inside = [min(max(value, 0.0), float(sides[place % 2])) for place, value in enumerate(ring)]
        counts.cut += max(abs(a - b) for a, b in zip(ring, inside, strict=True)) > _NOTICEABLE
        ring = inside
    left, top, right, bottom = ring_bounds(ring)
    box = [left, top, right - left, bottom - top]
    return {"bbox": box, "area": ring_area(ring), "iscrowd": 0, "segmentation": [ring], "line": row.line}


def _is_rotated(ring: Ring) -> bool:
    """True for the corners of a rectangle whose sides are not parallel to those of the image."""
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = zip(ring[::2], ring[1::2], strict=True)
    first, second = math.hypot(cx - ax, cy - ay), math.hypot(dx - bx, dy - by)
    slack = 1.0 + 0.01 * max(first, second)
    centred = math.hypot(ax + cx - bx - dx, ay + cy - by - dy) / 2 <= slack
    left, top, right, bottom = ring_bounds(ring)
    upright = all(min(x - left, right - x) <= slack and min(y - top, bottom - y) <= slack
                  for x, y in zip(ring[::2], ring[1::2], strict=True))  # fmt: skip
    return centred and abs(first - second) <= slack and not upright


def _bad_rows(bad: list[tuple[Path, int, str]]) -> DataError:
    (file, line, reason), *others = bad
    if others:
        listed = "; ".join(f"{path} line {number}: {why}" for path, number, why in others[: _LISTED - 1])
        further = len(bad) - _LISTED
        reason += f" ({len(bad)} bad rows in all: {listed}{f'; and {further} more' if further > 0 else ''})"
    return DataError(reason, path=file, record=f"line {line}")


def repeated_note(counts: RowCounts) -> list[str]:
    """A note on rows that were left out as repeated, if there are any."""
    repeated = counts.repeated
    if not repeated:
        return []
    more = f" and {len(repeated) - _LISTED} more" if len(repeated) > _LISTED else ""
    return [f"{len(repeated)} repeated label rows were left out: {', '.join(repeated[:_LISTED])}{more}"]


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
