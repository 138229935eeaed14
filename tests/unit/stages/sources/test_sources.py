"""Ingest from Pascal VOC and YOLO folders, and of one set divided into splits: same layout, mistakes named."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.ingest import ingest
from stages.project.params_data import Data
from tests.unit.stages.test_ingest import oriented_jpeg, picture
from yolov7.data.formats.coco import read_coco
from yolov7.data.formats.voc_write import write_voc
from yolov7.data.formats.yolo_txt import write_yolo
from yolov7.data.header import read_header
from yolov7.data.sources.lists import choose_listed
from yolov7.errors import ConfigError, DataError

RACCOON = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "raccoon"


def put(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def xml(name: str, *classes: str, size: str = "<size><width>40</width><height>30</height></size>") -> str:
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>14</ymax></bndbox>"
    objects = "".join(f"<object><name>{one}</name>{box}</object>" for one in classes)
    return f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"


@pytest.fixture
def voc(tmp_path) -> Path:
    folder = tmp_path / "voc"
    for number, labels in enumerate([("cat",), ("dog", "cat"), ("cow",), ()]):
        put(folder / f"JPEGImages/{number}.jpg", picture(40, 30, seed=number))
        put(folder / f"Annotations/{number}.xml", xml(f"{number}.jpg", *labels))
    put(folder / "ImageSets/Main/train.txt", "0\n1\n")
    put(folder / "ImageSets/Main/val.txt", "2 -1\n3  1\n")
    return folder


def voc_data(folder: Path, **more) -> Data:
    common = {"images": "JPEGImages", "annotations": "Annotations"}
    sets = {split: {**common, "listed_in": f"ImageSets/Main/{split}.txt"} for split in ("train", "val")}
    return Data.model_validate({"source": "voc", "folder": str(folder), "voc": {**sets, **more}})


def records(out: Path, split: str):
    return read_coco(out / split / "annotations.json")


def dataset(out: Path) -> dict:
    return json.loads((out / "dataset.json").read_text())


def test_voc_comes_in_with_the_same_classes_in_every_split_and_ids_of_its_own(voc, tmp_path):
    ingest(voc_data(voc), tmp_path / "out")
    train, val = records(tmp_path / "out", "train"), records(tmp_path / "out", "val")
    assert train.categories == val.categories == [{"id": i, "name": n} for i, n in enumerate(("cat", "cow", "dog"), 1)]
    assert [a["category_id"] for a in train.annotations] == [1, 3, 1]
    assert [a["id"] for a in train.annotations + val.annotations] == [1, 2, 3, 4]
    assert [i["id"] for i in train.images + val.images] == [1, 2, 3, 4]
    assert (tmp_path / "out/val/images/3.jpg").read_bytes() == (voc / "JPEGImages/3.jpg").read_bytes()
    assert dataset(tmp_path / "out")["splits"]["val"]["images_without_annotations"] == 1


def test_named_classes_keep_their_order_and_another_one_is_an_error(voc, tmp_path):
    ingest(voc_data(voc, classes=["dog", "cat", "cow"]), tmp_path / "out")
    assert dataset(tmp_path / "out")["classes"] == ["dog", "cat", "cow"]
    with pytest.raises(DataError, match=r"2\.xml: object 1: 'cow' is not one of the classes"):
        ingest(voc_data(voc, classes=["dog", "cat"]), tmp_path / "out")


def test_a_stale_file_name_gives_way_to_the_name_of_the_xml_file(voc, tmp_path):
    put(voc / "Annotations/0.xml", xml("C:\\pictures\\before-renaming.jpg", "cat"))
    put(voc / "Annotations/1.xml", xml("1", "dog"))
    ingest(voc_data(voc), tmp_path / "out")
    assert [image["file_name"] for image in records(tmp_path / "out", "train").images] == ["0.jpg", "1.jpg"]


def test_sizes_that_are_missing_come_from_the_images_and_that_is_noted(voc, tmp_path):
    put(voc / "Annotations/0.xml", xml("0.jpg", "cat", size=""))
    put(voc / "JPEGImages/0.jpg", oriented_jpeg(40, 30, 6))
    ingest(voc_data(voc), tmp_path / "out")
    image = records(tmp_path / "out", "train").images[0]
    header = read_header(tmp_path / "out/train/images/0.jpg")
    assert header is not None and (image["width"], image["height"]) == (header.width, header.height) == (30, 40)
    assert dataset(tmp_path / "out")["notes"] == [
        "train: 1 files give no image size; it was read from the image: '0.jpg'"
    ]


def test_images_without_xml_are_left_out_and_that_is_noted(voc, tmp_path):
    (voc / "Annotations/3.xml").unlink()
    data = {"source": "voc", "folder": str(voc), "voc": {"all": {"images": "JPEGImages", "annotations": "Annotations"}}}
    ingest(Data.model_validate(data), tmp_path / "out")
    assert dataset(tmp_path / "out")["notes"] == ["1 images have no XML file and were left out: '3.jpg'"]
    counts = dataset(tmp_path / "out")["splits"]
    assert [counts[split]["images"] for split in ("train", "val", "test")] == [1, 1, 1]
    assert dataset(tmp_path / "out")["made_splits"]["parameters"]["seed"] == 0


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("JPEGImages/0.jpg", None, r"1 of 2 XML files have no image here: '0\.xml \(filename 0\.jpg\)'"),
        ("Annotations/0.xml", "<annotation>", r"0\.xml: line 1: not XML"),
        ("ImageSets/Main/val.txt", "2\nnone\n", r"val\.txt: 1 names of this list have no file: 'none \(line 2\)'"),
        ("ImageSets/Main/val.txt", "\n", r"val\.txt: the list is empty"),
        ("ImageSets/Main/val.txt", None, r"val\.txt: no such file"),
    ],
)
def test_a_mistake_in_a_voc_folder_is_named(voc, tmp_path, file, content, words):
    if content is None:
        (voc / file).unlink()
    else:
        put(voc / file, content)
    with pytest.raises(DataError, match=words):
        ingest(voc_data(voc), tmp_path / "out")
    assert not (tmp_path / "out").exists()


KNOWN = {"a": "a.jpg", "sub/b": "sub/b.jpg", "c.v2": "c.v2.jpg", "with space": "with space.png"}


@pytest.mark.parametrize(
    ("name", "content", "chosen"),
    [
        ("l.txt", "a\n./images/train/sub/b.jpg\r\na.jpg\n", ["a.jpg", "sub/b.jpg"]),
        ("l.txt", "c.v2\nwith space\nwith space.png 1\na -1", ["c.v2.jpg", "with space.png", "a.jpg"]),
        ("l.txt", "D:\\data\\images\\a.jpg", ["a.jpg"]),
        ("l.csv", "width,filename\n5,a.jpg\n5,a.jpg\n5,with space.png\n", ["a.jpg", "with space.png"]),
        ("l.csv", '\ufeffFilename,x\n"sub/b.jpg",1\n', ["sub/b.jpg"]),
    ],
)
def test_lists_name_files_in_the_ways_that_occur(tmp_path, name, content, chosen):
    put(tmp_path / name, content)
    assert choose_listed(tmp_path / name, KNOWN).files == chosen


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("l.csv", "a,b\n1,2\n", "no column that names files"), ("l.csv", 'filename\n"a\0', "1 names|not CSV"),
     ("l.txt", "b\n..\n../a/..", "3 names of this list have no file"), ("l.csv", "", "no column")],
)  # fmt: skip
def test_lists_that_name_nothing_known_are_refused(tmp_path, name, content, words):
    put(tmp_path / name, content)
    with pytest.raises(DataError, match=words):
        choose_listed(tmp_path / name, KNOWN)


@pytest.fixture
def yolo(tmp_path) -> Path:
    folder = tmp_path / "yolo"
    for number, split in enumerate(("train", "val")):
        put(folder / f"images/{split}/sub/a.jpg", picture(40, 30, seed=number))
        put(folder / f"labels/{split}/sub/a.txt", "1 0.5 0.5 0.5 0.5\n0 0.25 0.2 0.75 0.2 0.75 0.6\n")
        put(folder / f"images/{split}/empty.bmp", picture(12, 10, ".bmp"))
    put(folder / "data.yaml", "names: {0: cat, 1: dog}\n")
    return folder


def yolo_data(folder: Path, names: object = "data.yaml", **more) -> Data:
    sets = {split: {"images": f"images/{split}", "labels": f"labels/{split}"} for split in ("train", "val")}
    return Data.model_validate({"source": "yolo", "folder": str(folder), "yolo": {"names": names, **sets, **more}})


def test_yolo_labels_come_in_as_boxes_and_polygons_in_pixels(yolo, tmp_path):
    ingest(yolo_data(yolo), tmp_path / "out")
    train = records(tmp_path / "out", "train")
    assert [(i["file_name"], i["width"], i["height"]) for i in train.images] == [
        ("empty.bmp", 12, 10),
        ("sub/a.jpg", 40, 30),
    ]
    assert [a["bbox"] for a in train.annotations] == [[10, 7.5, 20, 15], pytest.approx([10, 6, 20, 12])]
    assert train.annotations[1]["segmentation"] == [pytest.approx([10, 6, 30, 6, 30, 18])]
    assert records(tmp_path / "out", "val").annotations[0]["id"] == 3
    note = "1 of 2 images have no label file: taken as images without objects"
    outline = "1 outlines became the boxes around them (cat 1)"
    mixed = "1 files mix boxes and outlines; other trainers misread boxes in such files"
    expected = [f"{split}: {text}" for split in ("train", "val") for text in (note, outline, mixed)]
    assert dataset(tmp_path / "out")["notes"] == expected
    assert dataset(tmp_path / "out")["classes"] == ["cat", "dog"]


def test_shares_are_of_the_image_as_it_is_seen(yolo, tmp_path):
    put(yolo / "images/train/sub/a.jpg", oriented_jpeg(40, 30, 6))
    ingest(yolo_data(yolo, names=["cat", "dog"]), tmp_path / "out")
    train = records(tmp_path / "out", "train")
    header = read_header(tmp_path / "out/train/images/sub/a.jpg")
    assert header is not None and (header.width, header.height, header.orientation) == (30, 40, 1)
    assert (train.images[1]["width"], train.images[1]["height"]) == (30, 40)
    assert train.annotations[0]["bbox"] == [7.5, 10, 15, 20]


def test_labels_are_paired_by_name_however_the_names_sort(yolo, tmp_path):
    """With their extensions, and without, these names sort in different orders."""
    names = ["a.jpg", "a-1.bmp", "a.b.jpg", "a b.bmp", "A.jpg"]
    for number, name in enumerate(names):
        put(yolo / "images/train" / name, picture(40, 20 + number, Path(name).suffix, seed=number))
        put(yolo / "labels/train" / f"{Path(name).stem}.txt", f"{number} 0.5 0.5 0.5 0.5\n")
    ingest(yolo_data(yolo, names=list("vwxyz")), tmp_path / "out")
    train = records(tmp_path / "out", "train")
    heights = {image["id"]: image["height"] for image in train.images if "/" not in image["file_name"]}
    found = [(heights[a["image_id"]], a["category_id"]) for a in train.annotations if a["image_id"] in heights]
    assert sorted(found) == [(20 + number, 1 + number) for number in range(5)]
    put(yolo / "images/train/a.png", picture(40, 30, ".png", seed=9))
    with pytest.raises(DataError, match=r"'a\.jpg' and 'a\.png' share the labels of 'a'"):
        ingest(yolo_data(yolo, names=list("vwxyz")), tmp_path / "again")


def test_a_repeated_row_is_noted_in_dataset_json(yolo, tmp_path):
    put(yolo / "labels/train/sub/a.txt", "0 .5 .5 .5 .5\n0 .5 .5 .5 .5\n")
    ingest(yolo_data(yolo), tmp_path / "out")
    assert dataset(tmp_path / "out")["notes"][0] == (
        "train: 1 repeated label rows were left out: sub/a.txt line 2 (as line 1)"
    )


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("labels/train/sub/a.txt", "0 .5 .5 .5 9", r"a\.txt: line 1: '9' is not within 0 to 1"),
        ("labels/val/lost.txt", "", r"1 label files have no image in .*images/val: 'lost\.txt'"),
        ("images/val/empty.png", picture(9, 9, ".png"), r"'empty\.bmp' and 'empty\.png' share the labels of 'empty'"),
        ("images/val/x.jpg", b"no image", r"the size of 1 images cannot be read: 'x\.jpg'"),
        ("data.yaml", "nc: 2", "no `names`"),
        ("labels/train/classes.txt", "cat\ndog\n", None),
    ],
)
def test_a_mistake_in_a_yolo_folder_is_named(yolo, tmp_path, file, content, words):
    put(yolo / file, content)
    if words is None:
        ingest(yolo_data(yolo), tmp_path / "out")
        return
    with pytest.raises(DataError, match=words):
        ingest(yolo_data(yolo), tmp_path / "out")


def test_a_file_name_that_is_not_utf8_is_named(yolo, tmp_path):
    put(Path(str(yolo / "images/train/") + "/b\udcff.jpg"), picture(9, 9))
    with pytest.raises(DataError, match="not UTF-8; rename the file"):
        ingest(yolo_data(yolo), tmp_path / "out")


def test_a_missing_folder_is_named_with_its_key(yolo, tmp_path):
    shutil.rmtree(yolo / "labels/val")
    with pytest.raises(DataError, match=r"labels/val: no such folder; see data\.yolo\.val\.labels"):
        ingest(yolo_data(yolo), tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "voc"}, "data.voc: needed with `source: voc`"),
        (
            {"source": "yolo", "yolo": {"names": ["a"], "train": {"images": "a", "labels": "b"}}},
            "give `train` and `val`",
        ),
        ({"split": {"train": 0.9}}, "must add up to 1"),
        ({"split": {"group_pattern": "("}}, "not a regular expression"),
    ],
)
def test_parameters_that_do_not_fit_each_other_are_refused(tmp_path, values, words):
    with pytest.raises(ConfigError, match=words):
        ingest(Data.model_validate(values), tmp_path / "out")


def test_all_and_given_splits_exclude_each_other(voc, tmp_path):
    with pytest.raises(ConfigError, match="either `all`, or"):
        ingest(voc_data(voc, all={"images": "JPEGImages", "annotations": "Annotations"}), tmp_path / "out")


def test_ingested_data_is_written_as_yolo_and_voc_and_ingested_again(yolo, tmp_path):
    ingest(yolo_data(yolo), tmp_path / "out")
    for split in ("train", "val"):
        coco, images = records(tmp_path / "out", split), tmp_path / "out" / split / "images"
        write_yolo(coco, tmp_path / "as-yolo" / split, images_folder=images)
        write_voc(coco, images, tmp_path / "as-voc" / split)
    sets = {split: {"images": f"{split}/images", "labels": f"{split}/labels"} for split in ("train", "val")}
    again = {"source": "yolo", "folder": str(tmp_path / "as-yolo"), "yolo": {"names": "train/classes.txt", **sets}}
    ingest(Data.model_validate(again), tmp_path / "from-yolo")
    sets = {
        split: {"images": f"{split}/JPEGImages", "annotations": f"{split}/Annotations"} for split in ("train", "val")
    }
    again = {"source": "voc", "folder": str(tmp_path / "as-voc"), "voc": sets}
    ingest(Data.model_validate(again), tmp_path / "from-voc")
    for came in ("from-yolo", "from-voc"):
        for split in ("train", "val"):
            first, second = records(tmp_path / "out", split), records(tmp_path / came, split)
            assert second.images == first.images and second.categories == first.categories
            for one, other in zip(first.annotations, second.annotations, strict=True):
                assert other["bbox"] == pytest.approx(one["bbox"], abs=0.02)
                assert other["category_id"] == one["category_id"]
                assert ("segmentation" in other) == ("segmentation" in one)


@pytest.mark.skipif(not RACCOON.is_dir(), reason="needs the raccoon data beside the repository")
def test_the_raccoon_data_come_in_from_voc_as_from_coco(tmp_path):
    common = {"images": "images", "annotations": "annotations"}
    sets = {"train": {**common, "listed_in": "train_labels.csv"}, "val": {**common, "listed_in": "test_labels.csv"}}
    ingest(Data.model_validate({"source": "voc", "folder": str(RACCOON), "voc": sets}), tmp_path / "voc")
    counts = dataset(tmp_path / "voc")["splits"]
    assert [(counts[s]["images"], counts[s]["annotations"]) for s in ("train", "val")] == [(160, 173), (40, 44)]
    whole = {"all": {"images": "images", "annotations": "raccoon_all.json"}}
    ingest(Data.model_validate({"source": "coco", "folder": str(RACCOON), "coco": whole}), tmp_path / "coco")
    assert boxes(tmp_path / "coco", ("train", "val", "test")) == boxes(tmp_path / "voc", ("train", "val"))
    made = dataset(tmp_path / "coco")["made_splits"]
    assert sorted(made["groups"][0]["files"]) == [f"raccoon-{n}.jpg" for n in (50, 52, 74)]
    assert made["groups_of_several"] == 6 and made["images_in_groups_of_several"] == 13


def boxes(out: Path, splits: tuple[str, ...]) -> dict[str, list]:
    found: dict[str, list] = {}
    for split in splits:
        coco = records(out, split)
        names = {record["id"]: record["file_name"] for record in coco.images}
        for annotation in coco.annotations:
            found.setdefault(names[annotation["image_id"]], []).append(annotation["bbox"])
    return found


def test_bmp_headers_tell_the_size(tmp_path):
    pixels = np.zeros((7, 11, 3), np.uint8)
    put(tmp_path / "a.bmp", cv2.imencode(".bmp", pixels)[1].tobytes())
    header = read_header(tmp_path / "a.bmp")
    assert header is not None and (header.format, header.width, header.height) == ("bmp", 11, 7)
    put(tmp_path / "b.bmp", b"BM" + b"\0" * 10)
    assert read_header(tmp_path / "b.bmp") is None
