"""Bring the data into the pipeline's layout, whatever its source.

Writes `data/ingested/`: `dataset.json`, and for each of train, val and test an `annotations.json` in COCO format with
its `images/`. The folder is built beside its place and swapped in when it is complete.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.dataset.layout import SPLITS, SourceReport, describe
from stages.project.command import run_stage
from stages.project.folders import replace_folder
from stages.project.params import Params
from stages.project.params_data import Data, check_data
from stages.project.workspace import INGESTED
from stages.sources.remote import DOWNLOADS, fetched
from yolov7.errors import ConfigError
from yolov7.files import write_json

if TYPE_CHECKING:
    from stages.dataset.image_set import ImageSet

logger = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """The stage: `data` of params.yaml in, `data/ingested` out."""
    ingest(params.data, INGESTED)


def ingest(data: Data, target: Path, downloads: Path = DOWNLOADS) -> None:
    """Write the data set that `data` names into `target`; on any failure `target` stays as it was.

    What has to be fetched first goes to `downloads` and stays there after a failure, so that the next call goes on.
    """
    check_data(data, where="data")
    with replace_folder(target) as folder, fetched(data, downloads) as remote:
        if remote is None:
            report = _read_source(data, folder)
        else:
            report = _read_source(remote.data, folder, disposable=remote.disposable)
        for note in report.notes:
            logger.warning("%s", note)
        document = describe(folder, data.source, report)
        if remote is not None:
            document["origin"] = remote.origin
        write_json(folder / "dataset.json", document)
    counts = ", ".join(
        f"{split} {document['splits'][split]['images']} images with {document['splits'][split]['annotations']} boxes"
        for split in SPLITS
    )
    logger.info("%s: %s; %d classes", data.source, counts, len(document["classes"]))


def _read_source(data: Data, folder: Path, *, disposable: bool = False) -> SourceReport:
    """Each source writes the three splits into `folder`; `disposable`: see :class:`ImageSet`."""
    if data.source == "digits":
        from stages.sources.digits import make_digits

        make_digits(data.digits, folder)
        return SourceReport()
    from stages.dataset.image_set import copy_sets
    from stages.dataset.splits import make_splits

    sets = {name: replace(one, disposable=disposable) for name, one in _read_sets(data).items()}
    if "all" not in sets:
        return copy_sets(sets, folder)
    whole = sets["all"]
    parts, made = make_splits(whole, data.split)
    return replace(copy_sets(parts, folder), made_splits=made, notes=whole.notes)


def _read_sets(data: Data) -> dict[str, ImageSet]:
    """The annotated images of a source, whatever its format: train, val and perhaps test, or `all`."""
    base = Path(data.folder)
    if data.coco is not None and data.source == "coco":
        from stages.sources.coco import read_coco_sets

        return read_coco_sets(data.coco, base)
    if data.voc is not None and data.source == "voc":
        from stages.sources.voc import read_voc_sets

        return read_voc_sets(data.voc, base)
    if data.yolo is not None and data.source == "yolo":
        from stages.sources.yolo import read_yolo_sets

        return read_yolo_sets(data.yolo, base)
    raise ConfigError(f"data.{data.source}: needed with `source: {data.source}`")


if __name__ == "__main__":
    run_stage(main)
