"""Files that declare a YOLO data set: class names by number, keypoints, splits.

Read are the `data.yaml` of Ultralytics and of the tools that follow it, Darknet's `obj.data`, the `notes.json` of
Label Studio, and text files with one name per line (`classes.txt`, `obj.names`). Names are texts as written.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolov7.data.formats.label_files import read_text, text_lines
from yolov7.documents import DocumentError
from yolov7.errors import DataError
from yolov7.yaml_text import read_yaml

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Keys of data.yaml and obj.data that name images, and the split each stands for."""
_LISTED = 5


@dataclass(frozen=True)
class Declared:
    """The content of one file."""

    path: Path
    names: Mapping[int, str]
    """Class names by the number that stands in the rows, ascending."""
    keypoints: tuple[int, int] | None = None
    """`kpt_shape`: number of points, and 2 or 3 values for each. The rows then hold a box and its points."""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Folders and lists of images as written, by split (train, val, test)."""
    label_folders: Mapping[str, str] = field(default_factory=dict)
    """Folders of labels as written, by split (Supervisely)."""
    base: str = ""
    """`path`, on which the splits are based; empty: the file's own folder."""
    notes: tuple[str, ...] = ()
    """Contradictions within the file."""


def read_declared(path: Path) -> Declared:
    """Read any of these files.

    Raises :class:`DataError` with everything that is wrong in it: no names, a name that is not a text, numbers that are
    repeated or missing, a blank line between names, a `kpt_shape` that is not [number, 2 or 3].
    """
    text = read_text(path)
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return _from_yaml(path, text)
    if suffix == ".json":
        return Declared(path, _names_of_notes(path, text))
    if suffix == ".data":
        return _from_darknet(path, text)
    return Declared(path, dict(enumerate(_names_of_lines(path, text))))


def read_class_names(path: Path) -> list[str]:
    """Class names in the order of their numbers. Raises as :func:`read_declared`."""
    return list(read_declared(path).names.values())


def _names_of_lines(path: Path, text: str) -> list[str]:
    names = [line.strip() for line in text_lines(text)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError("no class names; write one name per line", path=path)
    if "" in names:
        message = "a blank line between class names: the numbers of the names below it are ambiguous"
        raise DataError(message, path=path, record=f"line {names.index('') + 1}")
    return names


def _from_yaml(path: Path, text: str) -> Declared:
    try:
        document = read_yaml(text).written
    except DocumentError as error:
        raise DataError(f"not readable as YAML: {error}", path=path) from None
    if not isinstance(document, dict):
        document = {}
    problems: list[str] = []
    names = _names_of_yaml(document.get("names"), problems)
    if "names" not in document and "nc" in document:
        problems[0] += f" (`nc: {document['nc']}` says how many there are, not what they are called)"
    keypoints = _keypoints(document.get("kpt_shape", ""), problems)
    problems += _twice_declared(document)
    if problems:
        raise DataError("; ".join(problems), path=path)
    splits = {split: _texts(document[key]) for key, split in _SPLITS.items() if key in document}
    labels = {split: str(document[f"{key}_labels"]) for key, split in _SPLITS.items() if f"{key}_labels" in document}
    return Declared(
        path,
        names,
        keypoints=keypoints,
        splits={split: values for split, values in splits.items() if values},
        label_folders=labels,
        base=document["path"] if isinstance(document.get("path"), str) else "",
        notes=tuple(_contradictions(document, names, keypoints)),
    )


def _twice_declared(document: Mapping[str, Any]) -> list[str]:
    """Keys that mean the same set and name different places."""
    problems = []
    for split in dict.fromkeys(_SPLITS.values()):
        places = {key: _texts(document[key]) for key, other in _SPLITS.items() if other == split and key in document}
        given = {key: place for key, place in places.items() if place}
        if len(set(given.values())) > 1:
            listed = " and ".join(f"`{key}: {', '.join(place)}`"[:80] for key, place in given.items())
            problems.append(f"{listed} name different places for the set {split}; keep one")
    return problems


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str) and item)


def _names_of_yaml(names: Any, problems: list[str]) -> dict[int, str]:
    """Names by number; what is wrong with them is added to `problems`."""
    if isinstance(names, dict) and names:
        numbers = {key: int(key) if re.fullmatch(r"\d{1,9}", key) else None for key in names}
        if sorted(number for number in numbers.values() if number is not None) != list(range(len(names))):
            lacking = sorted(set(range(len(names))) - set(numbers.values()))
            problems.append(
                f"the keys of `names` are not 0 to {len(names) - 1} ({', '.join(list(names)[:_LISTED])}; missing: "
                f"{', '.join(map(str, lacking[:_LISTED]))}): do the rows hold the keys, or the places? Renumber them, "
                "or list the names under data.yolo.names"
            )
            return {}
        names = [name for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
    if not isinstance(names, list) or not names:
        problems.append("no `names`; expected a list of class names, or a mapping from number to name")
        return {}
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            problems.append(f"class {number}: the name is {str(name)[:40]!r}; expected a text")
    return {number: name for number, name in enumerate(names) if isinstance(name, str)}


def _keypoints(shape: Any, problems: list[str]) -> tuple[int, int] | None:
    if shape == "":
        return None
    texts = shape if isinstance(shape, list) else []
    if len(texts) == 2 and re.fullmatch(r"[1-9]\d{0,3}", str(texts[0])) and texts[1] in ("2", "3"):
        return int(texts[0]), int(texts[1])
    problems.append(f"`kpt_shape` is {str(shape)[:40]}; expected [number of points, 2 or 3]")
    return None


def _contradictions(
    document: Mapping[str, Any], names: Mapping[int, str], keypoints: tuple[int, int] | None
) -> list[str]:
    found: list[str] = []
    if "nc" in document and document["nc"] != str(len(names)):
        found.append(f"`nc` is {str(document['nc'])[:20]}, but `names` has {len(names)}: the names count")
    flips = document.get("flip_idx", "")
    if flips != "" and keypoints is None:
        found.append("`flip_idx` is given without `kpt_shape`: it was not used")
    elif isinstance(flips, list) and keypoints is not None and len(flips) != keypoints[0]:
        found.append(f"`flip_idx` has {len(flips)} entries, `kpt_shape` says {keypoints[0]} points")
    if document.get("channels", "3") not in ("1", "3"):
        found.append(f"`channels` is {str(document['channels'])[:20]}: images are read as three channels of 8 bits")
    if document.get("download", "") != "":
        found.append("`download` is never run; fetch the data yourself, or see data.http and data.s3")
    return found


def _from_darknet(path: Path, text: str) -> Declared:
    """Darknet's `key = value`; paths may begin with `data/`, which is not a folder of the export."""
    pairs = [line.partition("=") for line in text_lines(text) if "=" in line and not line.lstrip().startswith("#")]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if not values.get("names"):
        raise DataError("no `names = FILE`; is this Darknet's obj.data?", path=path)
    named = [path.parent / values["names"], path.parent / values["names"].removeprefix("data/")]
    file = next((file for file in named if file.is_file()), path.with_suffix(".names"))
    names = _names_of_lines(file, read_text(file))
    notes = []
    if values.get("classes", str(len(names))) != str(len(names)):
        notes.append(f"`classes` is {values['classes'][:20]}, but {file.name} has {len(names)} names: the names count")
    splits = {split: (values[key],) for key, split in _SPLITS.items() if values.get(key)}
    return Declared(path, dict(enumerate(names)), splits=splits, notes=tuple(notes))


def _names_of_notes(path: Path, text: str) -> dict[int, str]:
    """Label Studio's `notes.json`: the pairs of number and name that the rows use."""
    try:
        document = json.loads(text)
        categories = document["categories"]
        pairs = [(int(category["id"]), str(category["name"])) for category in categories]
    except (ValueError, RecursionError, TypeError, KeyError):
        message = "not the notes.json of Label Studio; expected `categories`, each with `id` and `name`"
        raise DataError(message, path=path) from None
    repeated = {number for number, times in Counter(number for number, _ in pairs).items() if times > 1}
    if not pairs or repeated or any(number < 0 or not name.strip() for number, name in pairs):
        twice = f"; repeated: {', '.join(map(str, sorted(repeated)[:_LISTED]))}" if repeated else ""
        raise DataError(f"`categories` needs names with numbers from 0, each once{twice}", path=path)
    return dict(sorted(pairs))
