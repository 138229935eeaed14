"""Class names of a YOLO data set, and what the files beside them declare otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from yolov7.data.formats.yolo_declared import Declared, read_declared
from yolov7.errors import DataError

_NOTES = "notes.json"
_LIST = "classes.txt"
_OTHERS = ("data.yaml", "data.yml", "dataset.yaml", "data_config.yaml", "obj.names", _LIST, _NOTES)
"""Files in which tools write class names."""


def find_names(names: tuple[str, ...] | str, base: Path, label_folders: Iterable[Path]) -> tuple[Declared, list[str]]:
    """The names that params.yaml gives, or the file that it names, and notes on files that say otherwise.

    Two facts of other files are used, and noted: the numbers in the `notes.json` beside a `classes.txt` (Label Studio
    lists names there in another order than its rows number them), and the `kpt_shape` of a data.yaml.
    """
    if isinstance(names, str):
        declared = read_declared(base / names)
        folder = declared.path.parent
    else:
        declared, folder = Declared(base / "params.yaml", dict(enumerate(names))), base
    notes = [f"{declared.path.name}: {note}" for note in declared.notes]
    own = "data.yolo.names" if not isinstance(names, str) else declared.path.name
    files = _in_any_case(folder, _OTHERS) + [file for path in label_folders for file in _in_any_case(path, (_LIST,))]
    others = list(_read(dict.fromkeys(path for path in files if path.is_file() and path != base / str(names)), notes))
    numbered = next((other for other in others if other.path.name.lower() == _NOTES), None)
    if (
        isinstance(names, str)
        and declared.path.suffix.lower() == ".txt"
        and numbered
        and numbered.names != declared.names
    ):
        difference = _difference(own, declared, _NOTES, numbered)
        notes.append(f"{difference}: the rows are read with the numbers of {_NOTES}")
        declared, own = replace(declared, names=numbered.names), _NOTES
    for other in others:
        if other.names != declared.names and not (own == _NOTES and other.path == base / str(names)):
            notes.append(f"{_difference(own, declared, other.path.name, other)}: {own} counts")
        if declared.keypoints is None and other.keypoints is not None:
            declared = replace(declared, keypoints=other.keypoints)
            notes.append(f"{other.path.name} declares `kpt_shape` {list(other.keypoints)}: the rows are read with it")
    return declared, notes


def _in_any_case(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of these names, also `CLASSES.TXT`, in the order of the names."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for name in names for file in there if file.name.lower() == name]


def _read(files: Iterable[Path], notes: list[str]) -> Iterator[Declared]:
    for file in files:
        try:
            yield read_declared(file)
        except DataError as error:
            notes.append(f"{file.name} was not read: {str(error).removeprefix(f'{file}: ')}")


def _difference(first: str, one: Declared, second: str, other: Declared) -> str:
    """The two files, and the first number that they name differently."""
    numbers = sorted({*one.names, *other.names})
    at = next(number for number in numbers if one.names.get(number) != other.names.get(number))
    words = [
        f"{file} calls class {at} {names[at]!r}" if at in names else f"{file} has no class {at}"
        for file, names in ((first, one.names), (second, other.names))
    ]
    return " and ".join(words)
