"""The images of a folder source are told by their content; what is not read is named."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.ingest import ingest
from tests.unit.stages.sources.test_sources import dataset, put, records, voc_data, xml, yolo_data
from tests.unit.stages.test_ingest import picture
from yolov7.data.sources.image_folder import images_below, stem_of
from yolov7.errors import DataError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
SIZE = (40, 30)


def pillow(kind: str, **settings) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(*SIZE, ".png"))).convert("RGB").save(file, kind, **settings)
    return file.getvalue()


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return pillow(kind, exif=exif)


NAMED = {
    "a.jfif": pillow("JPEG"), "b.avif": pillow("AVIF"), "c.jp2": pillow("JPEG2000", num_resolutions=1),
    "d.gif": pillow("GIF"), "e": pillow("JPEG"), "f.png": pillow("JPEG"), "G.JPE": pillow("JPEG"),
    "H.BMP": pillow("BMP"),
    "cam.0001": pillow("PNG"), "i.dat": pillow("WEBP"), "j.pnm": pillow("PPM"), "k.ras": picture(*SIZE, ".ras"),
}  # fmt: skip
TURNED = {"t1.avif": turned("AVIF"), "t2.png": turned("PNG"), "t3.webp": turned("WEBP"), "t4.tif": turned("TIFF")}
JUNK = {
    ".DS_Store": b"\0\0\0\1Bud1", "._a.jpg": b"\0\5\x16\7", "Thumbs.db": b"\xd0\xcf\x11\xe0", "classes.txt": b"BMW",
}  # fmt: skip


@pytest.fixture
def yolo(tmp_path) -> Path:
    folder = tmp_path / "yolo"
    for split in ("train", "val"):
        for name, content in {**NAMED, **TURNED, **JUNK}.items():
            put(folder / f"images/{split}/{name}", content)
            if name not in JUNK:
                put(folder / f"labels/{split}/{stem_of(name)}.txt", "0 0.5 0.5 0.2 0.4\n")
    return folder


def test_yolo_images_are_taken_whatever_they_are_called(yolo, tmp_path):
    ingest(yolo_data(yolo, names=["x"]), tmp_path / "out")
    train = records(tmp_path / "out", "train")
    assert sorted(image["file_name"] for image in train.images) == sorted([*NAMED, *TURNED])
    for image in train.images:
        assert (image["width"], image["height"]) == (SIZE[::-1] if image["file_name"] in TURNED else SIZE)
        data = np.fromfile(tmp_path / "out/train/images" / image["file_name"], np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_COLOR).shape[:2] == (image["height"], image["width"])
    assert len(train.annotations) == len(train.images)


def test_formats_that_are_not_read_are_counted_and_named(yolo, tmp_path):
    for name in ("phone.jpg", "phone2.HEIC"):
        put(yolo / f"images/train/{name}", HEIC)
    put(yolo / "images/train/x.jxl", b"\xff\x0a" + bytes(9))
    put(yolo / "images/train/.shut.jpg", NAMED["e"])
    ingest(yolo_data(yolo, names=["x"]), tmp_path / "out")
    notes = dataset(tmp_path / "out")["notes"]
    remedy = "is not read here; convert it to JPEG, PNG or TIFF"
    assert f"train: 2 images were left out: HEIC {remedy}: 'phone.jpg', 'phone2.HEIC'" in notes
    assert f"train: 1 images were left out: JPEG XL {remedy}: 'x.jxl'" in notes
    assert "train: 1 hidden images were left out; rename them to have them: '.shut.jpg'" in notes
    put(yolo / "labels/train/phone.txt", "0 0.5 0.5 0.2 0.4\n")
    with pytest.raises(
        DataError, match=rf"'phone.txt' \(1 have an image that is not read: 'phone.jpg'; HEIC {remedy}\)"
    ):
        ingest(yolo_data(yolo, names=["x"]), tmp_path / "again")


@pytest.mark.parametrize("content", [b"hello", b"", b"\0" * 99])
def test_a_file_named_as_an_image_that_is_none_is_refused(yolo, tmp_path, content):
    put(yolo / "images/train/z.jpg", content)
    with pytest.raises(DataError, match=r"size of 1 images cannot be read: 'z.jpg'"):
        ingest(yolo_data(yolo, names=["x"]), tmp_path / "out")


def test_voc_images_are_taken_whatever_they_are_called(tmp_path):
    folder = tmp_path / "voc"
    names = ["a.jfif", "b.avif", "e", "d.gif"]
    for name in names:
        put(folder / f"JPEGImages/{name}", NAMED[name])
        put(folder / f"Annotations/{stem_of(name)}.xml", xml(name, "cat"))
    put(folder / "JPEGImages/phone.jpg", HEIC)
    common = {"images": "JPEGImages", "annotations": "Annotations"}
    ingest(voc_data(folder, train=common, val=common), tmp_path / "out")
    assert sorted(image["file_name"] for image in records(tmp_path / "out", "train").images) == sorted(names)
    assert any("HEIC is not read here" in note for note in dataset(tmp_path / "out")["notes"])
    put(folder / "Annotations/phone.xml", xml("phone.jpg", "cat"))
    with pytest.raises(DataError, match=r"1 of 5 XML files have no image here.*'phone.jpg'; HEIC is not read here"):
        ingest(voc_data(folder, train=common, val=common), tmp_path / "again")


def test_all_names_that_are_not_utf8_are_in_one_message(yolo):
    folder = yolo / "images/train"
    for name in (os.fsdecode(b"\xff.jpg"), os.fsdecode("狗.jpg".encode("gbk"))):
        (folder / name).write_bytes(picture(*SIZE, ".jpg"))
    with pytest.raises(DataError, match=r"2 file names are not UTF-8; rename the files \(`convmv .*udcb9.*udcff"):
        images_below(folder, key="data.yolo.train.images")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "other")
    put(tmp_path / "a.jpg", NAMED["e"])
    assert images_below(tmp_path, key="k").names == ["a.jpg"]
    os.mkfifo(tmp_path / "b.jpg")
    with pytest.raises(DataError, match="is not a file; remove it"):
        images_below(tmp_path, key="k")


def test_the_number_of_a_frame_is_no_extension():
    pairs = {
        "a.jpg": "a",
        "cam.0001": "cam.0001",
        "cam.0001.jpg": "cam.0001",
        "x/y.JFIF": "x/y",
        "e": "e",
        "v1.2": "v1.2",
    }
    assert {name: stem_of(name) for name in pairs} == pairs
