"""The embedded data set: same seed same bytes, splits that share nothing, boxes tight on legible strokes."""

import hashlib
import json
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from stages.project.params_data import Digits
from stages.sources import digits
from yolov7.data.formats.coco import read_coco

SPLITS = ("train", "val", "test")
SMALL = Digits(train_images=60, val_images=25, test_images=30)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    digits.make_digits(SMALL, folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def records(folder: Path, split: str):
    return read_coco(folder / split / "annotations.json")


def test_same_seed_same_bytes_and_another_seed_other_bytes(small, tmp_path):
    digits.make_digits(SMALL, tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(small)
    other = Digits(seed=1, train_images=2, val_images=1, test_images=1)
    digits.make_digits(other, tmp_path / "other")
    name = "train/images/train-00001.jpg"
    assert hashes(tmp_path / "other")[name] != hashes(small)[name]


def test_more_images_leave_the_first_ones_as_they_were(small, tmp_path):
    digits.make_digits(Digits(train_images=5, val_images=25, test_images=2), tmp_path)
    fewer, more = hashes(tmp_path), hashes(small)
    pictures = [name for name in fewer if name.endswith(".jpg")]
    assert len(pictures) == 32 and all(fewer[name] == more[name] for name in pictures)
    assert fewer["val/annotations.json"] == more["val/annotations.json"]


def test_counts_ids_and_sizes(small):
    for split, count in zip(SPLITS, (60, 25, 30), strict=True):
        coco = records(small, split)
        assert len(coco.images) == count
        assert [category["name"] for category in coco.categories] == [str(digit) for digit in range(10)]
        per_image = np.bincount([annotation["image_id"] % 1_000_000 for annotation in coco.annotations])
        assert per_image[1:].min() >= 1 and per_image.max() <= 6
        for image in coco.images:
            pixels = cv2.imread(str(small / split / "images" / image["file_name"]))
            assert pixels.shape == (160, 160, 3) == (image["height"], image["width"], 3)
    ids = [image["id"] for split in SPLITS for image in records(small, split).images]
    assert len(set(ids)) == len(ids)


def test_every_image_carries_a_licence_and_the_authors_are_named(small):
    coco = records(small, "train")
    licences = {licence["id"]: licence["name"] for licence in coco.licenses}
    for image in coco.images:
        author = {"china.jpg": "danielbuechele", "flower.jpg": "vultilion"}[image["photo"]]
        assert author in licences[image["license"]]
    assert "Alpaydin" in coco.info["contributor"]


def test_no_digit_scan_is_in_two_splits():
    parts = [digits._material(seed=3, number=number).scans_of for number in range(3)]
    for digit in range(10):
        dealt = np.concatenate([part[digit] for part in parts])
        assert len(np.unique(dealt)) == len(dealt)
        shares = np.array([len(part[digit]) for part in parts]) / len(dealt)
        assert np.allclose(shares, (0.62, 0.15, 0.23), atol=0.01)
    everything = np.concatenate([scans for part in parts for scans in part])
    assert sorted(everything) == list(range(1797))


def test_the_written_annotations_share_no_scan_and_no_photograph_region(small):
    scans = [{mark["scan"] for mark in records(small, split).annotations} for split in SPLITS]
    assert all(len(part) > 20 for part in scans)
    assert all(first.isdisjoint(second) for first, second in combinations(scans, 2))
    for photo in ("china.jpg", "flower.jpg"):
        columns = []
        for split in SPLITS:
            crops = [image["crop"] for image in records(small, split).images if image["photo"] == photo]
            assert crops
            columns.append({column for left, _, side in crops for column in range(left, left + side)})
            assert all(left >= 0 and left + side <= 640 and top >= 0 and top + side <= 427 for left, top, side in crops)
        assert all(first.isdisjoint(second) for first, second in combinations(columns, 2))


def test_boxes_lie_inside_and_hardly_overlap(small):
    pairs = 0
    for split in SPLITS:
        by_image: dict[int, list[list[int]]] = {}
        for mark in records(small, split).annotations:
            by_image.setdefault(mark["image_id"], []).append(mark["bbox"])
            left, top, width, height = mark["bbox"]
            assert left >= 0 and top >= 0 and left + width <= 160 and top + height <= 160
            assert 0.1 * 160 - 2 <= max(width, height) <= 0.35 * 160 + 1
        for boxes in by_image.values():
            for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(boxes, 2):
                shared = max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0, min(ay + ah, by + bh) - max(ay, by))
                assert shared / (aw * ah + bw * bh - shared) <= digits.MAX_IOU
                pairs += 1
    assert pairs > 100


@pytest.mark.parametrize("number", range(3))
def test_boxes_are_tight_on_the_strokes(monkeypatch, number):
    # On a plain ground the change of a pixel is proportional to how much of it the stroke covers.
    monkeypatch.setattr(digits, "_background", lambda *arguments: (np.full((160, 160, 3), 120, np.float32), {}))
    material = digits._material(0, number)
    for i in range(60):
        rng = np.random.default_rng([9, number, i])
        image, _, marks = digits._compose(Digits(digits_per_image=(1, 1)), material, rng)
        change = np.abs(image.astype(float) - 120).max(axis=2)
        change /= change.max()
        [mark] = marks
        left, top, width, height = mark["bbox"]
        box = change[top : top + height, left : left + width]
        assert min(box[0].max(), box[-1].max(), box[:, 0].max(), box[:, -1].max()) >= 0.27, "the box is loose"
        change[top : top + height, left : left + width] = 0
        assert change.max() <= 0.4, "ink outside the box"
        assert mark["area"] == width * height and mark["scan"] in material.scans_of[mark["category_id"] - 1]


def test_digits_stand_out_from_any_background(monkeypatch):
    # The digit is drawn last, so the same generator without drawing gives the bare background.
    parameters, material = Digits(digits_per_image=(1, 1)), digits._material(0, 0)
    for i in range(60):
        image, _, marks = digits._compose(parameters, material, np.random.default_rng([9, i]))
        with monkeypatch.context() as patch:
            patch.setattr(digits, "_blend", lambda *arguments: None)
            bare, _, same = digits._compose(parameters, material, np.random.default_rng([9, i]))
        assert marks == same
        changed = np.abs(image.astype(float) - bare).max(axis=2) > 40
        ink = (image @ digits.LUMA)[changed].mean()
        left, top, width, height = marks[0]["bbox"]
        assert abs(ink - (bare @ digits.LUMA)[top : top + height, left : left + width].mean()) > 45


def test_digit_size_and_count_follow_the_parameters(tmp_path):
    parameters = Digits(
        train_images=4, val_images=1, test_images=1, image_size=256, digits_per_image=(2, 2), digit_size=(0.2, 0.2)
    )
    digits.make_digits(parameters, tmp_path)
    document = json.loads((tmp_path / "train/annotations.json").read_text())
    assert {image["width"] for image in document["images"]} == {256}
    assert len(document["annotations"]) == 8
    assert all(48 <= max(mark["bbox"][2:]) <= 52 for mark in document["annotations"])
