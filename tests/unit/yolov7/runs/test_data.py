"""Data sets of a run: the layouts that tools write, and one line for everything that is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolov7.errors import ConfigError, DataError
from yolov7.runs.data import open_data
from yolov7.runs.layouts import find_layout, parse_splits

WIDTH, HEIGHT = 60, 40
BOX = [12.0, 8.0, 24.0, 16.0]
ROW = "1 0.4 0.4 0.4 0.4\n"
"""The same box as shares of the sides: centre 24, 16."""
NAMES = "names: [cat, dog]\n"


def image(path: Path, width: int = WIDTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.as_posix()))
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def coco(path: Path, names: list[str], box=BOX, category: int = 7) -> Path:
    images = [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in enumerate(names, 1)]
    annotations = [{"id": n, "image_id": n, "category_id": category, "bbox": box} for n in range(1, len(names) + 1)]
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return put(path, json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def xml(path: Path, name: str) -> Path:
    corners = "<xmin>12</xmin><ymin>8</ymin><xmax>36</xmax><ymax>24</ymax>"
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    found = f"<object><name>dog</name><bndbox>{corners}</bndbox></object>"
    return put(path, f"<annotation><filename>{name}</filename>{size}{found}</annotation>")


def coco_of_coco(root: Path) -> Path:
    for split in ("train", "val"):
        image(root / f"{split}2017/a.jpg")
        coco(root / f"annotations/instances_{split}2017.json", ["a.jpg"])
    return root


def coco_of_roboflow(root: Path) -> Path:
    for split in ("train", "valid"):
        image(root / split / "a.jpg")
        coco(root / split / "_annotations.coco.json", ["a.jpg"])
    return root


def coco_of_cvat(root: Path) -> Path:
    for split in ("train", "val"):
        image(root / "images" / split / "a.jpg")
        coco(root / f"annotations/instances_{split}.json", ["a.jpg"])
    return root


def coco_of_fiftyone(root: Path) -> Path:
    for split in ("train", "validation"):
        image(root / split / "data/a.jpg")
        coco(root / split / "labels.json", ["a.jpg"])
    return root


def coco_of_this_project(root: Path) -> Path:
    for split in ("train", "val"):
        image(root / split / "images/a.jpg")
        coco(root / split / "annotations.json", ["a.jpg"])
    return root


def yolo_of_roboflow(root: Path) -> Path:
    for split in ("train", "valid"):
        image(root / split / "images/a.jpg")
        put(root / split / "labels/a.txt", ROW)
    return put(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")


def yolo_files(root: Path) -> None:
    for split in ("train", "val"):
        image(root / "images" / split / "a.jpg")
        put(root / "labels" / split / "a.txt", ROW)


def yolo_folder(root: Path) -> Path:
    yolo_files(root)
    put(root / "data.yaml", "train: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    return root


def yolo_with_absolute_path(root: Path) -> Path:
    yolo_files(root / "elsewhere")
    text = f"path: {(root / 'elsewhere').resolve()}\ntrain: images/train\nval: images/val\n"
    return put(root / "configs/mine.yaml", text + NAMES)


def yolo_with_relative_path(root: Path) -> Path:
    yolo_files(root / "datasets/mine")
    return put(root / "configs/mine.yaml", f"path: ../datasets/mine\ntrain: images/train\nval: images/val\n{NAMES}")


def yolo_with_lists_of_folders(root: Path) -> Path:
    yolo_files(root)
    image(root / "more/images/b.jpg")
    return put(root / "data.yaml", f"train: [images/train, more/images]\nval: [images/val]\n{NAMES}")


def yolo_with_text_files(root: Path) -> Path:
    yolo_files(root / "pictures")
    for split in ("train", "val"):
        put(root / f"{split}.txt", f"{(root / 'pictures/images' / split / 'a.jpg').resolve()}\n")
    return put(root / "data.yaml", f"train: train.txt\nval: val.txt\n{NAMES}")


def yolo_with_distant_text_files(root: Path) -> Path:
    yolo_files(root / "pictures")
    for split in ("train", "val"):
        put(root / f"set/{split}.txt", f"{(root / 'pictures/images' / split / 'a.jpg').resolve()}\n")
    return put(root / "set/data.yaml", f"train: train.txt\nval: val.txt\n{NAMES}")


def voc(root: Path) -> Path:
    for split, name in (("train", "a"), ("val", "b")):
        image(root / f"JPEGImages/{name}.jpg")
        xml(root / f"Annotations/{name}.xml", f"{name}.jpg")
        put(root / f"ImageSets/Main/{split}.txt", f"{name}\n")
    return root


def voc_of_roboflow(root: Path) -> Path:
    for split in ("train", "valid"):
        image(root / split / "a.jpg")
        xml(root / split / "a.xml", "a.jpg")
    return root


LAYOUTS = (
    coco_of_coco, coco_of_roboflow, coco_of_cvat, coco_of_fiftyone, coco_of_this_project, yolo_of_roboflow, yolo_folder,
    yolo_with_absolute_path, yolo_with_relative_path, yolo_with_lists_of_folders, yolo_with_text_files,
    yolo_with_distant_text_files, voc, voc_of_roboflow,
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_box(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = open_data(layout(tmp_path / "set"), tmp_path / "index", splits=("train", "val"))
    for split in ("train", "val"):
        index = opened.indices[split]
        assert index.boxes(0).tolist() == [[12.0, 8.0, 36.0, 24.0]]
        assert index.class_names[index.labels(0)[0]] == "dog"
        assert index.image_path(0).is_file() and index.size(0) == (HEIGHT, WIDTH)


def test_the_reader_looks_where_the_images_are_and_not_around_them(tmp_path):
    """A search through the whole disk for a name that is missing would take minutes."""
    assert find_layout(yolo_with_absolute_path(tmp_path)).base == tmp_path / "elsewhere"
    assert find_layout(yolo_with_distant_text_files(tmp_path / "lists")).base == tmp_path / "lists"
    assert find_layout(yolo_folder(tmp_path / "own")).base == tmp_path / "own"


def test_a_mapping_names_jsons_and_images(tmp_path):
    coco_of_coco(tmp_path)
    names = [
        f"{split}={tmp_path}/annotations/instances_{split}2017.json:{tmp_path}/{split}2017"
        for split in ("train", "val")
    ]
    data = parse_splits(names)
    opened = open_data(data, tmp_path / "index", splits=("train", "val"))
    assert opened.indices["val"].boxes(0).tolist() == [[12.0, 8.0, 36.0, 24.0]]
    assert parse_splits([str(tmp_path)]) == str(tmp_path)


def test_images_that_two_splits_share_are_counted(tmp_path, caplog):
    image(tmp_path / "images/a.jpg")
    image(tmp_path / "images/b.jpg")
    both = {"images": str(tmp_path / "images"), "annotations": str(coco(tmp_path / "both.json", ["a.jpg", "b.jpg"]))}
    one = {"images": str(tmp_path / "images"), "annotations": str(coco(tmp_path / "one.json", ["b.jpg"]))}
    open_data({"train": both, "val": one}, tmp_path / "index", splits=("train", "val"))
    assert [one.message for one in caplog.records if "flatter" in one.message] == [
        f"images of val that are in train, too: 1 (such as {tmp_path / 'images/b.jpg'}); figures on them flatter"
    ]


def test_another_label_is_another_data_set(tmp_path):
    root = coco_of_coco(tmp_path / "set")
    first = open_data(root, tmp_path / "index", splits=("train", "val")).sha256
    assert open_data(root, tmp_path / "other", splits=("train", "val")).sha256 == first
    coco(root / "annotations/instances_train2017.json", ["a.jpg"], box=[12.0, 8.0, 24.0, 17.0])
    assert open_data(root, tmp_path / "index", splits=("train", "val")).sha256 != first


def one_line(call) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([12.0, 8.0, 0.0, 16.0], "has no width"),
        ([12.0, 8.0, 24.0, -3.0], "has no height"),
        ([50.0, 8.0, 24.0, 16.0], "reaches 14 pixels beyond the 60 x 40 image"),
        ([float("nan"), 8.0, 24.0, 16.0], "is not finite"),
    ],
)
def test_a_bad_box_is_refused_with_file_and_record_or_left_out(box, words, tmp_path, caplog):
    root = coco_of_coco(tmp_path / "set")
    image(root / "train2017/b.jpg")
    path = coco(root / "annotations/instances_train2017.json", ["a.jpg", "b.jpg"])
    document = json.loads(path.read_text())
    document["annotations"][1]["bbox"] = box
    path.write_text(json.dumps(document))
    text = one_line(lambda: open_data(root, tmp_path / "index", splits=("train", "val")))
    assert words in text and "instances_train2017.json: annotation 2, image 'b.jpg'" in text
    assert "--drop-bad-boxes" in text
    opened = open_data(root, tmp_path / "index", splits=("train", "val"), drop_bad_boxes=True)
    assert opened.indices["train"].num_boxes == 1
    assert any("1 bad boxes were left out" in one.message and words in one.message for one in caplog.records)


def test_unknown_references_are_refused(tmp_path):
    root = coco_of_coco(tmp_path / "set")
    coco(root / "annotations/instances_val2017.json", ["a.jpg"], category=99)
    assert "category_id 99 is not listed" in one_line(
        lambda: open_data(root, tmp_path / "index", splits=("train", "val"))
    )


def test_images_that_do_not_fit_are_refused_with_record_and_file(tmp_path):
    root = coco_of_coco(tmp_path / "set")
    image(root / "val2017/a.jpg", width=80)
    text = one_line(lambda: open_data(root, tmp_path / "index", splits=("train", "val")))
    assert "image 1" in text and "val2017/a.jpg" in text and "is 80 x 40, annotated as 60 x 40" in text
    put(root / "val2017/a.jpg", "no image")
    assert "is damaged, or not an image" in one_line(
        lambda: open_data(root, tmp_path / "index", splits=("train", "val"))
    )
    deep = np.full((HEIGHT, WIDTH), 900, np.uint16)
    (root / "val2017/a.jpg").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    assert "16 bits a channel" in one_line(lambda: open_data(root, tmp_path / "index", splits=("train", "val")))


def test_a_yolo_row_with_an_unknown_class_names_file_and_line(tmp_path):
    data = yolo_of_roboflow(tmp_path / "set")
    put(tmp_path / "set/train/labels/a.txt", f"{ROW}2 0.5 0.5 0.1 0.1\n")
    text = one_line(lambda: open_data(data, tmp_path / "index", splits=("train", "val")))
    assert "train/labels/a.txt" in text and "line 2" in text


@pytest.mark.parametrize("layout", [coco_of_coco, yolo_of_roboflow, voc], ids=lambda layout: layout.__name__)
def test_a_missing_split_is_told_with_what_there_is(layout, tmp_path):
    data = layout(tmp_path / "set")
    text = one_line(lambda: open_data(data, tmp_path / "index", splits=("test",)))
    assert "no split `test` (there are: train, val)" in text


def test_without_validation_images_the_message_says_what_to_do(tmp_path):
    root = coco_of_coco(tmp_path / "set")
    shutil.rmtree(root / "val2017")
    (root / "annotations/instances_val2017.json").unlink()
    text = one_line(lambda: open_data(root, tmp_path / "index", splits=("train", "val")))
    assert "no split `val`" in text and "divide the training images" in text


def test_splits_of_other_classes_are_refused(tmp_path):
    root = coco_of_coco(tmp_path / "set")
    path = root / "annotations/instances_val2017.json"
    document = json.loads(path.read_text())
    document["categories"].append({"id": 9, "name": "fox"})
    path.write_text(json.dumps(document))
    assert "'fox'" in one_line(lambda: open_data(root, tmp_path / "index", splits=("train", "val")))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", "no data set here"),
        ("a.json", "name the splits"),
        ("a.jpg", "not a data set"),
        ({"trian": {}}, "did you mean 'train'"),
        ({"train": {"images": "x"}}, "`annotations`"),
    ],
)
def test_what_is_no_data_set_is_told(data, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    put(Path("a.json"), "{}")
    put(Path("a.jpg"), "")
    assert words in one_line(lambda: find_layout(data))


@pytest.mark.parametrize("texts", [["train=x", "val=y:z"], ["a", "b"], ["val=a:b", "val=a:b"], ["val=:b"]])
def test_other_forms_of_data_are_refused(texts):
    assert "--data: " in one_line(lambda: parse_splits(texts))


def test_options_go_to_the_reader_and_unknown_ones_are_named(tmp_path):
    root = coco_of_coco(tmp_path / "set")
    for split in ("train", "val"):
        coco(root / f"annotations/instances_{split}2017.json", ["a.jpg"], box=[12.0, 8.0, 36.0, 24.0])
    options = {"boxes": "corners"}
    opened = open_data(root, tmp_path / "index", splits=("train", "val"), options=options)
    assert opened.indices["train"].boxes(0).tolist() == [[12.0, 8.0, 36.0, 24.0]]
    text = one_line(lambda: open_data(root, tmp_path / "index", splits=("train",), options={"boxs": "corners"}))
    assert "did you mean 'boxes'" in text
    assert "the data set itself" in one_line(
        lambda: open_data(root, tmp_path / "index", splits=("train",), options={"val": {}})
    )
