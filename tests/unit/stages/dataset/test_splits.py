"""Splits made from one set: shares kept per class, nothing that belongs together torn apart, order of no matter."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.dataset.splits import make_splits
from stages.images.near_duplicates import difference_hash, hash_pixels, near_pairs
from stages.project.params_data import Split
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.sources.image_set import ImageSet
from yolov7.errors import DataError

BLIND = Split(near_duplicate_bits=None)


def set_of(classes: list[set[int]], root: Path, names: list[str] | None = None, **fields: list) -> ImageSet:
    """An image per entry, with a box of each of its classes; files need not exist where no pixels are looked at."""
    names = names or [f"{number:04d}.jpg" for number in range(len(classes))]
    images = [
        {
            "id": number,
            "file_name": name,
            "width": 9,
            "height": 9,
            **{key: values[number] for key, values in fields.items()},
        }
        for number, name in enumerate(names)
    ]
    boxes = [(image, label) for image, labels in enumerate(classes) for label in sorted(labels)]
    annotations = [
        {"id": number, "image_id": image, "category_id": label, "bbox": [0, 0, 3, 3]}
        for number, (image, label) in enumerate(boxes)
    ]
    known = sorted({0}.union(*classes))
    categories = [{"id": label, "name": f"class {label}"} for label in known]
    coco = CocoAnnotations(Path("all.json"), images, annotations, categories, {"year": 1}, [{"id": 1, "name": "CC0"}])
    return ImageSet(coco, root, "data.coco.all")


def files(splits: dict[str, ImageSet]) -> dict[str, set[str]]:
    return {name: {record["file_name"] for record in one.coco.images} for name, one in splits.items()}


def texture(seed: int, side: int = 96) -> np.ndarray:
    cells = np.random.default_rng(seed).integers(0, 255, (12, 12)).astype(np.uint8)
    return cv2.resize(cells, (side, side), interpolation=cv2.INTER_CUBIC)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=3, max_size=60),
    seed=st.integers(0, 5),
    groups=st.integers(3, 60),
    test=st.sampled_from([0.0, 0.2]),
)
def test_every_image_lands_once_with_its_boxes_and_no_group_is_torn(tmp_path_factory, classes, seed, groups, test):
    root = tmp_path_factory.getbasetemp()
    whole = set_of(classes, root, video=[number % groups for number in range(len(classes))])
    parameters = Split(train=0.8 - test, val=0.2, test=test, seed=seed, near_duplicate_bits=None, group_field="video")
    splits, report = make_splits(whole, parameters)
    assert list(splits) == (["train", "val", "test"] if test else ["train", "val"])
    images = [record["id"] for one in splits.values() for record in one.coco.images]
    assert sorted(images) == list(range(len(classes)))
    home = {record["id"]: name for name, one in splits.items() for record in one.coco.images}
    assert all(home[item["image_id"]] == name for name, one in splits.items() for item in one.coco.annotations)
    assert sum(len(one.coco.annotations) for one in splits.values()) == len(whole.coco.annotations)
    assert all(one.coco.images for one in splits.values())
    for number in range(min(groups, len(classes))):
        assert len({home[image] for image in range(number, len(classes), groups)}) == 1
    assert report["units"] == min(groups, len(classes))
    for one in splits.values():
        assert (one.coco.categories, one.coco.info, one.coco.licenses) == (
            whole.coco.categories, whole.coco.info, whole.coco.licenses,
        )  # fmt: skip


def test_every_split_gets_its_share_of_every_class(tmp_path):
    rng = np.random.default_rng(0)
    shares = [0.5, 0.2, 0.05]
    classes = [{label for label, share in enumerate(shares) if rng.random() < share} for _ in range(1000)]
    totals = Counter(label for labels in classes for label in labels)
    splits, _ = make_splits(set_of(classes, tmp_path), BLIND)
    for name, ratio in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        coco = splits[name].coco
        counts = Counter(item["category_id"] for item in coco.annotations)
        assert len(coco.images) == pytest.approx(1000 * ratio, abs=6)
        for label, total in totals.items():
            assert counts[label] == pytest.approx(total * ratio, abs=2)
        empty = len({record["id"] for record in coco.images} - {item["image_id"] for item in coco.annotations})
        assert empty == pytest.approx(classes.count(set()) * ratio, abs=2)


def test_without_stratification_only_the_images_count(tmp_path):
    classes = [{number % 3} for number in range(200)]
    splits, _ = make_splits(set_of(classes, tmp_path), BLIND.model_copy(update={"stratify": False}))
    assert [len(one.coco.images) for one in splits.values()] == [140, 30, 30]


def test_the_same_seed_gives_the_same_splits_whatever_the_order(tmp_path):
    whole = set_of([{number % 4} for number in range(90)], tmp_path)
    first = files(make_splits(whole, BLIND)[0])
    backwards = replace(whole, coco=replace(whole.coco, images=whole.coco.images[::-1]))
    assert files(make_splits(backwards, BLIND)[0]) == first
    assert files(make_splits(whole, BLIND.model_copy(update={"seed": 1}))[0]) != first


def test_images_of_one_file_name_pattern_stay_together_and_are_reported(tmp_path):
    names = [f"video{number % 7}_frame{number:03d}.jpg" for number in range(50)] + ["alone.jpg"]
    whole = set_of([{0}] * 51, tmp_path, names)
    splits, report = make_splits(whole, BLIND.model_copy(update={"group_pattern": r"^(video\d+)_"}))
    home = {file: name for name, found in files(splits).items() for file in found}
    assert all(len({home[name] for name in names if name.startswith(f"video{v}_")}) == 1 for v in range(7))
    assert report["groups_of_several"] == 7 and report["images_in_groups_of_several"] == 50 and report["units"] == 8
    group = report["groups"][0]
    assert group["because"] == ["group_pattern"] and group["images"] == 8 and len(group["files"]) == 8
    assert all(home[file] == group["split"] for file in group["files"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group_pattern": "^scene"}, "'\\^scene' matches no file name .*'0000.jpg'"),
        ({"group_field": "video"}, "no image record has the field 'video'"),
        ({"group_pattern": "jpg"}, "9 images in 1 groups cannot be divided into 3 splits"),
    ],
)
def test_an_impossible_grouping_is_refused(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        make_splits(set_of([{0}] * 9, tmp_path), BLIND.model_copy(update=change))


def test_a_set_that_is_mostly_one_group_is_warned_of(tmp_path, caplog):
    whole = set_of([{0}] * 10, tmp_path, camera=[1] * 7 + [2, 3, 4])
    make_splits(whole, BLIND.model_copy(update={"group_field": "camera"}))
    assert "7 of 10 images stay together (group_field)" in caplog.text


def test_records_of_one_file_or_one_id_and_stray_annotations_do_not_leak(tmp_path):
    whole = set_of([{0}] * 12, tmp_path, [*(f"{number}.jpg" for number in range(11)), "0.jpg"])
    whole.coco.images[5]["id"] = 4
    whole.coco.annotations.append({"id": 99, "image_id": 777, "category_id": 0, "bbox": [0, 0, 1, 1]})
    splits, report = make_splits(whole, BLIND)
    assert sorted(group["because"] for group in report["groups"]) == [["same file"], ["same id"]]
    assert [a["id"] for a in splits["train"].coco.annotations if a["image_id"] == 777] == [99]
    assert not any(a["image_id"] == 777 for name in ("val", "test") for a in splits[name].coco.annotations)


def test_near_duplicates_stay_in_one_split(tmp_path):
    names = []
    for number in range(12):
        pixels = texture(number)
        copies = {
            "plain.png": pixels,
            "small.jpg": cv2.resize(pixels, (70, 64), interpolation=cv2.INTER_AREA),
            "light.jpg": cv2.convertScaleAbs(pixels, alpha=0.9, beta=20),
        }
        for suffix, version in copies.items():
            names.append(f"{number:02d}-{suffix}")
            cv2.imwrite(str(tmp_path / names[-1]), version)
    whole = set_of([{0}] * len(names), tmp_path, names)
    splits, report = make_splits(whole, Split())
    home = {file: name for name, found in files(splits).items() for file in found}
    assert all(len({home[name] for name in names if name.startswith(f"{number:02d}")}) == 1 for number in range(12))
    assert report["units"] == 12 and all(group["because"] == ["near-duplicate"] for group in report["groups"])
    assert make_splits(whole, BLIND)[1]["units"] == 36


def test_images_without_pixels_or_contrast_have_no_hash(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff no image")
    (tmp_path / "b.png").write_bytes(cv2.imencode(".png", texture(0))[1].tobytes()[:200])
    assert difference_hash(tmp_path / "a.jpg") is None and difference_hash(tmp_path / "none.jpg") is None
    difference_hash(tmp_path / "b.png")
    assert hash_pixels(np.full((40, 40), 128, np.uint8)) is None
    found = hash_pixels(texture(0))
    assert found is not None and found.shape == (2,)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), limit=st.integers(0, 32))
def test_all_pairs_within_the_limit_are_found_and_no_others(data, limit):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    hashes: list[np.ndarray | None] = [None]
    for _ in range(data.draw(st.integers(1, 5))):
        centre = rng.integers(0, 2, 128).astype(np.uint8)
        for _ in range(data.draw(st.integers(1, 5))):
            bits = centre.copy()
            bits[rng.choice(128, rng.integers(0, 40), replace=False)] ^= 1
            hashes.append(np.packbits(bits).view(np.uint64))
    known = [number for number, value in enumerate(hashes) if value is not None]
    expected = {
        (a, b): distance
        for a in known for b in known
        if a < b and (distance := int(np.bitwise_count(hashes[a] ^ hashes[b]).sum())) <= limit
    }  # fmt: skip
    found = {(min(a, b), max(a, b)): distance for a, b, distance in near_pairs(hashes, limit)}
    assert found.items() <= expected.items()
    assert components(found, len(hashes)) == components(expected, len(hashes))


def components(pairs, count: int) -> list[int]:
    label = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    return label
