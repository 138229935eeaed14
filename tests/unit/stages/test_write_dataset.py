"""Ingested data written back as COCO, YOLO and VOC: read in again it is the same, and nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stages.ingest import ingest
from stages.project.params_data import Data
from stages.write_dataset import FORMATS, write_dataset
from tests.unit.stages.test_ingest import image, picture, source_of, write_source
from yolov7.data.formats.coco import read_coco
from yolov7.errors import DataError


@pytest.fixture
def ingested(tmp_path) -> Path:
    """Three splits with ids of their own, crowds and polygons, classes with gaps between their ids."""
    categories = [{"id": 3, "name": "cat"}, {"id": 44, "name": "traffic light"}]
    for number, split in enumerate(("train", "val", "test")):
        images = [image(10 * number + n, f"sub/{split}-{n}.jpg", license=1) for n in range(2)]
        annotations = [
            {
                "id": 70 + n,
                "image_id": images[0]["id"],
                "category_id": (3, 44)[n % 2],
                "bbox": [1.25 + n, 2.5, 10.5, 12.75],
            }
            for n in range(3)
        ]
        annotations[1] |= {"segmentation": [[2.25, 2.5, 12.75, 2.5, 12.75, 15.25, 2.25, 15.25]], "iscrowd": 0}
        files = {one["file_name"]: picture(40, 30, seed=number) for one in images}
        write_source(tmp_path / "source" / split, images, files, annotations=annotations, categories=categories)
    ingest(source_of(tmp_path / "source"), tmp_path / "ingested")
    return tmp_path / "ingested"


def data_of(kind: str, folder: Path, splits: tuple[str, ...]) -> Data:
    parts = {
        "coco": ("images", "annotations", "annotations.json"),
        "yolo": ("images", "labels", "labels"),
        "voc": ("JPEGImages", "annotations", "Annotations"),
    }
    images, key, second = parts[kind]
    sets = {split: {"images": f"{split}/{images}", key: f"{split}/{second}"} for split in splits}
    names = {"names": "data.yaml"} if kind == "yolo" else {}
    return Data.model_validate({"source": kind, "folder": str(folder), kind: {**sets, **names}})


@pytest.mark.parametrize("kind", FORMATS)
def test_written_data_is_ingested_again_with_every_box_within_half_a_pixel(ingested, tmp_path, kind):
    write_dataset(ingested, kind, tmp_path / "written")
    ingest(data_of(kind, tmp_path / "written", ("train", "val", "test")), tmp_path / "again")
    for split in ("train", "val", "test"):
        first, second = (read_coco(folder / split / "annotations.json") for folder in (ingested, tmp_path / "again"))
        names = [{one["id"]: one["name"] for one in coco.categories} for coco in (first, second)]
        assert [one["file_name"] for one in second.images] == [one["file_name"] for one in first.images]
        for one, other in zip(first.annotations, second.annotations, strict=True):
            assert other["bbox"] == pytest.approx(one["bbox"], abs=0.5)
            assert names[1][other["category_id"]] == names[0][one["category_id"]]
            assert ("segmentation" in other) == ("segmentation" in one)
        for record in first.images:
            before = ingested / split / "images" / record["file_name"]
            assert (tmp_path / "again" / split / "images" / record["file_name"]).read_bytes() == before.read_bytes()
    if kind == "coco":
        assert (second.annotations, second.images, second.categories) == (
            first.annotations,
            first.images,
            first.categories,
        )


def test_yolo_comes_with_a_file_that_names_classes_and_folders(ingested, tmp_path):
    write_dataset(ingested, "yolo", tmp_path / "written")
    listed = yaml.safe_load((tmp_path / "written/data.yaml").read_text())
    splits = {split: f"{split}/images" for split in ("train", "val", "test")}
    assert listed == {**splits, "nc": 2, "names": {0: "cat", 1: "traffic light"}}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_test_split_that_is_val_again_is_left_out(tmp_path, kind):
    for number, split in enumerate(("train", "val")):
        write_source(tmp_path / "source" / split, [image(number, "a.jpg")], {"a.jpg": picture(40, 30)})
    ingest(source_of(tmp_path / "source", ("train", "val")), tmp_path / "ingested")
    write_dataset(tmp_path / "ingested", kind, tmp_path / "written")
    assert {path.name for path in (tmp_path / "written").iterdir() if path.is_dir()} == {"train", "val"}


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_overwritten_and_nothing_half_is_left(ingested, tmp_path, kind):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        write_dataset(ingested, kind, tmp_path / "full")
    coco = json.loads((ingested / "val/annotations.json").read_text())
    coco["annotations"][0]["bbox"] = "wide"
    (ingested / "val/annotations.json").write_text(json.dumps(coco))
    with pytest.raises(DataError, match="field `bbox`"):
        write_dataset(ingested, kind, tmp_path / "written")
    assert not (tmp_path / "written").exists() and [one.name for one in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_without_ingested_data_the_command_to_make_them_is_named(tmp_path):
    with pytest.raises(DataError, match="run `dvc repro ingest` first"):
        write_dataset(tmp_path / "ingested", "coco", tmp_path / "written")
