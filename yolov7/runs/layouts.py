"""Data sets as they lie on a disk: which format a path holds, and where its splits are.

Known are a YOLO `data.yaml` (or Darknet's `obj.data`), a COCO json for each split or a folder with the usual layouts,
a folder of Pascal VOC, and the pipeline's own layout (`data/ingested`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolov7.data.formats.yolo_declared import Declared, read_declared
from yolov7.data.sources.lists import list_entries
from yolov7.errors import ConfigError, DataError, nearest

_SPLIT_NAMES = {
    "train": ("train", "train2017", "training"),
    "val": ("val", "valid", "validation", "val2017"),
    "test": ("test",),
}
"""Names of files and folders that mean a split."""
_DECLARING = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "data_config.yaml", "obj.data")
"""Files that declare a YOLO data set."""
_GIVEN = ("images", "annotations")
FORMATS = ("coco", "voc", "yolo")


@dataclass(frozen=True)
class Layout:
    """A data set that one reader can read."""

    format: str
    """One of `FORMATS`."""
    base: Path
    """The folder that the paths of `values` are relative to."""
    values: Mapping[str, Any]
    """The reader's parameters (:mod:`yolov7.data.sources.parameters`), without the user's options."""
    name: Path
    """The path that the user gave, for messages."""


def find_layout(data: str | Path | Mapping[str, Any]) -> Layout:
    """The layout behind `data`: the path of a file or folder, or a mapping of splits to COCO jsons and their images.

    A mapping has `train`, `val` and, if there is one, `test`, each `{"images": FOLDER, "annotations": JSON}`. Raises
    :class:`DataError` for a path that is none of the known layouts, :class:`ConfigError` for a mapping of another form.
    """
    if isinstance(data, Mapping):
        return _given(data)
    if not isinstance(data, str | os.PathLike):
        raise ConfigError(f"data: a path is expected, or a COCO json and its images by split, got {data!r:.100}")
    path = Path(data)
    if path.is_dir():
        return _in_folder(path)
    if not path.exists():
        raise DataError("no such file or folder; give a data.yaml, a folder, or a COCO json for each split", path=path)
    if path.suffix.lower() in (".yaml", ".yml", ".data"):
        return _declared(path)
    if path.suffix.lower() == ".json":
        raise DataError(
            "one annotation file is one split; name the splits: --data train=JSON:IMAGES val=JSON:IMAGES, in Python "
            'data={"train": {"annotations": JSON, "images": FOLDER}, "val": ...}',
            path=path,
        )
    raise DataError("not a data set: a data.yaml, or a folder of COCO, YOLO or Pascal VOC, is expected", path=path)


def parse_splits(texts: Iterable[str]) -> str | dict[str, Any]:
    """The value of `--data`: one path, or `train=JSON:IMAGES val=JSON:IMAGES`. Raises :class:`ConfigError`."""
    given = list(texts)
    if len(given) == 1 and not _is_split(given[0]):
        return given[0]
    found: dict[str, Any] = {}
    for text in given:
        split, _, places = text.partition("=")
        annotations, colon, images = places.rpartition(":")
        if not _is_split(text) or not (annotations and colon and images):
            raise ConfigError(
                f"--data: {text!r}: one path is expected, or train=JSON:IMAGES val=JSON:IMAGES (IMAGES is a folder)"
            )
        if split in found:
            raise ConfigError(f"--data: {split} is given twice")
        found[split] = {"annotations": annotations, "images": images}
    return found


def _is_split(text: str) -> bool:
    return text.partition("=")[0] in _SPLIT_NAMES and "=" in text


def _given(data: Mapping[str, Any]) -> Layout:
    """Jsons and image folders as they are named, relative to the working folder."""
    for split, one in data.items():
        if split not in _SPLIT_NAMES:
            raise ConfigError(f"data: {split!r} is not a split{nearest(str(split), list(_SPLIT_NAMES))}")
        if not isinstance(one, Mapping) or sorted(one) != sorted(_GIVEN):
            raise ConfigError(f"data.{split}: `images` (a folder) and `annotations` (a COCO json) are expected")
        for key in _GIVEN:
            if not isinstance(one[key], str | os.PathLike):
                raise ConfigError(f"data.{split}.{key}: a path is expected, got {one[key]!r:.100}")
    values = {split: {key: str(Path(one[key])) for key in _GIVEN} for split, one in data.items()}
    first = next((Path(one["annotations"]) for one in values.values()), Path())
    return Layout("coco", Path(), values, first)


def _in_folder(folder: Path) -> Layout:
    declaring = next((folder / name for name in _DECLARING if (folder / name).is_file()), None)
    if declaring is not None:
        return _declared(declaring)
    for name, found in (("coco", _coco(folder)), ("voc", _voc(folder))):
        if found:
            return Layout(name, folder, found, folder)
    raise DataError(
        "no data set here: expected are a data.yaml (YOLO); annotations/instances_train.json with images, or "
        "train/_annotations.coco.json (COCO); Annotations, JPEGImages and ImageSets/Main (Pascal VOC)",
        path=folder,
    )


def _coco(folder: Path) -> dict[str, dict[str, str]]:
    """Splits of COCO in a folder, in the layouts of COCO itself, of CVAT, Roboflow, FiftyOne and of this project."""
    found: dict[str, dict[str, str]] = {}
    for split, names in _SPLIT_NAMES.items():
        for name in names:
            jsons = (
                f"annotations/instances_{name}.json", f"annotations/{name}.json", f"{name}/_annotations.coco.json",
                f"{name}/annotations.json", f"{name}/labels.json", f"{name}.json",
            )  # fmt: skip
            annotations = next((one for one in jsons if (folder / one).is_file()), None)
            if annotations is None:
                continue
            beside = Path(annotations).parent.as_posix()
            folders = (f"images/{name}", f"{name}/images", f"{name}/data", name, "images", beside)
            images = next((one for one in folders if (folder / one).is_dir()), ".")
            found[split] = {"images": images, "annotations": annotations}
            break
    return found


def _voc(folder: Path) -> dict[str, dict[str, str]]:
    """Splits of Pascal VOC in a folder: the lists of one pair of folders, or folders of their own (Roboflow)."""
    found: dict[str, dict[str, str]] = {}
    images = next((name for name in ("JPEGImages", "images") if (folder / name).is_dir()), None)
    if (folder / "Annotations").is_dir() and images:
        for split, names in _SPLIT_NAMES.items():
            lists = [f"ImageSets/Main/{name}.txt" for name in names]
            listed = next((one for one in lists if (folder / one).is_file()), None)
            if listed is not None:
                found[split] = {"images": images, "annotations": "Annotations", "listed_in": listed}
        return found
    for split, names in _SPLIT_NAMES.items():
        for name in names:
            own = folder / name
            if any(own.glob("*.xml")):
                found[split] = {"images": name, "annotations": name}
            elif (own / "Annotations").is_dir():
                inside = next((one for one in ("JPEGImages", "images") if (own / one).is_dir()), "")
                found[split] = {"images": f"{name}/{inside}".rstrip("/"), "annotations": f"{name}/Annotations"}
            else:
                continue
            break
    return found


def _declared(path: Path) -> Layout:
    """The sets of a data.yaml. The reader looks below one folder, which is the file's, or one around all the sets."""
    declared = read_declared(path)
    base = _around(path.resolve().parent, _places(declared))
    return Layout("yolo", base, {"names": str(path.resolve())}, path)


def _places(declared: Declared) -> list[Path]:
    """Places outside of the file's folder that exist as they are written: `path` may be anywhere."""
    here = declared.path.resolve().parent
    bases = [here / declared.base, Path(declared.base)] if declared.base else [here]
    values = [value for values in declared.splits.values() for value in values]
    found: list[Path] = []
    for value in values:
        for base in bases:
            place = (base / value).resolve()
            inside = value.replace("\\", "/")
            # Roboflow writes `../train/images` beside a folder `train`: that one is meant.
            if place.exists() and not (inside.startswith("../") and (here / inside.lstrip("./")).exists()):
                found += [place, *(_listed_folders(place) if place.is_file() else ())]
                break
    return found


def _listed_folders(path: Path) -> list[Path]:
    """The folders of the images that a list names by absolute paths."""
    entries = (Path(entry) for _, entry in list_entries(path))
    parents = dict.fromkeys(entry.parent for entry in entries if entry.is_absolute())
    return [parent.resolve() for parent in parents if parent.is_dir()]


def _around(folder: Path, places: Sequence[Path]) -> Path:
    """The folder itself if all the places are in it; otherwise the deepest one that holds them and their labels."""
    if all(place.is_relative_to(folder) for place in places):
        return folder
    return Path(os.path.commonpath([_holder(place) for place in places]))


def _holder(place: Path) -> Path:
    """The folder of `images` and `labels` around images; of any other place, its parent."""
    above = [one for one in (place, *place.parents) if one.name == "images"]
    return above[0].parent if above else place.parent
