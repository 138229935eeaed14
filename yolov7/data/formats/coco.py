"""Read and write COCO annotation files (instances format); the structure of every record is checked.

Reading checks structure: fields and their types. It does not judge values (a NaN, a box outside its image, an unknown
category): the validation stage reports those record by record. Unknown fields are kept, so ids, licences, polygons and
a user's own columns survive reading and writing.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from yolov7.errors import DataError
from yolov7.files import write_atomic

Record = dict[str, Any]

_INT64 = 2**63

NESTED = "not an annotation file: lists or objects nested too deeply"
"""The message for a file that no parser takes."""


@dataclass(frozen=True)
class CocoAnnotations:
    """One annotation file. The records are the file's own objects, unknown fields included.

    Every image has `id` (int), `file_name` (str), `width`, `height` (numbers, pixels); every annotation `id`,
    `image_id`, `category_id` (ints) and `bbox` (four numbers: left, top, width, height in pixels); every category `id`
    and `name`. Numbers may be NaN or infinite, and references may point nowhere.
    """

    path: Path
    """The file that was read, for messages."""
    images: list[Record]
    annotations: list[Record]
    categories: list[Record]
    info: Record = field(default_factory=dict)
    licenses: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class _Field:
    """The expected type of one field of a record."""

    name: str
    fits: Callable[[Any], bool]
    expected: str
    required: bool = True


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int


def is_text(value: Any) -> bool:
    """True for a text that is not empty and can be part of a path."""
    # A zero byte ends a path early and a lone surrogate cannot be written as UTF-8.
    return type(value) is str and value != "" and (value.isascii() or is_utf8(value)) and "\0" not in value


def is_utf8(text: str) -> bool:
    """True if a text, a file name for example, can be written as UTF-8: lone surrogates cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_NUMBER_TYPES = frozenset({int, float})


def is_box(value: Any) -> bool:
    """True for four numbers, finite or not."""
    return type(value) is list and len(value) == 4 and _NUMBER_TYPES.issuperset(map(type, value))


def _is_crowd_flag(value: Any) -> bool:
    return type(value) in (int, bool) and value in (0, 1)


def is_segmentation(value: Any) -> bool:
    """True for a list of rings or a run-length object."""
    if type(value) is list:
        return all(type(ring) is list and _NUMBER_TYPES.issuperset(map(type, ring)) for ring in value)
    if type(value) is not dict:
        return False
    counts, size = value.get("counts"), value.get("size")
    runs = type(counts) is str or (type(counts) is list and all(map(_is_integer, counts)))
    return runs and type(size) is list and len(size) == 2 and all(map(_is_integer, size))


LISTS: dict[str, tuple[_Field, ...]] = {
    "images": (
        _Field("id", _is_integer, "a whole number"),
        _Field("file_name", is_text, "a text that is not empty"),
        _Field("width", _is_number, "a number"),
        _Field("height", _is_number, "a number"),
    ),
    "annotations": (
        _Field("id", _is_integer, "a whole number"),
        _Field("image_id", _is_integer, "a whole number"),
        _Field("category_id", _is_integer, "a whole number"),
        _Field("bbox", is_box, "four numbers (left, top, width, height)"),
        _Field("area", _is_number, "a number", required=False),
        _Field("iscrowd", _is_crowd_flag, "0 or 1", required=False),
        _Field("segmentation", is_segmentation, "a list of polygons or a run-length object", required=False),
    ),
    "categories": (
        _Field("id", _is_integer, "a whole number"),
        _Field("name", is_text, "a text that is not empty"),
    ),
}
"""The checked fields of the records, by list."""


@dataclass(frozen=True)
class Fault:
    """A record that is not an object, or a field of one that is missing or has another type."""

    list: str
    """`images`, `annotations` or `categories`."""
    index: int
    """Place of the record in its list."""
    field: str | None
    """None: the record is not an object."""


@dataclass(frozen=True)
class Problem:
    """One reason to refuse a file."""

    kind: Hashable
    """Problems of one kind are told by one example and their number."""
    message: str
    record: str | None = None
    """The record, for messages; None if the problem is the whole file's."""


_EXAMPLES = 6
"""Kinds of problems that a message names."""


def read_coco(path: str | os.PathLike[str]) -> CocoAnnotations:
    """Read an annotation file and check the structure of every record.

    Raises :class:`DataError` naming the file, the record (its id, or its place in the list) and the field, for: no
    such file, not UTF-8, not JSON, a top level or a record that is not an object, a missing list, a missing field, a
    field of the wrong type; the message has an example of every kind of problem in the file. A leading byte-order mark
    is accepted. `info` and `licenses` may be absent.
    """
    file = Path(path)
    document = parse_coco(file)
    problems = find_problems(document)
    if problems:
        raise refusal(problems, file)
    return coco_of(document, file)


def parse_coco(file: Path) -> Record:
    """The object of an annotation file, its content unchecked. Raises as :func:`read_coco` for everything above it."""
    document = _parse(file)
    if not isinstance(document, dict):
        raise DataError(
            f"the top level is {_kind(document)}; expected an object with images, annotations, categories", path=file
        )
    return document


def coco_of(document: Record, path: Path) -> CocoAnnotations:
    """The annotations of an object in which :func:`find_problems` finds none."""
    lists = {name: document[name] for name in LISTS}
    return CocoAnnotations(path=path, info=document.get("info", {}), licenses=document.get("licenses", []), **lists)


def find_problems(document: Record) -> list[Problem]:
    """Everything in an annotation file that :func:`read_coco` refuses."""
    faults = ((fault, document[fault.list]) for fault in find_faults(document))
    return find_list_problems(document) + [_problem(records, fault) for fault, records in faults]


def find_list_problems(document: Record) -> list[Problem]:
    """What :func:`find_problems` says about the lists as such."""
    problems = [
        Problem((name, None), f"the list `{name}` is missing; is this an instances file of the COCO format?")
        if name not in document
        else Problem((name, None), f"`{name}` is {_kind(document[name])}; expected a list")
        for name in LISTS
        if not isinstance(document.get(name), list)
    ]
    info, licenses = document.get("info", {}), document.get("licenses", [])
    if not isinstance(info, dict):
        problems.append(Problem("info", f"`info` is {_kind(info)}; expected an object (it is optional)"))
    if not isinstance(licenses, list) or not all(isinstance(item, dict) for item in licenses):
        problems.append(Problem("licenses", "`licenses` must be a list of objects (it is optional)"))
    return problems


def problems_of(name: str, records: Sequence[Any], first: int) -> Iterator[Problem]:
    """The problems of some records of a list, of which `records[0]` has the place `first`."""
    for fault in find_faults({name: records}, [name]):
        yield _problem(records, fault, first)


def find_faults(document: Record, lists: Sequence[str] = tuple(LISTS)) -> Iterator[Fault]:
    """The faults of all records, in the order of the lists; a list that is missing or not a list has none."""
    for name in lists:
        fields = LISTS[name]
        records = document.get(name)
        if not isinstance(records, list):
            continue
        required = [(item.name, item.fits) for item in fields if item.required]
        optional = [(item.name, item.fits) for item in fields if not item.required]
        for index, record in enumerate(records):
            if type(record) is not dict:
                yield Fault(name, index, None)
                continue
            for key, fits in required:
                if key not in record or not fits(record[key]):
                    yield Fault(name, index, key)
            for key, fits in optional:
                if key in record and not fits(record[key]):
                    yield Fault(name, index, key)


def refusal(problems: Sequence[Problem], path: Path) -> DataError:
    """One error for all problems of a file: an example of every kind, and the number of records of that kind."""
    counts: dict[Hashable, int] = {}
    examples: dict[Hashable, Problem] = {}
    for problem in problems:
        counts[problem.kind] = counts.get(problem.kind, 0) + 1
        examples.setdefault(problem.kind, problem)
    return refusal_of_kinds(examples, counts, path)


def refusal_of_kinds(examples: Mapping[Hashable, Problem], counts: Mapping[Hashable, int], path: Path) -> DataError:
    """The error of :func:`refusal`, by the first problem of every kind and their number."""
    first, *others = examples.values()
    message = _with_count(first.message, counts[first.kind])
    if others:
        told = [
            f"{problem.record}: {_with_count(problem.message, counts[problem.kind])}"
            if problem.record
            else _with_count(problem.message, counts[problem.kind])
            for problem in others[: _EXAMPLES - 1]
        ]
        more = f"; and {len(examples) - _EXAMPLES} more kinds of problem" if len(examples) > _EXAMPLES else ""
        message += f"; also: {'; '.join(told)}{more}"
    return DataError(message, path=path, record=first.record)


def _with_count(message: str, count: int) -> str:
    return message if count == 1 else f"{message} (and {count - 1} more)"


def write_coco(path: str | os.PathLike[str], coco: CocoAnnotations) -> None:
    """Write an annotation file in one step, one record per line; equal content gives equal bytes.

    Non-finite numbers are written as Python's `NaN` and `Infinity`, which :func:`read_coco` reads: a copy must not hide
    them from validation.
    """
    write_atomic(path, lambda file: _write(file, coco))


def _write(file: IO[bytes], coco: CocoAnnotations) -> None:
    encode = json.JSONEncoder(separators=(",", ":")).encode
    file.write(b'{\n"info":' + encode(coco.info).encode("ascii"))
    for name in ("licenses", "images", "annotations", "categories"):
        records: list[Record] = getattr(coco, name)
        file.write(f',\n"{name}":['.encode("ascii"))
        for index, record in enumerate(records):
            file.write((("\n" if index == 0 else ",\n") + encode(record)).encode("ascii"))
        file.write(b"\n]" if records else b"]")
    file.write(b"\n}\n")


def _parse(file: Path) -> Any:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError("no such annotation file", path=file) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=file) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}; save the annotations as UTF-8 JSON", path=file) from None
    del content
    try:
        with paused_collector():
            return json.loads(text, parse_int=parse_integer)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"not JSON ({where}: {error.msg}); is the file complete?", path=file) from None
    except RecursionError:
        raise DataError(NESTED, path=file) from None
    except ValueError as error:  # from parse_integer
        raise DataError(str(error), path=file) from None


def parse_integer(digits: str) -> int:
    """A whole number of 64 bits. Raises :class:`ValueError` for larger ones: they overflow every array."""
    if len(digits) < 19:
        return int(digits)
    value = int(digits) if len(digits) <= 20 else _INT64
    if not -_INT64 <= value < _INT64:
        raise ValueError(f"the number {digits[:20]}{'...' if len(digits) > 20 else ''} does not fit 64 bits")
    return value


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Pause cyclic garbage collection: with millions of new objects and no cycles, every pass is wasted."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def record_name(records: Sequence[Any], name: str, index: int, first: int = 0) -> str:
    """A record of the list `name` for a message: its place, and its id if it has one.

    `records` are those from the place `first` on; `index` counts from there.
    """
    record = records[index]
    known = isinstance(record, dict) and _is_integer(record.get("id"))
    place = f"{name}[{first + index}]"
    return f"{place} (id {record['id']})" if known else place


def _problem(records: Sequence[Any], fault: Fault, first: int = 0) -> Problem:
    record, kind = records[fault.index], (fault.list, fault.field)
    where = record_name(records, fault.list, fault.index, first)
    if fault.field is None:
        return Problem(kind, f"expected an object, found {_kind(record)}", where)
    expected = next(item.expected for item in LISTS[fault.list] if item.name == fault.field)
    if fault.field not in record:
        return Problem(kind, f"field `{fault.field}` is missing; expected {expected}", where)
    found = repr(record[fault.field])
    found = found if len(found) <= 60 else found[:57] + "..."
    return Problem(kind, f"field `{fault.field}` is {found}; expected {expected}", where)


def _kind(value: Any) -> str:
    """A JSON value's type in JSON's words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


class _Classes(Protocol):
    """The part of annotations that names classes, of records and of columns alike."""

    @property
    def path(self) -> Path: ...
    @property
    def categories(self) -> list[Record]: ...


def classes_of(coco: _Classes) -> tuple[list[str], list[int]]:
    """Names and category ids by class number: the order of the ids."""
    by_id: dict[int, str] = {}
    for record in coco.categories:
        if record["id"] in by_id:
            raise DataError("category id given twice", path=coco.path, record=f"category {record['id']}")
        by_id[record["id"]] = record["name"]
    if not by_id:
        raise DataError("there are no categories", path=coco.path)
    ids = sorted(by_id)
    return [by_id[number] for number in ids], ids
