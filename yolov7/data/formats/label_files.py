"""Shared by the formats with one label file per image: matching of files to images, and safe reading of small files.

The two formats are YOLO text (`yolo_txt.py`) and Pascal VOC (`voc.py`).
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.errors import DataError
from yolov7.text import NUMBER

MAX_BYTES = 16 * 2**20
"""Larger label files are refused: the annotations of one image take a few kilobytes."""

_PROBLEMS_LISTED = 10
"""Problems that one message gives in full; it always says how many there are."""


Ring = list[float]
"""A polygon: x1, y1, x2, y2, ... in pixels."""


@dataclass(frozen=True)
class LabelledImage:
    """An image record with the annotations of its label file."""

    record: Record
    label: PurePosixPath
    """The label file, relative to the label folder."""
    annotations: list[Record]


def unsafe_name(name: str) -> str | None:
    """Why an image's file name cannot be a path below a folder; None if it can."""
    if "\\" in name or re.match(r"[A-Za-z]:", name):
        return "is a Windows path; write it relative to the image folder, with forward slashes"
    path = PurePosixPath(name)
    if path.is_absolute():
        return "is an absolute path; write it relative to the image folder"
    if ".." in path.parts:
        return "leaves the image folder by `..`"
    if not path.parts:
        return "does not name a file"
    return None


class CombinedDataError(DataError):
    """More than one problem of a data set, in one message."""

    def __init__(self, problems: Sequence[DataError]) -> None:
        self.problems = tuple(problems)
        listed = "; ".join(map(str, problems[1:_PROBLEMS_LISTED]))
        further = len(problems) - _PROBLEMS_LISTED
        more = f"; and {further} more" if further > 0 else ""
        super().__init__(f"{problems[0]} ({len(problems)} problems in all: {listed}{more})")


@contextlib.contextmanager
def collected(problems: list[DataError]) -> Iterator[None]:
    """Add the :class:`DataError` of the block to `problems`, so that one message can name all of a data set."""
    try:
        yield
    except CombinedDataError as error:
        problems += error.problems
    except DataError as error:
        problems.append(error)


def raise_together(problems: Sequence[DataError]) -> None:
    """Raise one :class:`DataError` for all `problems`, the first few in full; nothing if there are none.

    Two sets of one folder have the same problems: each is named once.
    """
    unique = list({str(problem): problem for problem in problems}.values())
    if len(unique) == 1:
        raise unique[0]
    if unique:
        raise CombinedDataError(unique)


def read_small(path: Path) -> bytes:
    """The bytes of a label or list file. Raises :class:`DataError` if it is missing, unreadable or huge."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise DataError("no such file", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    if len(content) > MAX_BYTES:
        raise DataError(f"larger than {MAX_BYTES // 2**20} MiB; not a label file", path=path)
    return content


def read_text(path: Path) -> str:
    """The text of a label or list file, UTF-8, a byte-order mark accepted. Raises as :func:`read_small`."""
    try:
        return read_small(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}; save it as UTF-8 text", path=path) from None


def text_lines(text: str) -> list[str]:
    """The lines of a text from any system; `str.splitlines` would also split at form feeds and the like."""
    return re.split(r"\r\n|\r|\n", text)


def finite_number(text: str) -> float | None:
    """A text as a number; None if it is not one, or overflows."""
    if NUMBER.fullmatch(text) is None:
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def ring_bounds(ring: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a polygon x1, y1, x2, y2, ..."""
    return min(ring[::2]), min(ring[1::2]), max(ring[::2]), max(ring[1::2])


def ring_area(ring: Sequence[float]) -> float:
    """Area of a polygon x1, y1, x2, y2, ... (shoelace formula)."""
    x, y = list(ring[::2]), list(ring[1::2])
    following = zip(x[1:] + x[:1], y[1:] + y[:1], strict=True)
    twice = sum(a * d - c * b for (a, b), (c, d) in zip(zip(x, y, strict=True), following, strict=True))
    return abs(twice) / 2


def by_image(coco: CocoAnnotations, suffix: str) -> list[LabelledImage]:
    """Every image with its annotations (in the order of the file) and its label file's name, which ends in `suffix`.

    Raises :class:`DataError` for content that cannot be written file by file: a repeated image id, a name that leads
    out of the folder, two images whose names differ only in the extension, a size or box that is not finite, a
    reference to an unknown image.
    """
    annotations: dict[int, list[Record]] = defaultdict(list)
    for annotation in coco.annotations:
        if not all(map(math.isfinite, annotation["bbox"])):
            raise _refused(coco, f"annotation {annotation['id']}", "the box is not finite")
        annotations[annotation["image_id"]].append(annotation)
    labels: dict[PurePosixPath, str] = {}
    result: list[LabelledImage] = []
    ids: set[int] = set()
    for record in coco.images:
        where = f"image {record['id']}"
        if record["id"] in ids:
            raise _refused(coco, where, "the image id is repeated")
        ids.add(record["id"])
        _check_image(coco, record)
        label = PurePosixPath(record["file_name"]).with_suffix(suffix)
        if label in labels:
            both = f"{labels[label]!r} and {record['file_name']!r}"
            raise _refused(coco, where, f"{both} would share the label file {label}; rename one of the images")
        labels[label] = record["file_name"]
        result.append(LabelledImage(record, label, annotations.pop(record["id"], [])))
    for image_id, orphans in annotations.items():
        raise _refused(coco, f"annotation {orphans[0]['id']}", f"image_id {image_id} is not an image of this file")
    return result


def _check_image(coco: CocoAnnotations, record: Record) -> None:
    where = f"image {record['id']}"
    reason = unsafe_name(record["file_name"])
    if reason is not None:
        raise _refused(coco, where, f"{record['file_name']!r} {reason}")
    if not all(math.isfinite(record[side]) and record[side] > 0 for side in ("width", "height")):
        raise _refused(coco, where, f"the size {record['width']} x {record['height']} is not positive and finite")


def _refused(coco: CocoAnnotations, record: str, message: str) -> DataError:
    return DataError(message, path=coco.path, record=record)


def copy_images(images: Sequence[LabelledImage], source: Path, target: Path) -> None:
    """Copy every image file from `source` to `target`. Raises :class:`DataError` for a missing one."""
    for image in images:
        name = image.record["file_name"]
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise DataError(f"cannot be copied: {error.strerror}", path=source / name) from None


@contextlib.contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` on a clean exit and is removed on an exception.

    Raises :class:`DataError` if `out` is not empty: label files of two data sets must not mix.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError("exists and is not an empty folder; choose another one", path=out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", suffix=".tmp", dir=out.parent) as work:
        fresh = Path(work) / "new"
        fresh.mkdir()
        yield fresh
        fresh.rename(out)
