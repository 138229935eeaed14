"""Ingest: a COCO folder in the pipeline's layout with everything kept, refusals by name, earlier outputs intact."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.ingest import ingest
from stages.project.params_data import Data
from yolov7.data.formats.coco import read_coco
from yolov7.data.header import read_header
from yolov7.errors import DataError
from yolov7.folders import replace_folder

ROOT = Path(__file__).resolve().parents[3]


def picture(width: int, height: int, extension: str = ".jpg", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 80, (height, width, 3)).astype(np.uint8)
    pixels[: height // 2, : width // 2] = 250  # the bright quarter shows which way is up
    return cv2.imencode(extension, pixels)[1].tobytes()


def exif(orientation: int, order: str = "<") -> bytes:
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def oriented_jpeg(width: int, height: int, orientation: int, order: str = "<") -> bytes:
    body = b"Exif\0\0" + exif(orientation, order)
    plain = picture(width, height)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]


def oriented_png(width: int, height: int, orientation: int) -> bytes:
    plain, body = picture(width, height, ".png"), exif(orientation)
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    return plain[:33] + chunk + plain[33:]  # behind the signature and IHDR


def image(identity: int, name: str, width: int = 40, height: int = 30, **more) -> dict:
    return {"id": identity, "file_name": name, "width": width, "height": height, **more}


def write_source(folder: Path, images: list[dict], files: dict[str, bytes], **more) -> None:
    for name, content in files.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    document = {
        "images": images,
        "annotations": [
            {"id": 100 + item["id"], "image_id": item["id"], "category_id": 5, "bbox": [1, 2, 10, 12]}
            for item in images
        ],
        "categories": [{"id": 5, "name": "thing", "supercategory": "all"}],
        **more,
    }
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")


def source_of(folder: Path, splits=("train", "val", "test")) -> Data:
    return Data.model_validate(
        {
            "source": "coco",
            "folder": str(folder),
            "coco": {
                split: {"images": f"{split}/images", "annotations": f"{split}/annotations.json"} for split in splits
            },
        }
    )


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    for number, split in enumerate(("train", "val", "test")):
        name = f"sub/{split}.jpg"
        write_source(folder / split, [image(7 + number, name)], {name: picture(40, 30, seed=number)})
    return folder


def test_every_field_and_every_byte_is_kept(source, tmp_path):
    annotations = [
        {"id": 31, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], "iscrowd": 1, "mine": "kept",
         "segmentation": {"counts": [5, 5], "size": [30, 40]}},
        {"id": 30, "image_id": 7, "category_id": 5, "bbox": [1.5, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, 6.5]]},
    ]  # fmt: skip
    licences = [{"id": 2, "name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}]
    files = {"sub/train.jpg": picture(40, 30)}
    write_source(
        source / "train", [image(7, "sub/train.jpg", license=2)], files, annotations=annotations, licenses=licences,
        info={"year": 2020},
    )  # fmt: skip
    ingest(source_of(source), tmp_path / "out")
    coco = read_coco(tmp_path / "out/train/annotations.json")
    assert coco.annotations == annotations and coco.licenses == licences and coco.info == {"year": 2020}
    assert coco.images == [image(7, "sub/train.jpg", license=2)]
    assert (tmp_path / "out/train/images/sub/train.jpg").read_bytes() == files["sub/train.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", "test", "train", "val"]


def test_dataset_json_counts_and_hashes_the_content_only(source, tmp_path):
    ingest(source_of(source), tmp_path / "out")
    first = json.loads((tmp_path / "out/dataset.json").read_text())
    assert first["source"] == "coco" and first["classes"] == ["thing"] and first["category_ids"] == [5]
    assert first["splits"]["train"]["images"] == 1 and first["splits"]["train"]["annotations"] == 1
    assert not first["test_is_val"]
    source.rename(tmp_path / "moved")
    ingest(source_of(tmp_path / "moved"), tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/dataset.json").read_bytes() == (tmp_path / "out/dataset.json").read_bytes()
    (tmp_path / "moved/val/images/sub/val.jpg").write_bytes(picture(40, 30, seed=99))
    ingest(source_of(tmp_path / "moved"), tmp_path / "elsewhere")
    second = json.loads((tmp_path / "elsewhere/dataset.json").read_text())
    assert second["sha256"] != first["sha256"]
    assert second["splits"]["val"]["sha256"] != first["splits"]["val"]["sha256"]
    assert second["splits"]["train"] == first["splits"]["train"]


def test_without_a_test_split_val_is_taken_twice_and_that_is_recorded(source, tmp_path):
    ingest(source_of(source, ("train", "val")), tmp_path / "out")
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    assert document["test_is_val"] and document["splits"]["test"] == document["splits"]["val"]
    assert (tmp_path / "out/test/images/sub/val.jpg").is_file()


def test_digits_come_in_by_the_same_stage(tmp_path):
    data = Data.model_validate({"digits": {"train_images": 3, "val_images": 2, "test_images": 2}})
    ingest(data, tmp_path / "out")
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    assert document["source"] == "digits" and document["classes"] == [str(digit) for digit in range(10)]
    assert [document["splits"][split]["images"] for split in ("train", "val", "test")] == [3, 2, 2]


@pytest.mark.parametrize(("extension", "make"), [("jpg", oriented_jpeg), ("png", oriented_png)])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_orientation_is_applied_once_and_other_files_keep_their_bytes(
    source, tmp_path, extension, make, orientation
):
    turned = orientation in (6, 8)
    name = f"turned.{extension}"
    shown = (30, 40) if turned else (40, 30)
    write_source(
        source / "train",
        [image(7, name, *shown), image(8, "plain.jpg")],
        {name: make(40, 30, orientation), "plain.jpg": oriented_jpeg(40, 30, 1)},
    )
    ingest(source_of(source), tmp_path / "out")
    written = tmp_path / "out/train/images" / name
    header = read_header(written)
    assert header is not None and header.orientation == 1 and (header.width, header.height) == shown
    expected = cv2.imread(str(source / "train/images" / name))  # OpenCV applies the orientation
    assert np.abs(cv2.imread(str(written)).astype(int) - expected).mean() < (4 if extension == "jpg" else 0.01)
    assert (tmp_path / "out/train/images/plain.jpg").read_bytes() == oriented_jpeg(40, 30, 1)
    assert json.loads((tmp_path / "out/dataset.json").read_text())["splits"]["train"]["turned_upright"] == 1


def test_boxes_drawn_on_the_stored_pixels_keep_them(source, tmp_path):
    write_source(source / "train", [image(7, "a.png", 40, 30)], {"a.png": oriented_png(40, 30, 6)})
    ingest(source_of(source), tmp_path / "out")
    written = cv2.imread(str(tmp_path / "out/train/images/a.png"))
    assert np.array_equal(written, cv2.imdecode(np.frombuffer(picture(40, 30, ".png"), np.uint8), cv2.IMREAD_COLOR))


def test_a_damaged_image_is_left_to_validation(source, tmp_path):
    broken = oriented_jpeg(40, 30, 6)[:60]
    write_source(source / "train", [image(7, "a.jpg"), image(8, "b.jpg")], {"a.jpg": broken, "b.jpg": b"no image"})
    ingest(source_of(source), tmp_path / "out")
    assert (tmp_path / "out/train/images/a.jpg").read_bytes() == broken
    assert (tmp_path / "out/train/images/b.jpg").read_bytes() == b"no image"


def test_missing_files_are_named_with_their_ids_and_counted(source, tmp_path):
    write_source(source / "val", [image(40 + i, f"gone-{i}.jpg") for i in range(9)], {})
    with pytest.raises(DataError) as caught:
        ingest(source_of(source), tmp_path / "out")
    message = str(caught.value)
    assert "9 of 9 images" in message and "image 40: 'gone-0.jpg' is missing" in message and "and 4 more" in message
    assert str(source / "val/annotations.json") in message and "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/passwd", "absolute path"),
        ("../secret.jpg", "leaves the image folder"),
        ("sub/../../secret.jpg", "leaves the image folder"),
        ("sub\\a.jpg", "Windows path"),
        ("C:/a.jpg", "Windows path"),
        ("outside.jpg", "a link that leaves"),
        ("folder/secret.jpg", "a link that leaves"),
        ("circle.jpg", "cannot be reached"),
        ("empty", "is not a file"),
        (".", "does not name a file"),
        ("a.jpg/b.jpg", "cannot be reached"),
        ("x" * 300 + ".jpg", "cannot be reached"),
    ],
)
def test_file_names_that_lead_elsewhere_are_refused(source, tmp_path, name, words):
    (source / "secret.jpg").write_bytes(picture(40, 30))
    images = source / "train/images"
    (images / "outside.jpg").symlink_to(source / "secret.jpg")
    (images / "folder").symlink_to(source)
    (images / "circle.jpg").symlink_to("circle.jpg")
    (images / "empty").mkdir()
    write_source(source / "train", [image(7, "a.jpg"), image(8, name)], {"a.jpg": picture(40, 30)})
    with pytest.raises(DataError, match=f"image 8: .*{words}"):
        ingest(source_of(source), tmp_path / "out")


def test_a_link_within_the_folder_is_followed(source, tmp_path):
    write_source(source / "train", [image(7, "link.jpg")], {"real.jpg": picture(40, 30)})
    (source / "train/images/link.jpg").symlink_to("real.jpg")
    ingest(source_of(source), tmp_path / "out")
    written = tmp_path / "out/train/images/link.jpg"
    assert not written.is_symlink() and written.read_bytes() == picture(40, 30)


def test_a_failure_leaves_the_earlier_output_as_it_was(source, tmp_path):
    ingest(source_of(source), tmp_path / "out")
    before = (tmp_path / "out/dataset.json").read_bytes()
    (source / "test/annotations.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        ingest(source_of(source), tmp_path / "out")
    assert (tmp_path / "out/dataset.json").read_bytes() == before
    assert (tmp_path / "out/train/images/sub/train.jpg").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_missing_image_folder_is_named_with_its_key(source, tmp_path):
    (source / "val/images").rename(source / "val/pictures")
    with pytest.raises(DataError, match=r"val/images: no such image folder; see data\.coco\.val\.images"):
        ingest(source_of(source), tmp_path / "out")


def test_the_command_prints_one_line_and_exits_with_2(source, tmp_path):
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["data"] = source_of(source).model_dump(exclude={"digits"})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (source / "val/images/sub/val.jpg").unlink()
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; "
               "runpy.run_module('stages.ingest', run_name='__main__')"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "image 8: 'sub/val.jpg' is missing" in lines[0]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with replace_folder(target) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(ValueError, match="midway"), replace_folder(target) as folder:
        (folder / "a").write_text("second")
        raise ValueError("midway")
    assert (target / "a").read_text() == "first"
    with replace_folder(target) as folder:
        (folder / "b").write_text("third")
    assert [path.name for path in target.iterdir()] == ["b"] and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    target = tmp_path / "out"
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old/a").write_text("earlier")
    (tmp_path / ".out.new").mkdir()
    with pytest.raises(ValueError, match="again"), replace_folder(target):
        raise ValueError("again")
    assert (target / "a").read_text() == "earlier" and [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_headers_tell_size_and_orientation(tmp_path, orientation, order):
    (tmp_path / "a.jpg").write_bytes(oriented_jpeg(40, 30, orientation, order))
    header = read_header(tmp_path / "a.jpg")
    assert header is not None
    assert (header.format, header.width, header.height, header.orientation) == ("jpeg", 40, 30, orientation)


@pytest.mark.parametrize("parameters", [[], [cv2.IMWRITE_WEBP_QUALITY, 101], [cv2.IMWRITE_WEBP_QUALITY, 50]])
def test_webp_headers_tell_the_size(tmp_path, parameters):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 41, 3)).astype(np.uint8)
    (tmp_path / "a.webp").write_bytes(cv2.imencode(".webp", pixels, parameters)[1].tobytes())
    header = read_header(tmp_path / "a.webp")
    assert header is not None and (header.format, header.width, header.height) == ("webp", 41, 30)


@settings(max_examples=200, deadline=None)
@given(
    start=st.sampled_from(
        [picture(20, 10), oriented_jpeg(20, 10, 6), oriented_png(20, 10, 6), picture(20, 10, ".webp")]
    ),
    cut=st.integers(0, 400),
    patch=st.binary(min_size=0, max_size=8),
    at=st.integers(0, 60),
)
def test_a_damaged_header_does_not_crash(tmp_path_factory, start, cut, patch, at):
    path = tmp_path_factory.mktemp("header") / "a"
    path.write_bytes((start[:at] + patch + start[at + len(patch) :])[:cut])
    header = read_header(path)
    assert header is None or (header.width >= 0 and 1 <= header.orientation <= 8)
