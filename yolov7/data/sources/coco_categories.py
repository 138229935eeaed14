"""Categories of COCO exports that are not classes: groups, the background, and several entries of one name.

Decided over all sets of a data set at once: a category that is annotated in one of them is a class in all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolov7.data.formats.coco import Problem, Record
from yolov7.data.sources.parameters import Coco

_BACKGROUND = frozenset({"_background_", "__background__", "__ignore__"})
"""Names that labelme's converters give to pixels without a class."""
_LISTED = 5
_KEY = "data.coco.placeholder_categories"

_Category = tuple[int, str]
"""Id and name."""


@dataclass
class Sorted:
    """Findings on the categories of one file."""

    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def sort_categories(documents: Mapping[str, Record], parameters: Coco) -> dict[str, Sorted]:
    """Leave out and join categories of the documents (by set) in place.

    A group is a category with `supercategory: none` that another one names as its own supercategory. Records with
    faults are passed over.
    """
    result = {name: Sorted() for name in documents}
    objects: Counter[_Category] = Counter()
    for document in documents.values():
        objects += _objects(document)
    for name, document in documents.items():
        _drop_nameless(document, result[name])
        if parameters.placeholder_categories != "keep":
            _placeholders(document, objects, parameters, result[name])
        if parameters.merge_equal_names:
            _merge(document, result[name])
        else:
            _count_namesakes(document, result[name])
        _count_unlabelled(document, result[name])
    return result


def _entries(document: Record) -> list[Record]:
    records = document.get("categories")
    records = records if isinstance(records, list) else []
    return [entry for entry in records if type(entry) is dict and type(entry.get("id")) is int]


def _named(document: Record) -> list[Record]:
    return [entry for entry in _entries(document) if type(entry.get("name")) is str]


def _uses(document: Record) -> Counter[Any]:
    """Annotations by category id."""
    records = document.get("annotations")
    records = records if isinstance(records, list) else []
    ids = (record.get("category_id") for record in records if type(record) is dict)
    return Counter(number for number in ids if type(number) is int)


def _objects(document: Record) -> Counter[_Category]:
    uses = _uses(document)
    return Counter({(entry["id"], entry["name"]): uses[entry["id"]] for entry in _named(document)})


def _drop_nameless(document: Record, found: Sorted) -> None:
    """Leave out entries without a name that no annotation uses; others are refused with their record."""
    uses = _uses(document)
    nameless = [entry for entry in _entries(document) if entry.get("name") in (None, "") and not uses[entry["id"]]]
    if nameless:
        _remove(document, nameless)
        found.notes.append(
            f"categories without a name and without annotations were left out: {_ids(one['id'] for one in nameless)}"
        )


def _placeholders(document: Record, objects: Counter[_Category], parameters: Coco, found: Sorted) -> None:
    entries = _named(document)
    drop = parameters.placeholder_categories == "drop"
    gone: list[Record] = []
    for record in entries:
        reason = _placeholder(record, entries)
        number = objects[record["id"], record["name"]]
        if reason is None:
            if number or not _is_parent(record, entries):
                continue
            if not drop:
                found.notes.append(
                    f"category {_shown(record)} is a class without annotations and the supercategory of others; if it "
                    f"only names a group, leave it out by {_KEY}: drop"
                )
                continue
            reason = "is the supercategory of others"
        if number and not drop:
            found.problems.append(
                Problem(
                    ("placeholder", record["id"]),
                    f"category {_shown(record)} {reason}, but {number} annotations have it; set {_KEY} to keep (a "
                    "class like any other) or drop (left out with its annotations)",
                )
            )
            continue
        gone.append(record)
        found.notes.append(_dropped(record, reason, _uses(document)[record["id"]]))
    gone += _unused_namesakes([entry for entry in entries if entry not in gone], objects, found)
    if gone:
        numbers = {entry["id"] for entry in gone}
        _remove(document, gone)
        kept = {entry["id"] for entry in _entries(document)}
        document["annotations"] = [
            record
            for record in document["annotations"]
            if type(record) is not dict or record.get("category_id") not in numbers or record["category_id"] in kept
        ]


def _placeholder(record: Record, entries: Sequence[Record]) -> str | None:
    """Why a category is not a class; None if it is one."""
    if record["name"] in _BACKGROUND:
        return "stands for pixels without a class"
    if str(record.get("supercategory")).lower() == "none" and record.get("supercategory") is not None:
        return "names a group (supercategory none, and others name it)" if _is_parent(record, entries) else None
    return None


def _is_parent(record: Record, entries: Sequence[Record]) -> bool:
    return any(entry.get("supercategory") == record["name"] and entry["id"] != record["id"] for entry in entries)


def _unused_namesakes(entries: Sequence[Record], objects: Counter[_Category], found: Sorted) -> list[Record]:
    """Unused entries whose name another entry has, and that one has annotations."""
    used = {entry["name"] for entry in entries if objects[entry["id"], entry["name"]]}
    gone = [entry for entry in entries if entry["name"] in used and not objects[entry["id"], entry["name"]]]
    for record in gone:
        found.notes.append(
            f"category {_shown(record)} was left out: no annotation has it, and another category has its name"
        )
    return gone


def _dropped(record: Record, reason: str, number: int) -> str:
    lost = f" with its {number} annotations" if number else ""
    return (
        f"category {_shown(record)} was left out{lost}: it {reason}; classes are numbered without it, as in a YOLO "
        f"export of the same project ({_KEY}: keep makes it a class)"
    )


def _merge(document: Record, found: Sorted) -> None:
    """Give annotations of equally named categories the id of the first."""
    first: dict[str, int] = {}
    moved: dict[int, int] = {}
    gone: list[Record] = []
    for record in _named(document):
        identity = first.setdefault(record["name"], record["id"])
        if identity != record["id"]:
            moved[record["id"]] = identity
            gone.append(record)
    if not gone:
        return
    _remove(document, gone)
    for annotation in document["annotations"]:
        if type(annotation) is dict and annotation.get("category_id") in moved:
            annotation["category_id"] = moved[annotation["category_id"]]
    names = ", ".join(map(repr, dict.fromkeys(entry["name"] for entry in gone)))
    found.notes.append(f"{len(gone)} categories were merged into the first one of their name: {names}")


def _count_namesakes(document: Record, found: Sorted) -> None:
    ids: dict[str, set[int]] = defaultdict(set)
    for record in _named(document):
        ids[record["name"]].add(record["id"])
    several = {name: numbers for name, numbers in ids.items() if len(numbers) > 1}
    if several:
        listed = ", ".join(f"{name!r} {len(numbers)} times" for name, numbers in list(several.items())[:_LISTED])
        found.notes.append(
            f"{len(several)} names belong to categories of different ids ({listed}); validation stops at them; "
            "data.coco.merge_equal_names: true makes one class of each name"
        )


def _count_unlabelled(document: Record, found: Sorted) -> None:
    number = _uses(document)[0]
    if number and all(entry["id"] != 0 for entry in _entries(document)):
        found.notes.append(
            f"{number} annotations have category_id 0, which is not a category: CVAT writes it for objects without a "
            "label; validation stops at them (validation.on_bad_record: drop leaves them out)"
        )


def _remove(document: Record, gone: Sequence[Record]) -> None:
    document["categories"] = [entry for entry in document["categories"] if not any(entry is other for other in gone)]


def _shown(record: Record) -> str:
    return f"{record['id']} {record['name']!r}"


def _ids(numbers: Any) -> str:
    return ", ".join(map(str, numbers))
