"""Output folders that hold something else: refused, with every file left as it was."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import yolov7
from yolov7.errors import ConfigError, DataError, TrainingError
from yolov7.runs.data import open_data


def foreign(folder: Path, name: str) -> Path:
    """A file of the user's."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    return path


def yolo_set(folder: Path) -> Path:
    """An image in each split, with a box."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        cv2.imwrite(str(folder / "images" / split / "1.png"), np.zeros((32, 32, 3), np.uint8))
        (folder / "labels" / split / "1.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    return folder


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    "name", ["data/train/1.png", "pictures/1.png", "state/1", "state-first/1", "best.safetensors", "metrics.json"]
)
def test_a_training_leaves_the_folder_of_something_else_alone(name, resume, tmp_path):
    path = foreign(tmp_path, name)
    for _ in range(2):  # the first refusal must not make the folder look like a run's
        with pytest.raises(TrainingError, match=r"not the folder of a run, and holds .*; name another folder"):
            yolov7.train_detector("yolov7-tiny", data="nowhere", out=tmp_path, device="cpu", resume=resume)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_not_the_folder_of_a_run(tmp_path):
    path = foreign(tmp_path, "run")
    with pytest.raises(TrainingError, match="a file; name a folder"):
        yolov7.train_detector("yolov7-tiny", data="nowhere", out=path, device="cpu")


def test_a_training_into_a_folder_with_other_names_is_not_refused(tmp_path):
    foreign(tmp_path, "notes/1.txt")
    for _ in range(2):
        with pytest.raises(DataError, match="nowhere"):
            yolov7.train_detector("yolov7-tiny", data="nowhere", out=tmp_path, device="cpu")


def test_an_index_replaces_an_index_alone(tmp_path):
    data = yolo_set(tmp_path / "mine")
    path = foreign(tmp_path / "out", "val/1.png")
    with pytest.raises(DataError, match=r"out/val: not an index, which would replace it"):
        open_data(data, tmp_path / "out", splits=("train", "val"))
    assert path.read_text() == "mine" and not (tmp_path / "out/train").exists()
    for _ in range(2):
        assert len(open_data(data, tmp_path / "index", splits=("train", "val")).indices["val"]) == 1


@pytest.mark.parametrize("name", ["detections/1.png", "metrics.json", "report.html"])
def test_an_evaluation_leaves_the_folder_of_something_else_alone(name, tmp_path):
    path = foreign(tmp_path, name)
    with pytest.raises(ConfigError, match="not of an evaluation; name another folder"):
        yolov7.evaluate_model("none.onnx", data="nowhere", out=tmp_path)
    assert path.read_text() == "mine"


def test_an_evaluation_does_not_go_between_the_files_of_a_training(tmp_path):
    foreign(tmp_path, "run.json")
    with pytest.raises(ConfigError, match=r"the folder of a training; write into one of its own, such as .*evaluation"):
        yolov7.evaluate_model("none.onnx", data="nowhere", out=tmp_path)


def test_an_export_leaves_the_folder_of_something_else_alone(tmp_path):
    path = foreign(tmp_path, "optional/1.txt")
    with pytest.raises(ConfigError, match="holds `optional`, not of an export"):
        yolov7.export_weights("none.safetensors", out=tmp_path)
    assert path.read_text() == "mine"


def test_a_set_without_boxes_says_what_it_lacks(tmp_path):
    data = yolo_set(tmp_path / "mine")
    (data / "labels/train/1.txt").unlink()
    with pytest.raises(DataError, match=r"no boxes in 1 images .*1 of 1 images have no label file"):
        open_data(data, tmp_path / "index", splits=("train", "val"))
