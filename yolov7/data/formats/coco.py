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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from yolov7.errors import DataError
from yolov7.files import write_atomic

Record = dict[str, Any]

_INT64 = 2**63


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


def _is_text(value: Any) -> bool:
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


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and _NUMBER_TYPES.issuperset(map(type, value))


def _is_crowd_flag(value: Any) -> bool:
    return type(value) in (int, bool) and value in (0, 1)


def _is_segmentation(value: Any) -> bool:
    if type(value) is list:
        return all(type(ring) is list and _NUMBER_TYPES.issuperset(map(type, ring)) for ring in value)
    if type(value) is not dict:
        return False
    counts, size = value.get("counts"), value.get("size")
    runs = type(counts) is str or (type(counts) is list and all(map(_is_integer, counts)))
    return runs and type(size) is list and len(size) == 2 and all(map(_is_integer, size))


_FIELDS: dict[str, tuple[_Field, ...]] = {
    "images": (
        _Field("id", _is_integer, "a whole number"),
        _Field("file_name", _is_text, "a text that is not empty"),
        _Field("width", _is_number, "a number"),
        _Field("height", _is_number, "a number"),
    ),
    "annotations": (
        _Field("id", _is_integer, "a whole number"),
        _Field("image_id", _is_integer, "a whole number"),
        _Field("category_id", _is_integer, "a whole number"),
        _Field("bbox", _is_box, "four numbers (left, top, width, height)"),
        _Field("area", _is_number, "a number", required=False),
        _Field("iscrowd", _is_crowd_flag, "0 or 1", required=False),
        _Field("segmentation", _is_segmentation, "a list of polygons or a run-length object", required=False),
    ),
    "categories": (
        _Field("id", _is_integer, "a whole number"),
        _Field("name", _is_text, "a text that is not empty"),
    ),
}


def read_coco(path: str | os.PathLike[str]) -> CocoAnnotations:
    """Read an annotation file and check the structure of every record.

    Raises :class:`DataError` naming the file, the record (its id, or its place in the list) and the field, for: no
    such file, not UTF-8, not JSON, a top level or a record that is not an object, a missing list, a missing field, a
    field of the wrong type. A leading byte-order mark is accepted. `info` and `licenses` may be absent.
    """
    file = Path(path)
    document = _parse(file)
    if not isinstance(document, dict):
        raise DataError(
            f"the top level is {_kind(document)}; expected an object with images, annotations, categories", path=file
        )
    lists = {name: _records(file, document, name) for name in _FIELDS}
    info = document.get("info", {})
    if not isinstance(info, dict):
        raise DataError(f"`info` is {_kind(info)}; expected an object (it is optional)", path=file)
    licenses = document.get("licenses", [])
    if not isinstance(licenses, list) or not all(isinstance(item, dict) for item in licenses):
        raise DataError("`licenses` must be a list of objects (it is optional)", path=file)
    return CocoAnnotations(path=file, info=info, licenses=licenses, **lists)


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
        with _without_collector():
            return json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"not JSON ({where}: {error.msg}); is the file complete?", path=file) from None
    except RecursionError:
        raise DataError("not an annotation file: lists or objects nested too deeply", path=file) from None
    except ValueError as error:  # from _integer
        raise DataError(str(error), path=file) from None


def _integer(digits: str) -> int:
    """A whole number of 64 bits: larger ones overflow every array."""
    if len(digits) < 19:
        return int(digits)
    value = int(digits) if len(digits) <= 20 else _INT64
    if not -_INT64 <= value < _INT64:
        raise ValueError(f"the number {digits[:20]}{'...' if len(digits) > 20 else ''} does not fit 64 bits")
    return value


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Pause cyclic garbage collection: with millions of new objects and no cycles, every pass is wasted."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _records(file: Path, document: Record, name: str) -> list[Record]:
    if name not in document:
        raise DataError(f"the list `{name}` is missing; is this an instances file of the COCO format?", path=file)
    records = document[name]
    if not isinstance(records, list):
        raise DataError(f"`{name}` is {_kind(records)}; expected a list", path=file)
    fields = _FIELDS[name]
    required = [(item.name, item.fits) for item in fields if item.required]
    optional = [(item.name, item.fits) for item in fields if not item.required]
    for index, record in enumerate(records):
        if type(record) is not dict:
            message = f"expected an object, found {_kind(record)}"
            raise DataError(message, path=file, record=f"{name}[{index}]")
        for key, fits in required:
            if key not in record or not fits(record[key]):
                raise _wrong_field(file, name, index, record, key)
        for key, fits in optional:
            if key in record and not fits(record[key]):
                raise _wrong_field(file, name, index, record, key)
    return records


def _wrong_field(file: Path, name: str, index: int, record: Record, key: str) -> DataError:
    where = f"{name}[{index}]"
    if _is_integer(record.get("id")):
        where += f" (id {record['id']})"
    expected = next(item.expected for item in _FIELDS[name] if item.name == key)
    if key not in record:
        return DataError(f"field `{key}` is missing; expected {expected}", path=file, record=where)
    found = repr(record[key])
    found = found if len(found) <= 60 else found[:57] + "..."
    return DataError(f"field `{key}` is {found}; expected {expected}", path=file, record=where)


def _kind(value: Any) -> str:
    """A JSON value's type in JSON's words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def classes_of(coco: CocoAnnotations) -> tuple[list[str], list[int]]:
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
