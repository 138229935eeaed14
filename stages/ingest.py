"""Bring the data into the pipeline's layout, whatever its source.

Writes `data/ingested/`: `dataset.json`, and for each of train, val and test an `annotations.json` in COCO format with
its `images/`. The folder is built next to its place and swapped in when it is complete.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from stages.dataset.layout import SPLITS, describe
from stages.project.command import run_stage
from stages.project.params import Params
from stages.project.params_data import Data, check_data
from stages.project.workspace import INGESTED
from stages.sources.read import fetched, write_source
from yolov7.files import write_json
from yolov7.folders import replace_folder

logger = logging.getLogger(__name__)

DOWNLOADS = Path(".state/downloads")


def main(params: Params, args: argparse.Namespace) -> None:
    """The stage: `data` of params.yaml in, `data/ingested` out."""
    ingest(params.data, INGESTED)


def ingest(data: Data, target: Path, downloads: Path = DOWNLOADS) -> None:
    """Write the data set that `data` names into `target`; on any failure `target` stays as it was.

    Downloads go to `downloads` and stay there after a failure: the next call resumes them.
    """
    check_data(data, where="data")
    with replace_folder(target) as folder, fetched(data, downloads) as found:
        report = write_source(found, folder)
        for note in report.notes:
            logger.warning("%s", note)
        document = describe(folder, data.source, report)
        if found.origin is not None:
            document["origin"] = found.origin
        write_json(folder / "dataset.json", document)
    counts = ", ".join(
        f"{split} {document['splits'][split]['images']} images with {document['splits'][split]['annotations']} boxes"
        for split in SPLITS
    )
    logger.info("%s: %s; %d classes", data.source, counts, len(document["classes"]))


if __name__ == "__main__":
    run_stage(main)
