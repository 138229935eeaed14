"""Class names of a Pascal VOC data set that a file lists."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from yolov7.data.formats.yolo_declared import read_class_names
from yolov7.data.sources.image_folder import shown

_LABEL_MAP = "labelmap.txt"
"""CVAT: `name:colour:parts:actions`, with a line for the background that no object has."""
_NO_CLASSES = ("__ignore__", "_background_")
"""Lines of labelme's class list that no object has."""


def listed_classes(path: Path) -> tuple[str, ...]:
    """The classes that a file lists, one per line. Raises :class:`yolov7.errors.DataError` if there are none."""
    names = [name for name in read_class_names(path) if not name.startswith("#") and name not in _NO_CLASSES]
    if path.name == _LABEL_MAP:
        names = [name.split(":")[0] for name in names]
        names = [name for name in names if name != "background"]
    return tuple(dict.fromkeys(names))


def unused_note(folders: Iterable[Path], occurring: Collection[str]) -> list[str]:
    """A note on classes of a labelmap.txt beside the annotations that no object has, if there is one."""
    for folder in dict.fromkeys(folders):
        file = folder / _LABEL_MAP
        if file.is_file():
            unused = [name for name in listed_classes(file) if name not in occurring]
            if unused:
                return [
                    f"{_LABEL_MAP} lists {len(unused)} classes that no object has: {shown(unused)}; "
                    f"`classes` of data.voc can name the file to keep them"
                ]
    return []
