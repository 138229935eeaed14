"""Every value of `data.source`: how its data set is fetched, if it lies elsewhere, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.dataset.copy_sets import copy_sets
from stages.dataset.layout import SourceReport
from stages.dataset.splits import make_splits
from stages.project.params_data import Data, required
from stages.sources.digits import make_digits
from stages.sources.remote import Fetched, fetch_archive, fetch_coco2017, fetch_prefix
from yolov7.data.depth import PixelRange
from yolov7.data.sources.class_names import with_plain_names
from yolov7.data.sources.coco import read_coco_sets
from yolov7.data.sources.image_set import ImageSet
from yolov7.data.sources.voc import read_voc_sets
from yolov7.data.sources.yolo import read_yolo_sets

FETCHERS: Mapping[str, Callable[[Data, Path], AbstractContextManager[Fetched]]] = {
    "http": fetch_archive,
    "s3": fetch_prefix,
    "coco2017": fetch_coco2017,
}
"""Sources on other machines: each yields `data` with a local folder as its source."""

READERS: Mapping[str, Callable[[Any, Path], dict[str, ImageSet]]] = {
    "coco": read_coco_sets,
    "voc": read_voc_sets,
    "yolo": read_yolo_sets,
}
"""Formats of folders: each takes its group of `data` and the folder, and returns train, val (and test), or `all`."""

MAKERS: Mapping[str, Callable[[Any, Path], None]] = {"digits": make_digits}
"""Data sets that are made: each takes its group of `data` and writes the three splits."""


@contextmanager
def fetched(data: Data, downloads: Path) -> Iterator[Fetched]:
    """The data set on this machine; downloads go to `downloads` and stay there after a failure.

    On a clean exit, unpacked files are removed; the archives they came from, and mirrors of buckets, are kept.
    Raises :class:`DataError` for everything that goes wrong on the way (`stages.sources.http`, `archive`, `s3`).
    """
    if data.source not in FETCHERS:
        yield Fetched(data, origin=None, disposable=False)
        return
    with FETCHERS[data.source](data, downloads) as found:
        yield found


def write_source(found: Fetched, folder: Path) -> SourceReport:
    """Write the splits of a data set on this machine into `folder`, in the pipeline's layout."""
    data = found.data
    parameters = required(data, data.source)
    if data.source in MAKERS:
        MAKERS[data.source](parameters, folder)
        return SourceReport()
    read = with_plain_names(READERS[data.source](parameters, Path(data.folder)))
    sets = {name: replace(images, disposable=found.disposable) for name, images in read.items()}
    pixel_range = None if data.pixel_range is None else PixelRange(*data.pixel_range)
    if "all" not in sets:
        return copy_sets(sets, folder, pixel_range=pixel_range)
    whole = sets["all"]
    parts, made = make_splits(whole, data.split)
    return replace(copy_sets(parts, folder, whole=whole, pixel_range=pixel_range), made_splits=made)
