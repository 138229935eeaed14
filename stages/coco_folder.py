"""The source `coco`: an image folder and an annotation json per split, brought into the pipeline's layout.

Records are kept as they are: ids, licences, crowd flags, polygons, and whatever else they hold. Images keep their
bytes, except those with an EXIF orientation: they are stored upright, so that nothing after this stage has to ask.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from stages.image_header import MAX_PIXELS, UPRIGHT, ImageHeader, read_header
from stages.ingested import SourceReport, annotations_file, images_folder
from stages.params import Coco, CocoSplit
from yolov7.data.coco import CocoAnnotations, Record, read_coco, write_coco
from yolov7.errors import DataError

logger = logging.getLogger(__name__)

_LISTED = 5
"""Missing or refused files a message names; it always tells how many there are."""
_JPEG_QUALITY = 95
_LOSSLESS_WEBP = 101


def copy_coco(parameters: Coco, base: Path, folder: Path) -> SourceReport:
    """Copy the splits of a COCO-format data set into `folder`; paths in `parameters` are relative to `base`.

    Raises :class:`DataError` for an annotation file that is not what it should be, for image files that are missing,
    and for file names that point out of the image folder. Nothing is judged beyond that: see the validate stage.
    """
    turned = {
        "train": _copy_split(parameters.train, base, folder, "train"),
        "val": _copy_split(parameters.val, base, folder, "val"),
    }
    if parameters.test is not None:
        turned["test"] = _copy_split(parameters.test, base, folder, "test")
        return SourceReport(turned_upright=turned)
    logger.warning("no test split is given: the val split gives the reported figures too")
    shutil.copytree(folder / "val", folder / "test")
    return SourceReport(test_is_val=True, turned_upright={**turned, "test": turned["val"]})


def _copy_split(parameters: CocoSplit, base: Path, folder: Path, split: str) -> int:
    """Copy one split; returns how many images were re-encoded upright."""
    coco = read_coco(base / parameters.annotations)
    root = base / parameters.images
    if not root.is_dir():
        raise DataError(f"no such image folder; see data.coco.{split}.images in params.yaml", path=root)
    sources = _locate(coco, root)
    target = images_folder(folder, split)
    target.mkdir(parents=True)
    # One copy a file, even where two records name it: validation reports that.
    jobs = {target / PurePosixPath(record["file_name"]): (path, record) for path, record in sources}
    for parent in {path.parent for path in jobs}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        turned = sum(pool.map(lambda job: _copy_image(job[1][0], job[0], job[1][1]), jobs.items()))
    write_coco(annotations_file(folder, split), coco)
    return turned


def _locate(coco: CocoAnnotations, root: Path) -> list[tuple[Path, Record]]:
    """The file of every image record. All records are looked at before the first few bad ones are reported."""
    inside = root.resolve()
    found: list[tuple[Path, Record]] = []
    refused: list[tuple[Record, str]] = []
    for record in coco.images:
        reason = _unsafe(record["file_name"])
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


def _unsafe(name: str) -> str | None:
    """Why a file name is refused before any file is touched."""
    if "\\" in name or re.match(r"[A-Za-z]:", name):
        return "is a Windows path; write it relative to the image folder, with forward slashes"
    path = PurePosixPath(name)
    if path.is_absolute():
        return "is an absolute path; write it relative to the image folder"
    if ".." in path.parts:
        return "leaves the image folder by `..`"
    if not path.parts:
        return "names no file"
    return None


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
