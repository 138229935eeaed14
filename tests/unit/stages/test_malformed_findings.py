"""The malformed corpus, second part: what only values betray passes ingest and is found by rule and record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.ingest import ingest
from stages.project.params import Validation
from stages.validate import validate
from tests.unit.stages.test_ingest import image, picture, source_of, write_source
from yolov7.errors import DataError

SUITE = Path(__file__).resolve().parents[3] / "validation"
NAN, INFINITE = float("nan"), float("inf")
WHOLE = [1, 2, 10, 12]

# Of the train split: (annotation, the rule that names it).
ANNOTATIONS = {
    "NaN": ({"bbox": [NAN, 2, 10, 12]}, "box-is-finite"),
    "infinite": ({"bbox": [1, 2, INFINITE, 12]}, "box-is-finite"),
    "no width": ({"bbox": [1, 2, 0, 12]}, "box-width-is-positive"),
    "no height": ({"bbox": [1, 2, 10, 0]}, "box-height-is-positive"),
    "negative width": ({"bbox": [11, 2, -10, 12]}, "box-width-is-positive"),
    "negative height": ({"bbox": [1, 14, 10, -12]}, "box-height-is-positive"),
    "beyond the right edge": ({"bbox": [35, 2, 10, 12]}, "box-is-inside-image"),
    "left of the image": ({"bbox": [-9, 2, 10, 12]}, "box-is-inside-image"),
    "huge": ({"bbox": [0, 0, 1e9, 1e9]}, "box-is-inside-image"),
    "far away": ({"bbox": [1e6, 1e6, 10, 12]}, "box-is-inside-image"),
    "corners for sides": ({"bbox": [20, 15, 38, 28]}, "box-is-inside-image"),
    "dangling image": ({"image_id": 999}, "annotation-image-is-known"),
    "dangling category": ({"category_id": 91}, "annotation-category-is-known"),
    "category zero": ({"category_id": 0}, "annotation-category-is-known"),
    "negative category": ({"category_id": -1}, "annotation-category-is-known"),
    "id twice": ({"id": 100, "bbox": [2, 3, 11, 13]}, "annotation-id-is-unique"),
    "repeated": ({"bbox": WHOLE}, "box-is-not-repeated"),
}

# Of the train split: (record, file, the rule that names it).
SOUND = picture(40, 30, seed=9)
IMAGES = {
    "empty file": ({}, b"", "image-decodes"),
    "text for an image": ({}, b"<html>not found</html>", "image-decodes"),
    "half an image": ({}, SOUND[: len(SOUND) // 2], "image-decodes"),
    "sides exchanged": ({"width": 30, "height": 40}, SOUND, "image-size-matches"),
    "no size": ({"width": 0}, b"<html>not found</html>", "image-size-is-valid"),
    "size NaN": ({"height": NAN}, SOUND, "image-size-is-valid"),
    "size a fraction": ({"width": 40.5}, SOUND, "image-size-is-valid"),
    "file named twice": ({"file_name": "a.jpg"}, None, "image-file-is-unique"),
    "id twice": ({"id": 7}, SOUND, "image-id-is-unique"),
}


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> list[dict]:
    """One data set with all of it, through ingest and validate."""
    folder = tmp_path_factory.mktemp("malformed")
    categories = [{"id": 5, "name": "thing"}, {"id": 90, "name": "rare"}]
    images, files = [image(7, "a.jpg")], {"a.jpg": picture(40, 30)}
    for number, (changes, content, _) in enumerate(IMAGES.values(), 20):
        images.append({**image(number, f"{number}.jpg"), **changes})
        if content is not None:
            files[f"{number}.jpg"] = content
    base = {"image_id": 7, "category_id": 5, "area": 120, "iscrowd": 0}
    annotations = [{**base, "id": 100, "bbox": WHOLE}]
    for number, (changes, _) in enumerate(ANNOTATIONS.values(), 200):
        annotations.append({**base, "id": number, "bbox": [3, 4, 5 + number / 100, 6], **changes})
    # Two categories of one id, and two of one name.
    twice = [*categories, {"id": 5, "name": "other"}, {"id": 6, "name": "rare"}]
    write_source(folder / "source/train", images, files, annotations=annotations, categories=twice)
    for split in ("val", "test"):
        files = {"a.jpg": picture(40, 30, seed=len(split))}
        write_source(folder / "source" / split, [image(7, "a.jpg")], files, categories=categories)
    ingest(source_of(folder / "source"), folder / "ingested")
    with pytest.raises(DataError, match="blocking rules do not hold") as caught:
        validate(Validation(suite=str(SUITE)), folder / "ingested", folder / "report", folder / "index")
    assert "\n" not in str(caught.value) and not (folder / "index").exists()
    return json.loads((folder / "report/findings.json").read_text())


def named(findings: list[dict], rule: str, key: str) -> list[object]:
    return [one[key] for one in findings if one["rule"] == rule and one["split"] == "train"]


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_a_bad_annotation_is_found_by_rule_and_id(findings, case):
    changes, rule = ANNOTATIONS[case]
    identity = changes.get("id", 200 + list(ANNOTATIONS).index(case))
    assert identity in named(findings, rule, "annotation_id")


@pytest.mark.parametrize("case", IMAGES)
def test_a_bad_image_is_found_by_rule_and_file(findings, case):
    changes, _, rule = IMAGES[case]
    file = changes.get("file_name", f"{20 + list(IMAGES).index(case)}.jpg")
    assert file in named(findings, rule, "file")


@pytest.mark.parametrize(
    "rule",
    ["category-id-is-unique", "category-name-is-unique", "category-is-in-every-split", "class-has-training-boxes"],
)
def test_bad_categories_are_found_by_rule(findings, rule):
    found = [one for one in findings if one["rule"] == rule]
    assert found and all(one["value"] and one["action"] for one in found)


def test_a_sound_record_is_not_accused(findings):
    blocking = {one["annotation_id"] for one in findings if one["severity"] == "blocking"}
    assert 200 + len(ANNOTATIONS) not in blocking
    accused = named(findings, "box-is-finite", "annotation_id")
    assert sorted(accused) == [200, 201]
