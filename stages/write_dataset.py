"""Write the ingested data as COCO, YOLO or Pascal VOC, for other programs.

Not a stage of the pipeline: run `python -m stages.write_dataset --format yolo --out FOLDER` when needed.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from stages.dataset.layout import SPLITS, annotations_file, images_folder
from stages.project.command import run_stage
from stages.project.params import Params
from stages.project.workspace import INGESTED, read_json
from yolov7.data.formats.coco import CocoAnnotations, classes_of, read_coco, write_coco
from yolov7.data.formats.label_files import fresh_folder
from yolov7.data.formats.voc_write import write_voc
from yolov7.data.formats.yolo_txt import write_yolo

logger = logging.getLogger(__name__)

FORMATS = ("coco", "yolo", "voc")


def main(params: Params, args: argparse.Namespace) -> None:
    """`data/ingested` in, a folder of another format out."""
    write_dataset(INGESTED, args.format, args.out)


def write_dataset(ingested: Path, kind: str, out: Path) -> None:
    """Write every split of `ingested` into a folder of its own below `out`, with its images.

    `coco`: `SPLIT/annotations.json` and `SPLIT/images`, with all fields of all records. `yolo`: `SPLIT/labels`,
    `SPLIT/images`, and a `data.yaml` that names classes and folders. `voc`: `SPLIT/Annotations`, `SPLIT/JPEGImages`
    and `SPLIT/ImageSets/Main/SPLIT.txt`. A test split that is a copy of the val split is left out.

    Raises :class:`yolov7.errors.DataError` if nothing was ingested, if `out` is not empty, and for content that the
    format cannot hold (see the writers); `out` is then not created.
    """
    document = read_json(ingested / "dataset.json", "dvc repro ingest")
    splits = [split for split in SPLITS if split != "test" or not document.get("test_is_val")]
    with fresh_folder(out) as folder:
        for split in splits:
            coco = read_coco(annotations_file(ingested, split))
            count = _write(coco, images_folder(ingested, split), folder / split, kind, split)
            logger.info("%s: %d images, %d objects", split, len(coco.images), count)
        if kind == "yolo":
            names = classes_of(read_coco(annotations_file(ingested, "train")))[0]
            (folder / "data.yaml").write_text(_data_yaml(splits, names), encoding="utf-8")
    logger.info("written as %s: %s", kind, out)


def _data_yaml(splits: Sequence[str], names: Sequence[str]) -> str:
    """Classes and folders. The names are in quotes: versions of YAML differ in which words are not texts."""
    lines = [f"{split}: {split}/images" for split in splits]
    lines += [f"nc: {len(names)}", "names:"]
    lines += [f"  {number}: {_quoted(name)}" for number, name in enumerate(names)]
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    return yaml.safe_dump(name, default_style='"', allow_unicode=True, width=10**6).strip()


def _write(coco: CocoAnnotations, images: Path, folder: Path, kind: str, split: str) -> int:
    """One split; returns the number of objects written."""
    if kind == "yolo":
        return write_yolo(coco, folder, images_folder=images)
    if kind == "voc":
        return write_voc(coco, images, folder, image_set=split)
    write_coco(folder / "annotations.json", coco)
    shutil.copytree(images, folder / "images")
    return len(coco.annotations)


if __name__ == "__main__":
    run_stage(
        main,
        options=[
            ("--format", {"choices": FORMATS, "required": True, "help": "format to write"}),
            ("--out", {"type": Path, "required": True, "help": "a new or empty folder"}),
        ],
    )
