"""A set of annotated images as a source gives it, and its way into the pipeline's layout.

Whatever the format was, the records are COCO's by now and are kept as they are. Images keep their bytes, except those
with an EXIF orientation: they are stored upright, so that nothing after this stage has to ask.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from stages.image_header import MAX_PIXELS, UPRIGHT, ImageHeader, read_header
from stages.ingested import SourceReport, annotations_file, images_folder
from yolov7.data.coco import CocoAnnotations, Record, write_coco
from yolov7.data.label_files import unsafe_name
from yolov7.errors import DataError

logger = logging.getLogger(__name__)

_LISTED = 5
"""Missing or refused files a message names; it always tells how many there are."""
_JPEG_QUALITY = 95
_LOSSLESS_WEBP = 101


@dataclass(frozen=True)
class ImageSet:
    """Annotated images and the folder they lie in."""

    coco: CocoAnnotations
    root: Path
    """Folder that the `file_name` entries are relative to."""
    key: str
    """Where params.yaml names the set, for messages."""
    notes: tuple[str, ...] = ()
    """What reading it left out or supplied; goes into dataset.json."""

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise DataError(f"no such image folder; see {self.key}.images in params.yaml", path=self.root)


def copy_sets(sets: Mapping[str, ImageSet], folder: Path) -> SourceReport:
    """Copy train, val and, where there is one, test into `folder`.

    Raises :class:`DataError` for image files that are missing and for file names that point out of the image folder.
    Nothing is judged beyond that: see the validate stage.
    """
    turned = {split: _copy_set(one, folder, split) for split, one in sets.items()}
    notes = tuple(f"{split}: {note}" for split, one in sets.items() for note in one.notes)
    if "test" in sets:
        return SourceReport(turned_upright=turned, notes=notes)
    logger.warning("no test split is given: the val split gives the reported figures too")
    shutil.copytree(folder / "val", folder / "test")
    return SourceReport(test_is_val=True, turned_upright={**turned, "test": turned["val"]}, notes=notes)


def _copy_set(one: ImageSet, folder: Path, split: str) -> int:
    """Copy one split; returns how many images were re-encoded upright."""
    sources = locate(one.coco, one.root)
    target = images_folder(folder, split)
    target.mkdir(parents=True)
    # One copy a file, even where two records name it: validation reports that.
    jobs = {target / PurePosixPath(record["file_name"]): (path, record) for path, record in sources}
    for parent in {path.parent for path in jobs}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        turned = sum(pool.map(lambda job: _copy_image(job[1][0], job[0], job[1][1]), jobs.items()))
    write_coco(annotations_file(folder, split), one.coco)
    return turned


def locate(coco: CocoAnnotations, root: Path) -> list[tuple[Path, Record]]:
    """The file of every image record, in their order; links are followed, but not out of the folder.

    Raises :class:`DataError` for missing files and unsafe names: all are looked at before the first few are named.
    """
    inside = root.resolve()
    found: list[tuple[Path, Record]] = []
    refused: list[tuple[Record, str]] = []
    for record in coco.images:
        reason = unsafe_name(record["file_name"])
        if reason is None:
            path, reason = _existing(inside, record["file_name"])
            if path is not None:
                found.append((path, record))
        if reason is not None:
            refused.append((record, reason))
    if refused:
        listed = "; ".join(
            f"image {record['id']}: {record['file_name']!r} {reason}" for record, reason in refused[:_LISTED]
        )
        more = f"; and {len(refused) - _LISTED} more" if len(refused) > _LISTED else ""
        message = f"{len(refused)} of {len(coco.images)} images cannot be taken from {root}: {listed}{more}"
        raise DataError(message, path=coco.path)
    return found


def _existing(inside: Path, name: str) -> tuple[Path | None, str | None]:
    """The regular file behind a name, links followed but not out of the folder; otherwise why there is none."""
    try:
        path = (inside / name).resolve(strict=True)
    except FileNotFoundError:
        return None, "is missing"
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        return None, f"cannot be reached ({' '.join(str(error).split())})"
    if not path.is_relative_to(inside):
        return None, "is a link that leaves the image folder"
    if not path.is_file():
        return None, "is not a file"
    return path, None


def _copy_image(source: Path, target: Path, record: Record) -> bool:
    """Copy an image; true when it was re-encoded because of its EXIF orientation."""
    try:
        header = read_header(source)
        if header is not None and header.orientation != UPRIGHT:
            encoded = _upright(source, header, record)
            if encoded is not None:
                target.write_bytes(encoded)
                return True
        shutil.copyfile(source, target)
    except OSError as error:
        raise DataError(f"cannot be copied: {error.strerror}", path=source, record=f"image {record['id']}") from None
    return False


def _upright(source: Path, header: ImageHeader, record: Record) -> bytes | None:
    """The image in its own format without an orientation; None where it cannot be decoded (validation says so).

    Which way is up follows from the annotations: where they were drawn on the pixels as stored (the record's size is
    the stored one and not that of the image turned), the pixels stay and only the flag goes.
    """
    if header.width * header.height > MAX_PIXELS:
        return None
    size = (record["width"], record["height"])
    as_stored = header.lies_on_its_side and size == (header.width, header.height) != (header.height, header.width)
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0)
    pixels = cv2.imdecode(np.frombuffer(source.read_bytes(), dtype=np.uint8), flags)
    if pixels is None:
        return None
    options = {
        "jpeg": (".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]),
        "png": (".png", []),
        "webp": (".webp", [cv2.IMWRITE_WEBP_QUALITY, _LOSSLESS_WEBP]),
    }
    extension, settings = options[header.format]
    return cv2.imencode(extension, pixels, settings)[1].tobytes()
