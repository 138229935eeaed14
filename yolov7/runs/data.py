"""A data set for a run: its splits, read, checked and indexed. Images stay where they are."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from yolov7.config import Group, parse
from yolov7.data.formats.yolo_declared import read_declared
from yolov7.data.index import DESCRIPTION as INDEX
from yolov7.data.index import Index, build_index
from yolov7.data.sources.class_names import with_plain_names
from yolov7.data.sources.coco import read_coco_sets
from yolov7.data.sources.image_set import ImageSet
from yolov7.data.sources.parameters import Coco, Voc, Yolo
from yolov7.data.sources.voc import read_voc_sets
from yolov7.data.sources.yolo import read_yolo_sets
from yolov7.errors import ConfigError, DataError
from yolov7.files import write_json
from yolov7.runs.checks import check_boxes, check_images
from yolov7.runs.layouts import Layout, find_layout

log = logging.getLogger(__name__)

DESCRIPTION = "data.json"
"""Beside the indices: what they were made of."""
DataSet = str | Path | Mapping[str, Any]
"""A path, or the parts of a COCO data set by split (:func:`yolov7.runs.layouts.find_layout`)."""
_GROUPS: Mapping[str, type[Group]] = {"coco": Coco, "voc": Voc, "yolo": Yolo}
_READERS: Mapping[str, Callable[[Any, Path], dict[str, ImageSet]]] = {
    "coco": read_coco_sets,
    "voc": read_voc_sets,
    "yolo": read_yolo_sets,
}
_MISSING = {
    "train": "training images",
    "val": "validation images, which choose the best weights; divide the training images first, by scene or by time",
    "test": "test images",
}


@dataclass(frozen=True)
class OpenedData:
    """The splits of a data set, indexed."""

    indices: Mapping[str, Index]
    sha256: str
    """Of the annotations and the sizes of the image files of these splits."""
    source: str
    """The path as it was given."""


def open_data(
    data: DataSet,
    folder: Path,
    *,
    splits: tuple[str, ...],
    options: Mapping[str, Any] | None = None,
    drop_bad_boxes: bool = False,
    class_names: tuple[str, ...] | None = None,
) -> OpenedData:
    """Read the `splits` of `data` and write an index of each into `folder`.

    `options` are the reader's (:mod:`yolov7.data.sources.parameters`), such as `{"boxes": "corners"}` for COCO.
    `class_names` are those of a model: Pascal VOC lists no classes, so its own would be those that occur. Raises
    :class:`DataError` for everything that is wrong with the data, one line with file and record, and
    :class:`ConfigError` for unknown options. A set that was checked before and has not changed is not checked again.
    """
    layout = find_layout(data)
    sets = _read(layout, splits, dict(options or {}), class_names)
    checked = {split: check_boxes(images, drop=drop_bad_boxes) for split, images in sets.items()}
    digest = _digest({split: images for split, (images, _) in checked.items()})
    known = _known(folder)
    for split, (images, notes) in checked.items():
        for note in notes:
            log.warning("%s: %s", split, note)
        if known != digest:
            check_images(images)
    for note in _shared({split: images for split, (images, _) in checked.items()}):
        log.warning("%s", note)
    _refuse_foreign(folder, list(checked))
    indices = {split: build_index(images.coco, images.root, folder / split) for split, (images, _) in checked.items()}
    names = {split: index.class_names for split, index in indices.items()}
    if len(set(names.values())) > 1:
        raise DataError(f"the splits have other classes: {_difference(names)}", path=layout.name)
    write_json(folder / DESCRIPTION, {"data": str(layout.name), "sha256": digest, "splits": list(indices)})
    return OpenedData(indices, digest, str(layout.name))


def _shared(sets: Mapping[str, ImageSet]) -> list[str]:
    """A note for every two splits with images in common: what is measured on those was learnt by heart."""
    files = {
        split: {str(images.root.resolve() / r["file_name"]) for r in images.coco.images}
        for split, images in sets.items()
    }
    return [
        f"images of {second} that are in {first}, too: {len(common)} (such as {min(common)}); figures on them flatter"
        for first, second in combinations(files, 2)
        if (common := files[first] & files[second])
    ]


def _refuse_foreign(folder: Path, splits: Sequence[str]) -> None:
    """Raise :class:`DataError` for a folder that an index would replace, and that is not one."""
    for place in (folder / split for split in splits):
        if os.path.lexists(place) and not (place / INDEX).is_file():
            raise DataError("not an index, which would replace it; name another output folder", path=place)


def _known(folder: Path) -> str | None:
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found.get("sha256") if isinstance(found, dict) else None


def _difference(names: Mapping[str, tuple[str, ...]]) -> str:
    (first, ours), *others = names.items()
    split, theirs = next((split, other) for split, other in others if other != ours)
    only = [f"{one!r} is in one of them only" for one in sorted({*ours} ^ {*theirs})[:3]]
    return f"{first} has {len(ours)}, {split} has {len(theirs)}" + (f"; {', '.join(only)}" if only else "")


def _read(
    layout: Layout, splits: tuple[str, ...], options: dict[str, Any], class_names: tuple[str, ...] | None
) -> dict[str, ImageSet]:
    """The wanted sets, their notes included."""
    _require(layout, splits)
    given = [
        key for key in options if key in ("train", "val", "test", "all", "names" if layout.format == "yolo" else "")
    ]
    if given:
        raise ConfigError(f"data options: {given[0]}: the data set itself says this; give options of its reader only")
    values: dict[str, Any] = {**layout.values, **options}
    alone = len(splits) == 1 and layout.format != "yolo"
    if alone:
        values = {"all": layout.values[splits[0]], **options}
    elif "test" not in splits:
        values.pop("test", None)
    if layout.format == "voc" and class_names is not None:
        values.setdefault("classes", list(class_names))
    parameters: Any = parse(_GROUPS[layout.format], values, where=f"data.{layout.format}")
    parameters.check(f"data.{layout.format}")
    read = with_plain_names(_READERS[layout.format](parameters, layout.base))
    if alone:
        return {splits[0]: read["all"]}
    missing = [split for split in splits if split not in read]
    if missing:
        raise DataError(f"there are no {_MISSING[missing[0]]}", path=layout.name)
    return {split: read[split] for split in splits}


def _require(layout: Layout, splits: tuple[str, ...]) -> None:
    """Raise :class:`DataError` for a split that the data set does not have."""
    there = set(layout.values)
    if layout.format == "yolo":
        there = set(read_declared(Path(layout.values["names"])).splits)
    for split in splits:
        if split not in there:
            have = f" (there are: {', '.join(sorted(there))})" if there else ""
            raise DataError(f"no split `{split}`{have}: there are no {_MISSING[split]}", path=layout.name)


def _digest(sets: Mapping[str, ImageSet]) -> str:
    """sha256 of what a training sees: records of the splits, and the sizes of the image files in bytes."""
    total = hashlib.sha256()
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    for split, images in sets.items():
        total.update(f"{split}\n".encode())
        coco = images.coco
        for record in coco.images:
            size = (images.root / record["file_name"]).stat().st_size
            total.update(
                f"{encode([record['id'], record['file_name'], record['width'], record['height'], size])}\n".encode()
            )
        for records in (coco.annotations, coco.categories):
            for record in records:
                total.update(f"{encode(record)}\n".encode())
    return total.hexdigest()
