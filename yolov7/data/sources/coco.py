"""The source `coco`: an image folder and an annotation json per set, as labelling tools export them.

Fields and records are kept. What a tool writes in its own way and has one meaning is converted with a note
(`coco_repair`, `coco_categories`, `coco_boxes`, `file_names`); what is left is refused, all of a file in one message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from yolov7.data.formats.coco import (
    CocoAnnotations,
    Problem,
    Record,
    coco_of,
    find_faults,
    find_problems,
    parse_coco,
    refusal,
)
from yolov7.data.formats.label_files import collected, raise_together, unsafe_name
from yolov7.data.image_kind import kind_of_file
from yolov7.data.sources.coco_boxes import convert_boxes, find_relative
from yolov7.data.sources.coco_categories import Sorted, sort_categories
from yolov7.data.sources.coco_repair import Changes, repair
from yolov7.data.sources.file_names import Matched, list_files, match_names, names_below, shown_name
from yolov7.data.sources.image_folder import find_sizes, image_class_lists, shown
from yolov7.data.sources.image_set import ImageSet, find_file, refused_images
from yolov7.data.sources.parameters import Coco
from yolov7.errors import DataError

_HINTS = 10
"""Missing files for which one that may be meant is looked for."""

_NEEDED = (None, "id", "file_name")
"""Fields of an image record, and the record itself, without which no file is looked for."""


@dataclass
class _Set:
    """One annotation file on its way."""

    key: str
    path: Path
    root: Path
    document: Record
    changes: Changes
    notes: list[str]
    problems: list[Problem]


def read_coco_sets(parameters: Coco, base: Path) -> dict[str, ImageSet]:
    """The sets of `parameters`, by split or `all`; paths are relative to `base`.

    Raises one :class:`DataError` for all problems of all sets: bad annotation files, each with all that is wrong with
    it, and missing image folders.
    """
    problems: list[DataError] = []
    sets: dict[str, _Set] = {}
    for name, one in parameters.given("data.coco").items():
        path, root, changes = base / one.annotations, base / one.images, Changes()
        if not root.is_dir():
            message = f"no such image folder; see data.coco.{name}.images"
            problems.append(DataError(message, path=root))
        with collected(problems):
            document = parse_coco(path)
            repair(document, changes)
            sets[name] = _Set(f"data.coco.{name}", path, root, document, changes, [], [])
        problems += image_class_lists([root, path.parent], base)
    for name, found in sort_categories({name: one.document for name, one in sets.items()}, parameters).items():
        _take(sets[name], found)
    result: dict[str, ImageSet] = {}
    for name, found_set in sets.items():
        with collected(problems):
            result[name] = _image_set(found_set, parameters)
    raise_together(problems)
    return _with_unnamed(result)


def _with_unnamed(sets: Mapping[str, ImageSet]) -> dict[str, ImageSet]:
    """The sets, with a note on images of their folders that no record of any set names, once per folder."""
    roots = {name: os.path.realpath(images.root) for name, images in sets.items()}
    known = {_below(roots[name], record["file_name"]) for name, one in sets.items() for record in one.coco.images}
    result: dict[str, ImageSet] = {}
    for name, images in sets.items():
        files = ((_below(roots[name], file), file) for file in names_below(images.root))
        own = {path: file for path, file in files if path not in known}
        known |= own.keys()
        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
            kinds = zip(own.values(), pool.map(kind_of_file, map(Path, own)), strict=True)
            unnamed = [file for file, kind in kinds if kind is not None]
        note = f"{len(unnamed)} images are named by no record and were left out: {shown(unnamed)}"
        result[name] = replace(images, notes=(*images.notes, note)) if unnamed else images
    return result


def _below(root: str, name: str) -> str:
    return os.path.normpath(f"{root}/{name}")


def _take(one: _Set, found: Sorted) -> None:
    one.problems += [*find_problems(one.document), *found.problems]
    one.notes += [*one.changes.notes(), *found.notes]


def _image_set(one: _Set, parameters: Coco) -> ImageSet:
    records = _images(one.document)
    one.problems += find_relative(one.document, parameters)
    one.problems += _name_files(one, records) if one.root.is_dir() else []
    if one.problems:
        raise refusal(one.problems, one.path)
    coco = coco_of(one.document, one.path)
    one.notes += _read_sizes(coco, one.root)
    one.notes += convert_boxes(coco, parameters)
    return ImageSet(coco, one.root, one.key, tuple(one.notes))


def _images(document: Record) -> list[Record]:
    """The image records that have an id and a name; the others are problems already."""
    records = document.get("images")
    if not isinstance(records, list):
        return []
    faulty = {fault.index for fault in find_faults(document, ["images"]) if fault.field in _NEEDED}
    return [record for index, record in enumerate(records) if index not in faulty]


def _name_files(one: _Set, records: list[Record]) -> list[Problem]:
    """Give every record the name of its file on disk; returns the problem of those that have none."""
    missing = [record for record in records if not _is_there(one.root, record["file_name"])]
    one.notes += _other_addresses(records)
    if not missing:
        return []
    files = list_files(one.root)
    names = {record["file_name"]: record["file_name"] for record in records}
    matched = match_names(names, files)
    by_address = _by_address(missing, matched, one)
    refused: list[tuple[Record, str]] = []
    inside = one.root.resolve()
    for record in missing:
        written = record["file_name"]
        if written in matched.names:
            record["file_name"] = matched.names[written]
        elif id(record) in by_address:
            record["file_name"] = by_address[id(record)]
        else:
            reason = find_file(inside, written)[1] or "is not a plain file"
            hint = matched.problems.get(written)
            if hint is None and len(refused) < _HINTS and "there is" not in reason:
                hint = files.hint(written)
            reason += f" ({hint})" if hint else ""
            refused.append(({**record, "file_name": shown_name(written)}, reason))
    one.notes += matched.notes
    if not refused:
        return []
    return [Problem("files", refused_images(refused, len(records), one.root))]


def _is_there(root: Path, name: str) -> bool:
    try:
        return unsafe_name(name) is None and (root / name).is_file()
    except OSError:  # a name that is too long
        return False


def _other_addresses(records: list[Record]) -> list[str]:
    """A note on records whose `coco_url` or `absolute_url` ends in the file name of another record.

    COCO and LVIS repeat the name there; an address that ends in a name of its own says nothing.
    """
    names = {PurePosixPath(record["file_name"].replace("\\", "/")).name for record in records}
    told = []
    for record in records:
        own = PurePosixPath(record["file_name"].replace("\\", "/")).name
        for key in ("coco_url", "absolute_url"):
            address = record.get(key)
            end = PurePosixPath(address.partition("?")[0]).name if isinstance(address, str) else ""
            if end and end != own and end in names:
                told.append(f"{shown_name(own)}: {key} ends in {shown_name(end)}")
    if not told:
        return []
    return [
        f"{len(told)} images have the file_name of one image and the address of another; file_name counts: "
        f"{shown(told)}"
    ]


def _by_address(missing: list[Record], matched: Matched, one: _Set) -> dict[int, str]:
    """The file that `coco_url` names, by `id()` of records whose `file_name` names none (LVIS 0.5)."""
    addresses = {
        id(record): record["coco_url"]
        for record in missing
        if record["file_name"] not in matched.names and isinstance(record.get("coco_url"), str) and record["coco_url"]
    }
    if not addresses:
        return {}
    found = match_names(addresses.values(), lambda: list_files(one.root))
    result = {key: found.names[address] for key, address in addresses.items() if address in found.names}
    if result:
        one.notes.append(f"{len(result)} images were found by their coco_url; no file has their file_name")
    return result


def _read_sizes(coco: CocoAnnotations, root: Path) -> list[str]:
    """Fill in sizes that the annotations do not give, upright, from the files.

    A damaged file keeps the size 0: validation names it.
    """
    unsized = [record for record in coco.images if record["width"] == 0 or record["height"] == 0]
    sizes = find_sizes(root, list(dict.fromkeys(record["file_name"] for record in unsized)))
    for record in unsized:
        if 0 not in sizes[record["file_name"]]:
            record["height"], record["width"] = sizes[record["file_name"]]
    names = [name for name, size in sizes.items() if 0 not in size]
    if not names:
        return []
    return [f"{len(names)} images have no size in the annotations; it was read from the file: {shown(names)}"]
