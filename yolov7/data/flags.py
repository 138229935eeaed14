"""Marks on annotations that change what is learned, or that the pipeline does not honour; counted per class.

Ingest notes them and validation reports them, whatever the source: an object that training never sees, or that looks
other than its record says, must not pass in silence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.data.tally import named_counts

_ROUNDING = 2.0
"""Pixels by which a box and the bounds of its outline may differ: tools round, and count pixels in two ways."""

PLAIN_FIELDS = frozenset({"id", "image_id", "category_id", "bbox", "area", "segmentation", "iscrowd", "line"})
"""Fields of an annotation that carry no mark but `iscrowd`."""

_MARKS = (
    "occluded", "truncated", "outside", "isfake", "isreflected", "isgroupof", "is_group_of", "IsGroupOf", "isdepiction",
    "is_crowd",
)  # fmt: skip
"""Marks of CVAT, VOC, Objects365 and Open Images that have no effect here."""


@dataclass(frozen=True)
class Flag:
    """One kind of mark."""

    name: str
    """Column of the table `splits` in validation."""
    words: str
    """Completes "3 of 8 objects"; `: class 3` follows."""
    holds: Callable[[Record], bool]
    switches: Mapping[str, str] = field(default_factory=dict)
    """The switch of a source, in words, if it has one."""


def rotation_of(record: Record) -> float:
    """Degrees within 0 to 180 by which a rectangle was rotated after its box was written (CVAT); 0 if it was not."""
    value = _field(record, "rotation")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return 0.0
    if not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(value) % 180  # half a turn leaves the rectangle where it was


def _field(record: Record, name: str) -> object:
    """A field of the record or, if it has none, of its `attributes`."""
    attributes = record.get("attributes")
    return record.get(name, attributes.get(name) if isinstance(attributes, dict) else None)


def is_ignored(record: Record) -> bool:
    """True if an annotation is marked `ignore` and not a crowd already."""
    return _is_set(_field(record, "ignore")) and not _crowd(record)


def _is_set(value: object) -> bool:
    """True for 1, true and texts of them; false for 0, -1 (unknown) and everything else."""
    return value == 1 or (isinstance(value, str) and value.lower() in ("1", "true", "yes"))


def _crowd(record: Record) -> bool:
    return bool(record.get("iscrowd"))


def _difficult(record: Record) -> bool:
    return _is_set(_field(record, "difficult")) and not _crowd(record)


def _rotated(record: Record) -> bool:
    return rotation_of(record) != 0.0 and not record.get("rotation_enclosed")


def _scored(record: Record) -> bool:
    return isinstance(_field(record, "score"), int | float)


def _absent_keypoints(record: Record) -> bool:
    points = record.get("keypoints")
    if not isinstance(points, list) or record["bbox"][:2] != [0, 0]:
        return False
    return any(points[place : place + 3] == [0, 0, 0] for place in range(0, len(points), 3))


def _marked(record: Record) -> bool:
    return any(_marks(record))


def _marks(record: Record) -> list[str]:
    return [name for name in _MARKS if _is_set(_field(record, name))]


_OBJECTS = {"coco": "CVAT and V7 Darwin write masks so; data.coco.crowd_is_object: true makes them objects"}
_IGNORED = {"coco": "data.coco.ignore_is_crowd: true leaves them out of both"}
_DIFFICULT = {"voc": "data.voc.difficult_is_crowd: true leaves them out of both"}
_ENCLOSED = {
    "coco": "data.coco.enclose_rotated: true takes the box around the rotated one",
    "voc": "data.voc.rotated: hull takes the box around the rotated one, crowd leaves them out of both",
}

FLAGS: tuple[Flag, ...] = (
    Flag("crowds", "are crowds (iscrowd 1): neither learned nor counted", _crowd, _OBJECTS),
    Flag("ignored", "are marked ignore, but learned and counted", is_ignored, _IGNORED),
    Flag("difficult", "are marked difficult, but learned and counted", _difficult, _DIFFICULT),
    Flag("rotated", "are rotated, and their box is that before rotation", _rotated, _ENCLOSED),
    Flag("scored", "have a score: predictions of a model rather than labels?", _scored),
    Flag("absent_keypoints", "have absent keypoints, and a box that reaches to 0, 0 for them", _absent_keypoints),
    Flag("marked", "have marks without effect here", _marked),
)


def flag_bits(record: Record) -> int:
    """A bit for each of :data:`FLAGS` that the record has, the first flag the lowest."""
    return sum(1 << place for place, flag in enumerate(FLAGS) if flag.holds(record))


def mark_bits(record: Record) -> int:
    """A bit for each mark without effect that the record has."""
    return sum(1 << _MARKS.index(name) for name in _marks(record))


def describe_flags(coco: CocoAnnotations) -> dict[str, str]:
    """The marks of one split, by flag: "4 of 8 objects are crowds ...: fish 3, trap 1"; flags that occur only."""
    odd = [record for record in coco.annotations if record.get("iscrowd") or not record.keys() <= PLAIN_FIELDS]
    names = {record["id"]: record["name"] for record in coco.categories}
    return describe_bits(
        np.array([flag_bits(record) for record in odd], np.uint8),
        np.array([mark_bits(record) for record in odd], np.uint16),
        np.array([record["category_id"] for record in odd], np.int64),
        names,
        len(coco.annotations),
    )


def describe_bits(
    flags: NDArray[np.uint8],
    marks: NDArray[np.uint16],
    category_ids: NDArray[Any],
    names: Mapping[int, str],
    total: int,
) -> dict[str, str]:
    """:func:`describe_flags` of columns: the bits of annotations and their categories, among `total` annotations.

    Annotations without any flag may be left out.
    """
    result: dict[str, str] = {}
    for place, flag in enumerate(FLAGS):
        rows = np.flatnonzero(flags & (1 << place))
        if not len(rows):
            continue
        if flag.name == "marked":
            detail = ", ".join(f"{mark} {count}" for mark, count in _count_marks(marks[rows]))
        else:
            ids, counts = np.unique(category_ids[rows], return_counts=True)
            detail = shown_counts(dict(zip(ids.tolist(), counts.tolist(), strict=True)), names)
        result[flag.name] = f"{len(rows)} of {total} objects {flag.words}: {detail}"
    return result


def _count_marks(bits: NDArray[np.uint16]) -> list[tuple[str, int]]:
    """The number of each mark that occurs, the most frequent first, then the one that comes first."""
    found = []
    for place, name in enumerate(_MARKS):
        rows = np.flatnonzero(bits & (1 << place))
        if len(rows):
            found.append((-len(rows), int(rows[0]), name))
    return [(name, -count) for count, _, name in sorted(found, key=lambda one: one[:2])]


def describe_open_world(number: int, total: int) -> str | None:
    """`number` of `total` images name classes whose objects are not all annotated (LVIS); None if there are none."""
    if not number:
        return None
    words = "images list classes that are not annotated exhaustively: objects without a box are learned as background"
    return f"{number} of {total} {words}"


def describe_outlines(coco: CocoAnnotations) -> str | None:
    """Objects whose box and outline lie in different places: they overlap by less than half; None if there are none."""
    records = [one for one in coco.annotations if _outline_disagrees(one)]
    if not records:
        return None
    names = {record["id"]: record["name"] for record in coco.categories}
    counts = shown_counts(Counter(record["category_id"] for record in records), names)
    number = f"{len(records)} of {len(coco.annotations)}"
    return f"{number} objects have a box and an outline that disagree; the box counts: {counts}"


def _outline_disagrees(record: Record) -> bool:
    rings = record.get("segmentation")
    if not isinstance(rings, list) or _crowd(record):
        return False
    values = [value for ring in rings if len(ring) >= 6 and len(ring) % 2 == 0 for value in ring]
    if not values or not all(map(math.isfinite, [*values, *record["bbox"]])):
        return False
    left, top, width, height = record["bbox"]
    edges = (left, top, left + width, top + height)
    bounds = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    if max(abs(a - b) for a, b in zip(edges, bounds, strict=True)) <= _ROUNDING:
        return False
    common = _area(max(left, bounds[0]), max(top, bounds[1]), min(edges[2], bounds[2]), min(edges[3], bounds[3]))
    return 2 * common < _area(*edges) + _area(*bounds) - common


def _area(left: float, top: float, right: float, bottom: float) -> float:
    return max(right - left, 0.0) * max(bottom - top, 0.0)


def flag_notes(coco: CocoAnnotations, source: str) -> list[str]:
    """Notes for dataset.json on one split; `source` is the format, as in `data.source`."""
    switches = {flag.name: flag.switches[source] for flag in FLAGS if source in flag.switches}
    notes = [f"{text}; {switches[name]}" if name in switches else text for name, text in describe_flags(coco).items()]
    open_world = sum(bool(record.get("not_exhaustive_category_ids")) for record in coco.images)
    more = (describe_open_world(open_world, len(coco.images)), describe_outlines(coco))
    return [*notes, *(text for text in more if text is not None)]


def shown_counts(counts: Mapping[int, int], names: Mapping[int, str]) -> str:
    """Counts by category id as text, with the names of the categories."""
    return named_counts((names.get(number, f"category {number}"), count) for number, count in sorted(counts.items()))
