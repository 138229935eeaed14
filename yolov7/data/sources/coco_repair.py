"""Records as labelling tools export them, made into those that `yolov7.data.formats.coco` expects.

Only what has one meaning is changed, and every change is counted for a note. What is left has faults that the reader
of the format names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from yolov7.data.formats.coco import Fault, Record, find_faults, record_name
from yolov7.data.formats.label_files import ring_bounds

_EXAMPLES = 3
_DIGITS = re.compile(r"-?(0|[1-9][0-9]{0,17})", re.ASCII)
_ADDRESSES = ("coco_url", "absolute_url")
"""Fields that name an image in place of `file_name`."""
_NUMBERED = "that are texts or fractions were taken as numbers"


@dataclass
class Changes:
    """Changes by kind: their number and the first few records."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, change: str, example: str) -> None:
        """Count one change."""
        self.counts[change] = self.counts.get(change, 0) + 1
        shown = self.examples.setdefault(change, [])
        if len(shown) < _EXAMPLES and example not in shown:
            shown.append(example)

    def notes(self) -> list[str]:
        """A sentence per kind."""
        return [f"{change}: {count} ({self._shown(change)})" for change, count in self.counts.items()]

    def _shown(self, change: str) -> str:
        examples = self.examples[change]
        return ", ".join([*examples, "..."] if self.counts[change] > len(examples) else examples)


def repair(document: Record, changes: Changes) -> None:
    """Change the records of an annotation file in place."""
    complete = all(isinstance(document.get(name), list) for name in ("images", "categories"))
    if complete and "annotations" not in document:
        document["annotations"] = []
        changes.add("no list `annotations`, taken as images without objects", "FiftyOne writes none")
    for name in ("info", "licenses"):
        if name in document and document[name] is None:
            del document[name]
    _number_ids(document, changes)
    _join_equal_categories(document, changes)
    left_out: set[int] = set()
    for fault in list(find_faults(document)):
        if fault.field is not None:
            record = document[fault.list][fault.index]
            mend = _MENDERS.get((fault.list, fault.field))
            if mend is not None and mend(record, changes, _Place(document, fault)):
                left_out.add(fault.index)
    if left_out:
        document["annotations"] = [
            record for index, record in enumerate(document["annotations"]) if index not in left_out
        ]
    _drop_repeated(document, changes)


@dataclass(frozen=True)
class _Place:
    document: Record
    fault: Fault

    def __str__(self) -> str:
        return record_name(self.document[self.fault.list], self.fault.list, self.fault.index)

    @property
    def class_name(self) -> str:
        """The class of an annotation, for a message."""
        wanted = self.document["annotations"][self.fault.index].get("category_id")
        names = (entry.get("name") for entry in _objects(self.document, "categories") if entry.get("id") == wanted)
        return str(next(names, f"category {wanted}"))


def _objects(document: Record, name: str) -> list[Record]:
    records = document.get(name)
    return [record for record in records if type(record) is dict] if isinstance(records, list) else []


def _number_ids(document: Record, changes: Changes) -> None:
    """Turn ids that are texts or fractions of zero into whole numbers, in records and in references to them."""
    annotations = _objects(document, "annotations")
    for name, reference in (("images", "image_id"), ("categories", "category_id")):
        records = _objects(document, name)
        numbers = _numbers(record.get("id") for record in records)
        _replace_ids(records, "id", numbers, changes, f"ids of {name} {_NUMBERED}")
        numbers = _numbers_of_digits(record.get(reference) for record in annotations) | numbers
        _replace_ids(
            annotations,
            reference,
            numbers,
            changes,
            f"values of {reference} that are texts or fractions were taken as numbers",
        )
    _number_annotations(annotations, changes)


def _number_annotations(annotations: list[Record], changes: Changes) -> None:
    if all(type(record.get("id")) is int for record in annotations):
        return
    numbers = _numbers(record.get("id") for record in annotations)
    _replace_ids(annotations, "id", numbers, changes, f"ids of annotations {_NUMBERED}")
    used = [record["id"] for record in annotations if type(record.get("id")) is int]
    following = max(used, default=0) + 1
    for record in annotations:
        if record.get("id") is None:
            record["id"] = following
            changes.add("annotations without an id were numbered", f"image {record.get('image_id')}")
            following += 1


def _numbers(ids: Iterable[Any]) -> dict[str | float, int]:
    """A whole number for each id that is a text or a fraction of zero: its own, or one above all others."""
    values = list(ids)
    odd = dict.fromkeys(identity for identity in values if isinstance(identity, str | float) and identity != "")
    if not odd:
        return {}
    own = {identity: number for identity in odd if (number := _as_integer(identity)) is not None}
    following = max(chain(own.values(), (identity for identity in values if type(identity) is int)), default=0) + 1
    result = dict(own)
    for identity in odd:
        if identity not in own and isinstance(identity, str):
            result[identity] = following
            following += 1
    return result


def _numbers_of_digits(ids: Iterable[Any]) -> dict[str | float, int]:
    odd = {identity for identity in ids if isinstance(identity, str | float)}
    return {identity: number for identity in odd if (number := _as_integer(identity)) is not None}


def _as_integer(value: Any) -> int | None:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else None


def _replace_ids(records: list[Record], key: str, numbers: Mapping[Any, int], changes: Changes, change: str) -> None:
    if not numbers:
        return
    for record in records:
        value = record.get(key)
        if type(value) in (str, float) and value in numbers:
            if _as_integer(value) is None and key == "id":
                record.setdefault("source_id", value)
            record[key] = numbers[value]
            changes.add(change, f"{value!r} is {numbers[value]}")


def _join_equal_categories(document: Record, changes: Changes) -> None:
    """Keep one of several entries of one id and name: VIA writes one for every annotation."""
    records = document.get("categories")
    if not isinstance(records, list):
        return
    seen: set[tuple[Any, Any]] = set()
    kept: list[Any] = []
    for record in records:
        pair = (record.get("id"), record.get("name")) if type(record) is dict else (None, None)
        if type(pair[0]) is int and type(pair[1]) is str:
            if pair in seen:
                changes.add("repeated entries of a category were joined", f"{pair[0]} {pair[1]!r}")
                continue
            seen.add(pair)
        kept.append(record)
    document["categories"] = kept


def _drop_repeated(document: Record, changes: Changes) -> None:
    """Leave out annotations that another one repeats in every field, its id included."""
    records = document.get("annotations")
    if not isinstance(records, list):
        return
    ids = [record.get("id") if type(record) is dict else None for record in records]
    numbers = [identity for identity in ids if type(identity) is int]
    if len(set(numbers)) == len(numbers):
        return
    first: dict[Any, list[Record]] = {}
    kept: list[Any] = []
    for identity, record in zip(ids, records, strict=True):
        if type(identity) is int:
            others = first.setdefault(identity, [])
            if record in others:
                changes.add("annotations given twice with the same id and content were left out once", f"{identity}")
                continue
            others.append(record)
        kept.append(record)
    document["annotations"] = kept


def _mend_name(record: Record, changes: Changes, place: _Place) -> bool:
    for key in _ADDRESSES:
        address = record.get(key)
        if record.get("file_name") in (None, "") and isinstance(address, str) and address:
            record["file_name"] = address
            changes.add(f"no file_name, so the end of {key} was taken", str(place))
            break
    return False


def _mend_side(record: Record, changes: Changes, place: _Place) -> bool:
    if record.get(place.fault.field or "") is None:
        record[place.fault.field or ""] = 0  # the reader of the source asks the image file
    return False


def _mend_box(record: Record, changes: Changes, place: _Place) -> bool:
    """Derive a missing box from the outline. True if there is none: nothing then says where the object is."""
    if record.get("bbox") not in (None, []):
        return False
    box = _box_of(record.get("segmentation"))
    if box is not None:
        record["bbox"] = box
        changes.add("no bbox, so the box around the outline was taken", str(place))
        return False
    if "bbox" not in record and not record.get("keypoints"):
        return False
    what = "keypoints" if record.get("keypoints") else "points"
    changes.add(
        f"annotations of {what} without a box or an outline were left out and will not be learned", place.class_name
    )
    return True


def _box_of(segmentation: Any) -> list[float] | None:
    if isinstance(segmentation, dict):
        return _box_of_runs(segmentation)
    if not isinstance(segmentation, list):
        return None
    rings = [segmentation] if segmentation and not isinstance(segmentation[0], list) else segmentation
    points = [ring for ring in rings if isinstance(ring, list) and len(ring) >= 4 and len(ring) % 2 == 0]
    values = list(chain.from_iterable(points))
    if not values or not all(type(value) in (int, float) for value in values):
        return None
    left, top, right, bottom = ring_bounds(values)
    return [left, top, right - left, bottom - top]


def _box_of_runs(runs: Record) -> list[float] | None:
    """The box around a mask in COCO's run lengths (columns first, background first); None if they are damaged."""
    from pycocotools import mask

    counts, size = runs.get("counts"), runs.get("size")
    try:
        height, width = size  # type: ignore[misc]
        encoded = mask.frPyObjects(runs, height, width) if isinstance(counts, list) else runs
        box = [float(value) for value in mask.toBbox(encoded)]
    except (TypeError, ValueError):
        return None
    return box if box[2] > 0 and box[3] > 0 else None


def _drop_null(record: Record, changes: Changes, place: _Place) -> bool:
    key = place.fault.field or ""
    if record[key] is None or (key == "area" and record[key] == []):
        del record[key]
    elif key == "iscrowd" and record[key] in ("0", "1", 0.0, 1.0):
        record[key] = int(record[key])
    return False


def _mend_outline(record: Record, changes: Changes, place: _Place) -> bool:
    outline = record["segmentation"]
    if outline is None or outline == {}:
        del record["segmentation"]
    elif isinstance(outline, list) and outline and all(type(value) in (int, float) for value in outline):
        record["segmentation"] = [outline]
        changes.add("outlines given as one flat list were taken as one ring", str(place))
    return False


_MENDERS: Mapping[tuple[str, str], Callable[[Record, Changes, _Place], bool]] = {
    ("images", "file_name"): _mend_name,
    ("images", "width"): _mend_side,
    ("images", "height"): _mend_side,
    ("annotations", "bbox"): _mend_box,
    ("annotations", "area"): _drop_null,
    ("annotations", "iscrowd"): _drop_null,
    ("annotations", "segmentation"): _mend_outline,
}
"""For a faulty field: changes the record; True if the record has to be left out."""
