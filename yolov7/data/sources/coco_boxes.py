"""Boxes and flags of COCO exports, converted as `data.coco` says; doubts about boxes as refusals and warnings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from yolov7.data.flags import is_ignored, rotation_of, shown_counts
from yolov7.data.formats.coco import CocoAnnotations, Problem, Record, is_box
from yolov7.data.sources.parameters import Coco

_CORNERS_SHARE = 0.2
"""Share of the boxes that leave their image from which they may be corners; a single one proves nothing."""

_ROUNDING = 0.001
"""Shares of the sides may be this far outside 0 to 1."""

_Size = tuple[float, float]


def convert_boxes(coco: CocoAnnotations, parameters: Coco) -> list[str]:
    """Change boxes and flags in place; returns notes.

    Boxes of annotations without a known image or a valid size stay as they are: validation names them.
    """
    notes: list[str] = []
    sizes = {record["id"]: (float(record["width"]), float(record["height"])) for record in coco.images}
    sized = [record for record in coco.annotations if _is_valid(sizes.get(record["image_id"]))]
    kind = parameters.boxes
    if kind is None:
        notes += _looks_like_corners(sized, sizes) or _from_supervisely(coco)
    elif kind != "pixels":
        for record in sized:
            _CONVERTERS[kind](record, sizes[record["image_id"]])
        notes.append(f"{len(sized)} boxes were converted to pixels (data.coco.boxes: {kind})")
    if parameters.enclose_rotated:
        notes += _enclose(sized)
    return notes + _change_flags(coco.annotations, parameters, coco)


def _is_valid(size: _Size | None) -> bool:
    return size is not None and all(math.isfinite(side) and side > 0 for side in size)


def find_relative(document: Record, parameters: Coco) -> list[Problem]:
    """The problem of a file in which no number of any box exceeds 1; `data.coco.boxes` settles it.

    Such boxes are shares of the sides (Azure), or smaller than a pixel. Records with faults are passed over.
    """
    records = document.get("annotations")
    if parameters.boxes is not None or not isinstance(records, list):
        return []
    number = 0
    for record in records:
        box = record.get("bbox") if type(record) is dict else None
        if box is not None and is_box(box):
            if not all(-_ROUNDING <= value <= 1 + _ROUNDING for value in box):
                return []
            number += box[2] > 0 and box[3] > 0
    if not number:
        return []
    message = (
        f"all numbers of its {number} boxes are within 0 to 1: shares of the sides, as Azure writes them, or boxes of "
        "less than a pixel; set data.coco.boxes to relative or to pixels"
    )
    return [Problem("relative", message)]


def _looks_like_corners(records: Sequence[Record], sizes: dict[int, _Size]) -> list[str]:
    """A note if every box makes sense as two corners and many leave their image as corner and sides."""
    outside = 0
    for record in records:
        (a, b, c, d), (width, height) = record["bbox"], sizes[record["image_id"]]
        if not (a < c <= width + 1 and b < d <= height + 1):
            return []
        outside += a + c > width + 1 or b + d > height + 1
    if outside < 2 or outside < _CORNERS_SHARE * len(records):
        return []
    return [
        f"{outside} of {len(records)} boxes leave their image, and all would be inside as left, top, right, bottom: "
        "bbox must be left, top, width, height; data.coco.boxes: corners converts them"
    ]


def _from_supervisely(coco: CocoAnnotations) -> list[str]:
    """A note if the file has the ids of Supervisely, whose boxes end at their last pixel."""
    first = [record for records in (coco.images, coco.annotations, coco.categories) for record in records[:1]]
    if not coco.annotations or not any("sly_id" in record for record in first):
        return []
    return ["Supervisely writes boxes whose sides are one pixel short: data.coco.boxes: inclusive adds it"]


def _from_relative(record: Record, size: _Size) -> None:
    record["bbox"] = [value * size[place % 2] for place, value in enumerate(record["bbox"])]
    area, outline = record.get("area"), record.get("segmentation")
    if area is not None and 0 <= area <= 1 + _ROUNDING:
        record["area"] = area * size[0] * size[1]
    if isinstance(outline, list) and all(abs(value) <= 1 + _ROUNDING for ring in outline for value in ring):
        record["segmentation"] = [[value * size[place % 2] for place, value in enumerate(ring)] for ring in outline]


def _from_corners(record: Record, size: _Size) -> None:
    left, top, right, bottom = record["bbox"]
    record["bbox"] = [left, top, right - left, bottom - top]


def _from_inclusive(record: Record, size: _Size) -> None:
    left, top, width, height = record["bbox"]
    record["bbox"] = [left, top, width + 1, height + 1]


_CONVERTERS: dict[str, Callable[[Record, _Size], None]] = {
    "relative": _from_relative,
    "corners": _from_corners,
    "inclusive": _from_inclusive,
}


def _enclose(records: Sequence[Record]) -> list[str]:
    """Boxes around rotated rectangles: by `attributes.rotation` degrees about the centre."""
    count = 0
    for record in records:
        angle = rotation_of(record)
        if angle:
            left, top, width, height = record["bbox"]
            cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
            wide, high = width * cos + height * sin, width * sin + height * cos
            record["bbox"] = [left + (width - wide) / 2, top + (height - high) / 2, wide, high]
            record["rotation_enclosed"] = 1
            count += 1
    return [f"{count} boxes were enlarged to hold their rotated rectangle (data.coco.enclose_rotated)"] if count else []


def _change_flags(records: Sequence[Record], parameters: Coco, coco: CocoAnnotations) -> list[str]:
    changed: dict[str, Counter[int]] = {"crowd_is_object": Counter(), "ignore_is_crowd": Counter()}
    for record in records:
        if parameters.crowd_is_object and record.get("iscrowd"):
            record["iscrowd"] = 0
            if record.get("area") == 0:  # V7 Darwin's masks
                del record["area"]
            changed["crowd_is_object"][record["category_id"]] += 1
        if parameters.ignore_is_crowd and is_ignored(record):
            record["iscrowd"] = 1
            changed["ignore_is_crowd"][record["category_id"]] += 1
    words = {"crowd_is_object": "crowds are objects", "ignore_is_crowd": "annotations marked ignore are crowds"}
    names = {record["id"]: record["name"] for record in coco.categories}
    return [
        f"{sum(counts.values())} {words[key]} (data.coco.{key}): {shown_counts(counts, names)}"
        for key, counts in changed.items()
        if counts
    ]
