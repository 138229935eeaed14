"""Lists of images or label files: VOC's image sets, lists of YOLO exports, CSV files with a column of names."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yolov7.data.formats.label_files import read_text, text_lines
from yolov7.data.sources.file_names import FileNames
from yolov7.data.sources.image_folder import shown, stem_of
from yolov7.errors import DataError

_NAME_COLUMNS = ("filename", "file_name", "image", "file", "path")
"""Headings of a CSV's column of file names."""


@dataclass(frozen=True)
class Chosen:
    """The files that a list names."""

    files: list[str]
    """Each once, in the order of the list."""
    notes: tuple[str, ...] = ()
    """Names that were converted."""


def choose_listed(path: Path, known: Mapping[str, str]) -> Chosen:
    """The values of `known` (by stem) that a list names.

    The list is a CSV with a heading `filename`, or a text file with one name per line: with or without extension, with
    or without leading folders, with or without the -1, 0 or 1 of VOC's class lists after it, and in the other ways of
    `yolov7.data.sources.file_names`. Raises :class:`DataError` for an empty list, and for unknown and ambiguous names,
    with their lines.
    """
    entries = _csv_names(path) if path.suffix.lower() == ".csv" else _text_names(path)
    files = FileNames(known.values())
    stems = FileNames(known)
    chosen: dict[str, None] = {}
    missing: dict[str, int] = {}
    ambiguous: list[str] = []
    other: dict[str, str] = {}
    for line, entry in entries:
        stem = _known_stem(entry, known)
        found, problem = (known[stem], None) if stem is not None else _resembling(entry, files, stems, known)
        if found is not None:
            chosen[found] = None
            if _is_another_name(entry, found):
                other.setdefault(entry, found)
        elif problem is not None:
            ambiguous.append(f"line {line}: {entry!r} {problem}")
        else:
            missing.setdefault(entry, line)
    if missing or ambiguous:
        listed = [f"{entry} (line {line})" for entry, line in missing.items()]
        reasons = [f"{len(missing)} names of this list have no file: {shown(listed)}"] if missing else []
        reasons += [f"{len(ambiguous)} names are ambiguous: {'; '.join(ambiguous[:5])}"] if ambiguous else []
        raise DataError("; ".join(reasons), path=path)
    if not chosen:
        raise DataError("the list is empty", path=path)
    pairs = [f"{entry} is {file}" for entry, file in other.items()]
    notes = (f"{path.name} writes {len(other)} names another way: {shown(pairs)}",) if other else ()
    return Chosen(list(chosen), notes)


def list_entries(path: Path) -> list[tuple[int, str]]:
    """The names of a list with their lines, as written."""
    return _csv_names(path) if path.suffix.lower() == ".csv" else _text_names(path)


def _is_another_name(entry: str, found: str) -> bool:
    """True unless the entry is the file's name or stem; the image of an XML file may have any extension."""
    names = {spelling.removeprefix("./") for spelling in _spellings(entry)}
    if found.lower().endswith(".xml"):
        names |= {stem_of(name) for name in names if name.strip("./")}
    return names.isdisjoint({found, stem_of(found)})


def _text_names(path: Path) -> list[tuple[int, str]]:
    lines = enumerate(text_lines(read_text(path)), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _csv_names(path: Path) -> list[tuple[int, str]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        heading = [name.strip().lower() for name in next(reader, [])]
        column = next((heading.index(name) for name in _NAME_COLUMNS if name in heading), None)
        if column is None:
            wanted = ", ".join(_NAME_COLUMNS)
            raise DataError(f"no column that names files (one of: {wanted}) among {heading[:10]}", path=path)
        return [(reader.line_num, row[column].strip()) for row in reader if len(row) > column and row[column].strip()]
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", path=path, record=f"line {reader.line_num}") from None


def _spellings(entry: str) -> list[str]:
    """The entry, and without the flag of VOC's class lists."""
    name, _, flag = entry.rpartition(" ")
    return [entry, name.rstrip()] if flag in ("-1", "0", "1") else [entry]


def _known_stem(entry: str, known: Mapping[str, str]) -> str | None:
    """The known stem of an entry; leading folders are dropped one by one until one fits."""
    for candidate in _spellings(entry):
        parts = [part for part in candidate.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for stem in (tail, stem_of(tail)):
                if stem in known:
                    return stem
    return None


def _resembling(
    entry: str, files: FileNames, stems: FileNames, known: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The file that an entry means in other letters, encoded, or in a subfolder; or why it is ambiguous."""
    problem = None
    for candidate in _spellings(entry):
        match = files.find(candidate)
        if match.name is not None:
            return match.name, None
        problem = problem or match.problem
        for spelling in (candidate, stem_of(candidate) if candidate.strip("./") else ""):
            match = stems.find(spelling)
            # A stem alone is not looked for in subfolders: without its extension it says too little.
            if match.name is not None and match.name.count("/") <= spelling.replace("\\", "/").count("/"):
                return known[match.name], None
            problem = problem or match.problem
    return None, problem
