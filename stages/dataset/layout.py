"""The layout of ingested data, and its description.

``data/ingested/{dataset.json, train|val|test/{annotations.json, images/}}``
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolov7.data.columns import CocoColumns
from yolov7.data.formats.coco import Record
from yolov7.data.read_columns import read_columns
from yolov7.files import sha256_file

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SourceReport:
    """Facts about the data that the files do not show."""

    test_is_val: bool = False
    """The test split is a copy of the val split, for want of one of its own."""
    turned_upright: Mapping[str, int] | None = None
    """Images per split that were re-encoded to apply or drop an EXIF orientation."""
    notes: tuple[str, ...] = ()
    """Records that the reader left out or added, one sentence each."""
    pixel_range: Mapping[str, float | int] | None = None
    """Values that became 0 and 255 in the images of more than 8 bits a channel, and their number; None: no such image.
    """
    made_splits: Mapping[str, Any] | None = None
    """Description of the division and of the images kept together; None if the source gave the splits."""


def annotations_file(ingested: Path, split: str) -> Path:
    """The annotation file of a split."""
    return ingested / split / "annotations.json"


def images_folder(ingested: Path, split: str) -> Path:
    """The folder of a split's `file_name` entries."""
    return ingested / split / "images"


def describe(ingested: Path, source: str, report: SourceReport) -> dict[str, Any]:
    """The content of `dataset.json`: source, classes, counts per split, and a hash of everything that was written.

    `sha256` of a split covers path and bytes of its annotation file and of every image; the one at the top covers the
    splits. Neither depends on the place of the folder or the time.
    """
    turned = report.turned_upright or {}
    counts: dict[str, dict[str, Any]] = {}
    categories: list[Record] = []
    for split in SPLITS:  # one after the other: large sets need not fit together
        coco = read_columns(annotations_file(ingested, split))
        own = {"turned_upright": turned.get(split, 0), "sha256": _folder_hash(ingested / split)}
        counts[split] = _counts(coco) | own
        if split == "train":
            categories = sorted(coco.categories, key=lambda category: category["id"])
    digest = hashlib.sha256("".join(f"{split} {counts[split]['sha256']}\n" for split in SPLITS).encode())
    return {
        "source": source,
        "classes": [category["name"] for category in categories],
        "category_ids": [category["id"] for category in categories],
        "test_is_val": report.test_is_val,
        "notes": list(report.notes),
        "pixel_range": report.pixel_range,
        "made_splits": report.made_splits,
        "splits": counts,
        "sha256": digest.hexdigest(),
    }


def _counts(coco: CocoColumns) -> dict[str, Any]:
    images, annotations = coco.images, coco.annotations
    return {
        "images": len(images),
        "annotations": len(annotations),
        "crowd": int(annotations.crowd.sum()),
        "images_without_annotations": int((~np.isin(images.ids, annotations.image_ids)).sum()),
    }


def _folder_hash(folder: Path) -> str:
    """sha256 over the sorted relative paths and the content of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(sha256_file, files)
    total = hashlib.sha256()
    for path, digest in zip(files, digests, strict=True):
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()
