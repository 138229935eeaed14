"""The malformed corpus: small bad inputs made by code, each refused in words, or handled as the docs say.

What only the values of records betray (boxes, references) is found by validation: `test_malformed_findings.py`.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.images.near_duplicates import difference_hashes
from stages.ingest import ingest
from stages.project.params_data import Data
from tests.unit.stages.sources.test_sources import put, voc_data, xml, yolo_data
from tests.unit.stages.test_ingest import image, oriented_jpeg, picture, source_of, write_source
from yolov7.data import sandbox
from yolov7.data.decode import read_image
from yolov7.data.formats.coco import read_coco
from yolov7.data.header import read_header
from yolov7.data.sandbox import Died, breaks_out, run_limited
from yolov7.errors import DataError, YoloError

PLAIN = picture(40, 30)


def document(**changes: Any) -> dict[str, Any]:
    annotation = {"id": 11, "image_id": 7, "category_id": 5, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}
    return {
        "info": {"year": 2026},
        "licenses": [{"id": 1, "name": "CC0"}],
        "images": [image(7, "a.jpg"), image(8, "b.jpg")],
        "annotations": [{**annotation, "segmentation": [[1, 2, 11, 2, 11, 14]]}, {**annotation, "id": 12}],
        "categories": [{"id": 5, "name": "thing"}],
        **changes,
    }


def changed(name: str, key: str, value: Any) -> bytes:
    values = document()
    values[name][0][key] = value
    return json.dumps(values).encode()


def without(name: str, key: str | None = None) -> bytes:
    values = document()
    del (values if key is None else values[name][0])[name if key is None else key]
    return json.dumps(values).encode()


def named(name: str) -> bytes:
    return changed("images", "file_name", name)


@pytest.fixture
def coco(tmp_path) -> Path:
    """A sound data set; each case spoils it."""
    folder = tmp_path / "source"
    for split in ("train", "val"):
        files = {"a.jpg": PLAIN, "b.jpg": PLAIN}
        write_source(folder / split, [], files)
        (folder / split / "annotations.json").write_text(json.dumps(document()))
    return folder


def bring(folder: Path, out: Path) -> None:
    ingest(source_of(folder, ("train", "val")), out)


ANNOTATIONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "truncated": (json.dumps(document()).encode()[:-40], r"not JSON \(line 1.*is the file complete"),
    "two documents": (json.dumps(document()).encode() * 2, "not JSON"),
    "comments": (b"// made by hand\n{}", "not JSON"),
    "Latin-1": (named("").replace(b'""', b'"\xe4.jpg"', 1), "not UTF-8 at byte"),
    "UTF-16": (json.dumps(document()).encode("utf-16"), "not UTF-8 at byte 0"),
    "a list": (b"[1, 2]", "top level is a list; expected an object"),
    "null": (b"null", "top level is null"),
    "a text": (b'"images"', "top level is a text"),
    "deep": (b'{"images": ' + b"[" * 200_000, "nested too deeply"),
    "no images": (without("images"), "the list `images` is missing"),
    "no annotations": (b'{"images": []}', "the list `annotations` is missing; is this an instances file"),
    "no categories": (without("categories"), "the list `categories` is missing"),
    "images by name": (json.dumps(document(images={"a.jpg": {}})).encode(), "`images` is an object; expected a list"),
    "annotations null": (json.dumps(document(annotations=None)).encode(), "`annotations` is null; expected a list"),
    "record no object": (
        json.dumps(document(images=["a.jpg"])).encode(),
        r"images\[0\]: expected an object",
    ),
    "info a list": (json.dumps(document(info=[])).encode(), "`info` is a list"),
    "licences texts": (json.dumps(document(licenses=["CC0"])).encode(), "`licenses` must be a list of objects"),
    "no id": (without("images", "id"), r"images\[0\]: field `id` is missing"),
    "no file_name": (without("images", "file_name"), r"images\[0\] \(id 7\): field `file_name` is missing"),
    "width true": (changed("images", "width", True), "field `width` is True; expected a number"),
    "no image_id": (without("annotations", "image_id"), "field `image_id` is missing"),
    "no category_id": (without("annotations", "category_id"), "field `category_id` is missing"),
    "no bbox": (
        json.dumps(document(annotations=[{"id": 11, "image_id": 7, "category_id": 5}])).encode(),
        r"\(id 11\): field `bbox` is missing; expected four numbers",
    ),
    "no name": (without("categories", "name"), "field `name` is missing"),
    "width a text": (changed("images", "width", "40"), "field `width` is '40'; expected a number"),
    "height a list": (changed("images", "height", [30]), r"field `height` is \[30\]"),
    "id null": (changed("images", "id", None), "field `id` is None; expected a whole number"),
    "id a list": (changed("images", "id", [7]), r"field `id` is \[7\]; expected a whole number"),
    "id a fraction": (changed("annotations", "id", 1.5), "field `id` is 1.5"),
    "id true": (changed("categories", "id", True), "field `id` is True"),
    "id too large": (changed("annotations", "id", 10**30), "does not fit 64 bits"),
    "bbox of three": (changed("annotations", "bbox", [1, 2, 3]), r"field `bbox` is \[1, 2, 3\]; expected four numbers"),
    "bbox of texts": (changed("annotations", "bbox", ["1", "2", "3", "4"]), "field `bbox`"),
    "bbox an object": (changed("annotations", "bbox", {"x": 1}), "field `bbox`"),
    "bbox nested": (changed("annotations", "bbox", [[1, 2, 3, 4]]), "field `bbox`"),
    "category by name": (
        changed("annotations", "category_id", "thing"),
        "is 'thing'; expected a whole number",
    ),
    "class a number": (changed("categories", "name", 3), "field `name` is 3"),
    "iscrowd 2": (changed("annotations", "iscrowd", 2), "`iscrowd` is 2; expected 0 or 1"),
    "area a text": (changed("annotations", "area", "large"), "`area` is 'large'"),
    "polygon of texts": (changed("annotations", "segmentation", [["1", 2]]), "field `segmentation`"),
    "run lengths without size": (changed("annotations", "segmentation", {"counts": [1]}), "field `segmentation`"),
    "name empty": (named(""), "field `file_name` is ''"),
    "name with zero byte": (named("a\0.jpg"), "field `file_name`"),
    "name half a character": (named("\ud800.jpg"), "field `file_name`"),
    "name absolute": (named("/etc/passwd"), r"image 7: '/etc/passwd' is an absolute path"),
    "name outward": (named("../secret.jpg"), r"image 7: .* leaves the image folder by `\.\.`"),
    "name outward within": (named("sub/../../../secret.jpg"), "leaves the image folder"),
    "name of Windows": (named("images\\gone.jpg"), "is a Windows path; write it relative"),
    "name with drive": (named("C:/images/gone.jpg"), "is a Windows path"),
    "name a folder": (named("."), "does not name a file"),
    "name missing": (named("gone.jpg"), "1 of 2 images cannot be taken .*image 7: 'gone.jpg' is missing"),
    "name of other case": (named("A.JPG"), r"'A.JPG' is missing; there is 'a.jpg', which differs in case"),
    "name endless": (named("n" * 5000), "cannot be reached"),
    "name through a file": (named("a.jpg/b.jpg"), "cannot be reached"),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_bad_annotations_are_refused_by_file_record_and_field(coco, tmp_path, case):
    content, words = ANNOTATIONS[case]
    (coco / "val/annotations.json").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        bring(coco, tmp_path / "out")
    assert "val/annotations.json" in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000 and not (tmp_path / "out").exists()


def test_links_out_of_the_folder_are_refused(coco, tmp_path):
    put(tmp_path / "secret.jpg", PLAIN)
    (coco / "val/images/a.jpg").unlink()
    (coco / "val/images/a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match=r"image 7: 'a\.jpg' is a link that leaves the image folder"):
        bring(coco, tmp_path / "out")


@pytest.mark.parametrize("encode", [lambda text: b"\xef\xbb\xbf" + text, lambda text: b"\r\n " + text + b"\r\n"])
def test_byte_order_marks_and_blanks_are_accepted(coco, tmp_path, encode):
    (coco / "val/annotations.json").write_bytes(encode(json.dumps(document()).encode()))
    bring(coco, tmp_path / "out")
    assert len(read_coco(tmp_path / "out/val/annotations.json").annotations) == 2


@pytest.mark.parametrize(
    "ids",
    [[0, 1], [5, 90], [*range(1, 12), *range(13, 26)], list(range(1, 91)), [90, 1]],
    ids=lambda ids: f"{len(ids)}-{ids[0]}",
)
def test_category_ids_from_zero_with_gaps_and_of_91_are_kept(coco, tmp_path, ids):
    categories = [{"id": one, "name": f"class {one}", "supercategory": "root"} for one in ids]
    annotations = [{"id": one + 1, "image_id": 7, "category_id": one, "bbox": [1, 2, 3, 4]} for one in ids]
    for split in ("train", "val"):
        content = document(categories=categories, annotations=annotations)
        (coco / split / "annotations.json").write_text(json.dumps(content))
    bring(coco, tmp_path / "out")
    made = json.loads((tmp_path / "out/dataset.json").read_text())
    assert made["category_ids"] == sorted(ids) and made["classes"] == [f"class {one}" for one in sorted(ids)]
    assert [a["category_id"] for a in read_coco(tmp_path / "out/train/annotations.json").annotations] == ids


LABELS: dict[str, tuple[bytes, str]] = {
    "four columns": (b"0 .5 .5 .5", "line 1: 4 columns; a box has 5"),
    "six columns": (b"0 .5 .5 .5 .5 .9", "6 columns"),
    "an even polygon": (b"0 .1 .1 .2 .2 .3 .3 .4", "8 columns"),
    "commas": (b"0,.5,.5,.5,.5", "1 columns"),
    "decimal commas": (b"0 0,5 0,5 0,5 0,5", "'0,5' is not a finite number"),
    "NaN": (b"0 nan .5 .5 .5", "'nan' is not a finite number"),
    "infinite": (b"0 .5 .5 1e999 .5", "'1e999' is not a finite number"),
    "pixels": (b"0 20 15 10 8", "'20' is not within 0 to 1; divide by"),
    "negative": (b"0 -.5 .5 .5 .5", "'-.5' is not within 0 to 1"),
    "class of 91": (b"90 .5 .5 .5 .5", "class '90'; expected a whole number from 0 to 79: 80 classes are named"),
    "class from one": (b"80 .5 .5 .5 .5", "class '80'; expected a whole number from 0 to 79"),
    "class a fraction": (b"1.5 .5 .5 .5 .5", "class '1.5'"),
    "class by name": (b"cat .5 .5 .5 .5", "'cat' is not a finite number"),
    "class negative": (b"-1 .5 .5 .5 .5", "class '-1'"),
    "one bad row of many": (b"0 .5 .5 .5 .5\n1 .5 .5 .5 .5\n\n0 .5 .5 x .5\n", "line 4: 'x' is not"),
    "UTF-16": ("0 .5 .5 .5 .5".encode("utf-16"), "not UTF-8 at byte 0"),
    "an image": (PLAIN, r"not UTF-8|not a finite number"),
    "JSON": (b'{"boxes": []}', "2 columns"),
    "huge": (b" " * (17 * 2**20), "larger than 16 MiB; not a label file"),
}


@pytest.fixture
def yolo(tmp_path) -> Path:
    folder = tmp_path / "yolo"
    for split in ("train", "val"):
        put(folder / f"images/{split}/a.jpg", PLAIN)
        put(folder / f"labels/{split}/a.txt", "0 .5 .5 .5 .5\n")
    put(folder / "names.txt", "\n".join(f"class {number}" for number in range(80)))
    return folder


@pytest.mark.parametrize("case", LABELS)
def test_bad_rows_of_label_files_are_refused_by_file_and_line(yolo, tmp_path, case):
    content, words = LABELS[case]
    put(yolo / "labels/val/a.txt", content)
    with pytest.raises(DataError, match=rf"labels/val/a\.txt: .*({words})"):
        ingest(yolo_data(yolo, "names.txt"), tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("labels/val/lost.txt", b"", "1 label files have no image"),
        ("images/val/a.png", PLAIN, "share the labels of 'a'"),
        ("images/val/empty.jpg", b"", "the size of 1 images cannot be read: 'empty.jpg'"),
        ("images/val/\udcff.jpg", PLAIN, "is not UTF-8; rename the file"),
        ("names.txt", b"", "no class names"),
        ("names.txt", b"a\n\nb", "a blank line between class names"),
        ("names.txt", b"\xff\xfea\0", "not UTF-8"),
    ],
)
def test_a_folder_of_labels_that_does_not_fit_together_is_refused(yolo, tmp_path, file, content, words):
    put(Path(os.fsdecode(os.fsencode(str(yolo)) + b"/" + os.fsencode(file))), content)
    with pytest.raises(DataError, match=words):
        ingest(yolo_data(yolo, "names.txt"), tmp_path / "out")


@pytest.mark.parametrize("file", ["images/val/a.jpg", "labels/val/a.txt"])
def test_links_out_of_a_folder_of_labels_circles_and_pipes_are_refused(yolo, tmp_path, file):
    put(tmp_path / "secret", b"secret")
    (yolo / file).unlink()
    (yolo / file).symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=rf"{file}: is a link that leaves its folder"):
        ingest(yolo_data(yolo, "names.txt"), tmp_path / "out")
    (yolo / file).unlink()
    os.mkfifo(yolo / file)
    with pytest.raises(DataError, match=rf"{file}: is not a file"):
        ingest(yolo_data(yolo, "names.txt"), tmp_path / "out")
    (yolo / file).unlink()
    (yolo / file).symlink_to((yolo / file).name)
    with pytest.raises(DataError, match=r"is not a file|is a link"):
        ingest(yolo_data(yolo, "names.txt"), tmp_path / "out")


def test_boxes_and_polygons_mixed_in_a_file_with_a_byte_order_mark_are_read(yolo, tmp_path):
    put(yolo / "labels/val/a.txt", b"\xef\xbb\xbf0 .5 .5 .5 .5\r\n79 .25 .2 .75 .2 .75 .6\r\n")
    ingest(yolo_data(yolo, "names.txt"), tmp_path / "out")
    found = read_coco(tmp_path / "out/val/annotations.json").annotations
    assert [(a["category_id"], "segmentation" in a) for a in found] == [(1, False), (80, True)]


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>14</ymax></bndbox>"
LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>' + xml("2.jpg", "cow")
DOCUMENTS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not XML"),
    "truncated": (xml("2.jpg", "cow")[:-20], "not XML"),
    "entities": (LAUGHS, r"a document type .* is refused"),
    "an entity from a file": ('<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]>' + xml("2.jpg", "cow"), "is refused"),
    "another root": ("<html></html>", "the root is <html>; expected <annotation>"),
    "deep": ("<annotation>" + "<a>" * 100, "more than 32 nested elements"),
    "no box": (xml("2.jpg", "cow").replace(BOX, ""), r"object 1 \(cow\): <bndbox> is missing"),
    "no name": (xml("2.jpg", ""), "object 1: <name> is missing or empty"),
    "side missing": (xml("2.jpg", "cow").replace("<xmax>11</xmax>", ""), "<xmax> is missing"),
    "side a word": (xml("2.jpg", "cow").replace("11", "wide"), "<xmax> is 'wide'; expected a finite number"),
    "side NaN": (xml("2.jpg", "cow").replace("11", "NaN"), "<xmax> is 'NaN'"),
    "size negative": (xml("2.jpg", "cow").replace("40", "-40"), "the size -40 x 30 is not a whole number"),
    "size a word": (xml("2.jpg", "cow").replace("40", "forty"), "<width> is 'forty'"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?>' + xml("2.jpg", "cow"), r"not XML|not readable"),
    "not its encoding": (b'<?xml version="1.0" encoding="utf-8"?><annotation>\xff</annotation>', "not XML"),
    "another class": (xml("2.jpg", "yak"), "'yak' is not one of the classes"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_bad_voc_files_are_refused_by_file_and_object(tmp_path, case):
    folder, (content, words) = tmp_path / "voc", DOCUMENTS[case]
    for number in range(4):
        put(folder / f"JPEGImages/{number}.jpg", PLAIN)
        put(folder / f"Annotations/{number}.xml", xml(f"{number}.jpg", "cow"))
    put(folder / "ImageSets/Main/train.txt", "0\n1\n")
    put(folder / "ImageSets/Main/val.txt", "2\n3\n")
    put(folder / "Annotations/2.xml", content)
    with pytest.raises(DataError, match=rf"Annotations/2\.xml: .*({words})"):
        ingest(voc_data(folder, classes=["cow"]), tmp_path / "out")


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6), 9)) + chunk(b"IEND", b"")


def tiff_claiming(width: int, height: int) -> bytes:
    entries = [(256, width), (257, height), (258, 8), (262, 1), (273, 8), (277, 1), (278, height), (279, 10)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


def jpeg_claiming(width: int, height: int) -> bytes:
    at = PLAIN.index(b"\xff\xc0") + 5
    return PLAIN[:at] + struct.pack(">HH", height, width) + PLAIN[at + 4 :]


BOMBS = {
    "png": png_claiming(50_000, 50_000),
    "jpeg": jpeg_claiming(65_500, 65_500),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b"\x2c" + bytes(9) + b"\x02\0;",
    "tiff": tiff_claiming(1 << 20, 1 << 20),
    "bmp": b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 60_000, -60_000, 1, 24) + bytes(24),
    "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff" * 6,
    "ppm": b"P6 30000 30000 255\n" + bytes(99),
    "pgm16": b"P5 20000 20000 65535\n" + bytes(99),
}


@pytest.mark.parametrize("case", BOMBS)
def test_an_image_that_claims_to_be_huge_is_refused_by_name(coco, tmp_path, case):
    assert len(BOMBS[case]) < 10_000
    put(coco / "val/images/b.jpg", BOMBS[case])
    with pytest.raises(DataError, match=r"b\.jpg.* claims (\d+ x \d+|more pixels than are decoded).*remove"):
        bring(coco, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def saved(mode: str, kind: str, frames: int = 1, **options: Any) -> bytes:
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:15, :20] = (250, 120, 30)
    if mode == "I;16":
        first = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        first = Image.fromarray(pixels).convert(mode)
    others = [Image.fromarray(np.full((30, 40, 3), 40 * n, np.uint8)).convert(mode) for n in range(1, frames)]
    file = io.BytesIO()
    more = {"save_all": True, "append_images": others} if others else {}
    first.save(file, kind, **more, **options)
    return file.getvalue()


CONVERTED = {
    "CMYK JPEG": (saved("CMYK", "JPEG"), "CMYK"),
    "CMYK TIFF": (saved("CMYK", "TIFF"), "CMYK"),
    "16-bit PNG": (saved("I;16", "PNG"), "16 bits a channel"),
    "16-bit TIFF": (saved("I;16", "TIFF"), "16 bits a channel"),
    "animated GIF": (saved("RGB", "GIF", 3), "several pictures in one file"),
    "animated PNG": (saved("RGB", "PNG", 3), "several pictures in one file"),
    "animated WebP": (saved("RGB", "WEBP", 3, lossless=True), "several pictures in one file"),
    "TIFF of pages": (saved("RGB", "TIFF", 3), "several pictures in one file"),
    "PPM": (saved("RGB", "PPM"), "an unusual format"),
    "JPEG 2000": (cv2.imencode(".jp2", np.full((64, 64, 3), 99, np.uint8))[1].tobytes(), "an unusual format"),
}


def test_images_that_programs_read_differently_become_plain_ones(tmp_path):
    folder = tmp_path / "source"
    files = {f"{number}.img": content for number, (content, _) in enumerate(CONVERTED.values())}
    for split in ("train", "val"):
        write_source(folder / split, [image(number, name) for number, name in enumerate(files)], files)
    bring(folder, tmp_path / "out")
    notes = [note for note in json.loads((tmp_path / "out/dataset.json").read_text())["notes"] if "train" in note]
    assert notes == [
        "train: 2 images were converted to 8-bit RGB (CMYK): '0.img', '1.img'",
        "train: 2 images were converted to 8-bit RGB (16 bits a channel): '2.img', '3.img'",
        "train: 4 images were converted to 8-bit RGB (several pictures in one file): "
        "'4.img', '5.img', '6.img', '7.img'",
        "train: 2 images were converted to 8-bit RGB (an unusual format): '8.img', '9.img'",
    ]
    for name, (content, _) in zip(files, CONVERTED.values(), strict=True):
        written = tmp_path / "out/train/images" / name
        header = read_header(written)
        assert header is not None and header.peculiarity is None, name
        before = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.abs(read_image(written).astype(int) - before).mean() < 2, name
    assert read_image(tmp_path / "out/train/images/4.img")[0, 0].tolist() == [250, 120, 30]  # the first frame


@pytest.mark.parametrize(
    "content",
    [saved("L", "JPEG"), saved("L", "PNG"), saved("P", "PNG"), saved("1", "PNG"), saved("RGBA", "PNG"),
     saved("LA", "PNG"), saved("RGBA", "WEBP"), saved("RGB", "TIFF"), saved("P", "GIF"), saved("P", "BMP"),
     saved("RGB", "PNG")],
    ids=["grey JPEG", "grey PNG", "palette", "1 bit", "alpha", "grey with alpha", "alpha WebP", "TIFF", "GIF", "BMP",
         "PNG named JPEG"],
)  # fmt: skip
def test_images_that_decode_one_way_keep_their_bytes(coco, tmp_path, content):
    put(coco / "train/images/a.jpg", content)
    bring(coco, tmp_path / "out")
    assert (tmp_path / "out/train/images/a.jpg").read_bytes() == content
    assert read_image(tmp_path / "out/train/images/a.jpg").shape == (30, 40, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", PLAIN[:200], PLAIN[:-30], oriented_jpeg(40, 30, 6)[:-30], saved("CMYK", "JPEG")[:-99],
     saved("I;16", "PNG")[:-20], saved("RGB", "GIF", 3)[:60], b"\xff\xd8" + bytes(9999), b"II*\0" + b"\xff" * 99],
    ids=["empty", "text", "no pixels", "cut", "turned and cut", "CMYK and cut", "16-bit and cut", "GIF cut",
         "JPEG of zeros", "TIFF of ones"],
)  # fmt: skip
def test_a_damaged_image_is_neither_mended_nor_hidden(coco, tmp_path, content):
    put(coco / "train/images/a.jpg", content)
    bring(coco, tmp_path / "out")
    assert (tmp_path / "out/train/images/a.jpg").read_bytes() == content


def test_names_that_differ_in_case_only_are_noted(coco, tmp_path):
    put(coco / "train/images/A.jpg", PLAIN)
    (coco / "train/annotations.json").write_text(json.dumps(document(images=[image(7, "a.jpg"), image(8, "A.jpg")])))
    bring(coco, tmp_path / "out")
    notes = json.loads((tmp_path / "out/dataset.json").read_text())["notes"]
    assert notes == [
        "train: 1 images are named by no record and were left out: 'b.jpg'",
        "train: 1 file names differ only in case and clash on other systems: 'A.jpg' and 'a.jpg'",
    ]


def test_an_image_that_takes_too_much_processor_time_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.01)
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), np.uint8)
    assert cv2.imwrite(str(tmp_path / "slow.png"), noise)
    with pytest.raises(DataError, match=r"slow\.png.*took more processor time than one image may.*remove the image"):
        difference_hashes([tmp_path / "slow.png"])


def misbehave(how: str) -> str:
    """In the sandbox: what a decoder may do to its process."""
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exit":
        os._exit(3)
    if how == "raise":
        raise LookupError(how)
    if how == "take memory":
        return str(len(bytearray(8 << 30)))
    if how == "be ended":
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(1, b"to the terminal")  # goes nowhere
    return how


def test_the_sandbox_names_every_item_that_ends_its_process_and_answers_the_others(capfd):
    items = ["fine", "crash", "exit", "raise", "also fine", "take memory", "be ended", "fine again"]
    results = dict(zip(items, run_limited(misbehave, items, per_process=2), strict=True))
    fine = {item for item, result in results.items() if not isinstance(result, Died)}
    assert fine == {"fine", "also fine", "fine again"} and all(results[item] == item for item in fine)
    assert {item: result.why for item, result in results.items() if isinstance(result, Died)} == {
        "crash": "crashed (SIGSEGV)",
        "exit": "ended (exit code 3)",
        "raise": "ended (exit code 1)",
        "take memory": "takes more than 1024 MiB of memory",
        "be ended": "was ended by the system, probably for lack of memory",
    }
    assert capfd.readouterr().out == ""
    named = str(breaks_out(Path("a.jpg"), Died("crashed (SIGSEGV)")))
    assert named.startswith("a.jpg: the process that decoded this image crashed (SIGSEGV); remove the image")


def test_processes_that_do_not_start_are_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr(sandbox, "_serve", os._exit)
    with pytest.raises(DataError, match="the processes that decode images do not start"):
        list(run_limited(misbehave, ["fine"], per_process=1))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, as the keys that lead to it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return (
        [path, *(one for key, item in inside for one in places(item, (*path, key)))]
        if path
        else [one for key, item in inside for one in places(item, (key,))]
    )


SOUND = document()
PLACES = places(SOUND)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 7, 8, 5, 2**31, 2**63 - 1, -(2**63), 10**25, 1e308, -0.0, float("nan"), float("inf")]),
    st.sampled_from(["", "a.jpg", "../a.jpg", "/a.jpg", "\0", "a\\b.jpg", "A.jpg", "images", "\ud800", "7", "."]),
    st.text(max_size=4),
    st.integers(),
    st.floats(),
    st.sampled_from(
        [[], {}, [[]], [{}], {"id": 7}, [1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]], {"counts": "x", "size": [1, 1]}]
    ),
)


@st.composite
def spoilt(draw: st.DrawFn) -> str:
    """A sound document after a few changes: values replaced, records and keys removed, moved or repeated."""
    values: Any = copy.deepcopy(SOUND)
    for path in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=4)):
        holder = values
        try:
            for key in path[:-1]:
                holder = holder[key]
            change: Callable[[], Any] = (
                draw(
                    st.sampled_from(
                        [
                            lambda holder=holder, path=path: holder.pop(path[-1]),
                            lambda holder=holder, path=path: holder.append(holder[path[-1]]),
                            lambda holder=holder, path=path: holder.insert(0, holder[path[-1]]),
                        ]
                    )
                )
                if draw(st.booleans())
                else lambda holder=holder, path=path: holder.__setitem__(path[-1], draw(VALUES))
            )
            change()
        except (LookupError, TypeError, AttributeError):
            continue  # an earlier change has removed the place
    text = json.dumps(values)
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(["", "]", "}", ",", '"', "null", "\\", "1e9999"])) + text[at + 1 :]
    return text


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=spoilt(), whole=st.booleans())
def test_broken_annotations_raise_only_our_own_error(tmp_path_factory, text, whole):
    folder = tmp_path_factory.mktemp("fuzz")
    put(folder / "images/a.jpg", PLAIN)
    put(folder / "images/b.jpg", PLAIN)
    put(folder / "annotations.json", text.encode("utf-8", "surrogatepass"))
    one = {"images": "images", "annotations": "annotations.json"}
    sets = {"all": one} if whole else {"train": one, "val": one}
    split = {"train": 0.5, "val": 0.5, "test": 0.0, "near_duplicate_bits": None, "group_field": "license"}
    split = split if random.Random(text).random() < 0.2 else {**split, "group_field": None}
    data = Data.model_validate({"source": "coco", "folder": str(folder), "coco": sets, "split": split})
    try:
        ingest(data, folder / "out")
    except YoloError as error:
        assert str(error) and "\n" not in str(error)
        assert not (folder / "out").exists()
    else:
        assert (folder / "out/dataset.json").is_file()
