"""Bring the data into the pipeline's layout, whatever its source.

Writes `data/ingested/`: `dataset.json`, and for each of train, val and test an `annotations.json` in COCO format with
its `images/`. The folder is built beside its place and swapped in when it is complete.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from stages.command import run_stage
from stages.folders import replace_folder
from stages.ingested import SPLITS, SourceReport, describe
from stages.params import Data, Params
from stages.provenance import INGESTED
from yolov7.errors import ConfigError
from yolov7.files import write_json

logger = logging.getLogger(__name__)


def main(params: Params, args: argparse.Namespace) -> None:
    """The stage: `data` of params.yaml in, `data/ingested` out."""
    ingest(params.data, INGESTED)


def ingest(data: Data, target: Path) -> None:
    """Write the data set that `data` names into `target`; on any failure `target` stays as it was."""
    with replace_folder(target) as folder:
        report = _read_source(data, folder)
        document = describe(folder, data.source, report)
        write_json(folder / "dataset.json", document)
    counts = ", ".join(
        f"{split} {document['splits'][split]['images']} images with {document['splits'][split]['annotations']} boxes"
        for split in SPLITS
    )
    logger.info("%s: %s; %d classes", data.source, counts, len(document["classes"]))


def _read_source(data: Data, folder: Path) -> SourceReport:
    """Each source writes the three splits into `folder`."""
    if data.source == "digits":
        from stages.digits import make_digits

        make_digits(data.digits, folder)
        return SourceReport()
    if data.coco is None:
        raise ConfigError("data.coco: needed with `source: coco`; give images and annotations per split")
    from stages.coco_folder import copy_coco

    return copy_coco(data.coco, Path(data.folder), folder)


if __name__ == "__main__":
    run_stage(main)
