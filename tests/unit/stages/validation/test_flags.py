"""Marks that make objects unlearned, or other than they look: counted per class by ingest and by validation."""

import json
import shutil
from pathlib import Path

import pytest
from exports import Export, box, bring_in, image, picture

from stages.ingest import ingest
from stages.project.params import Validation
from stages.project.params_data import Data
from stages.validate import validate
from stages.validation.suite import read_suite
from yolov7.data.flags import FLAGS, describe_flags, rotation_of
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.errors import DataError

SUITE = Path(__file__).resolve().parents[4] / "validation"
CATEGORIES = [{"id": 1, "name": "fish"}, {"id": 2, "name": "trap"}]

MARKS = {
    "no-object-is-a-crowd": [{"iscrowd": 1}],
    "no-object-is-marked-ignore": [{"ignore": 1}, {"ignore": True}, {"ignore": "true"}],
    "no-object-is-marked-difficult": [{"difficult": 1}],
    "no-box-was-rotated": [{"attributes": {"rotation": angle}} for angle in (30, -30.5, "12.5", 270)],
    "no-object-has-a-score": [{"score": 0.5}, {"score": 1}],
    "no-box-holds-absent-keypoints": [{"bbox": [0, 0, 9, 9], "keypoints": [5, 5, 2, 0, 0, 0]}],
    "no-mark-is-without-effect": [
        {"attributes": {"occluded": True}}, {"occluded": 1}, {"truncated": "1"}, {"isfake": 1}, {"IsGroupOf": 1},
    ],
}  # fmt: skip
"""Forms of the mark by the rule that reports it."""

UNMARKED = [
    {"iscrowd": 0, "ignore": 0, "difficult": False, "occluded": 0, "attributes": {"rotation": 0.0, "occluded": False}},
    {"attributes": {"rotation": 180, "track_id": 4}, "score": None},
    {"attributes": {"rotation": "left"}, "truncated": -1, "keypoints": [0, 0, 0], "bbox": [1, 0, 9, 9]},
    {"attributes": None, "keypoints": [1, 1, 2], "bbox": [0, 0, 9, 9]},
]


def judged(folder: Path) -> tuple[list[dict], str]:
    """The findings on `folder/out`, and the page."""
    suite = folder / "suite"
    suite.mkdir()
    for file in SUITE.glob("*.yaml"):
        shutil.copy(file, suite)
    validate(Validation(suite=str(suite)), folder / "out", folder / "report", folder / "index")
    findings = json.loads((folder / "report/findings.json").read_text())
    return findings, (folder / "report/index.html").read_text()


def annotations(marks: list[dict]) -> list[dict]:
    marked = [
        box(number, category_id=2, **{"bbox": [number, 3, 9, 9 + number / 10], **mark})
        for number, mark in enumerate(marks, 1)
    ]
    return [*marked, box(90), box(91, category_id=2, bbox=[20, 3, 9, 9])]


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> tuple[str, list[dict], str, int]:
    """One data set with every form of every mark: notes of ingest, findings, page and number of objects."""
    folder = tmp_path_factory.mktemp("marked")
    records = annotations([mark for marks in MARKS.values() for mark in marks])
    images = [image(1, not_exhaustive_category_ids=[2]), image(2, not_exhaustive_category_ids=[])]
    made = bring_in(folder, Export(records, images, CATEGORIES, ("1.jpg", "2.jpg")))
    return made.notes, *judged(folder), len(records)


@pytest.mark.parametrize("rule", MARKS)
def test_every_form_of_a_mark_is_counted_per_class_by_ingest_and_validation(marked, rule):
    notes, findings, page, total = marked
    column = next(one.column for one in read_suite(SUITE, {}, where="here") if one.name == rule)
    words = next(flag.words for flag in FLAGS if flag.name == column)
    count = f"{len(MARKS[rule])} of {total} objects {words}"
    assert count in notes
    own = [one for one in findings if one["rule"] == rule and one["split"] == "train"]
    assert len(own) == 1 and own[0]["severity"] == "warning" and count in own[0]["value"]
    if rule != "no-mark-is-without-effect":
        assert own[0]["value"].endswith(f": trap {len(MARKS[rule])}")
    assert page.count(count) >= 2, "as a finding and as a note of ingest"


def test_images_that_are_not_annotated_exhaustively_are_counted(marked):
    notes, findings, _, _ = marked
    (own, *_) = [one for one in findings if one["rule"] == "images-are-annotated-exhaustively"]
    assert own["value"] in notes
    assert "1 of 2 images list classes that are not annotated exhaustively" in own["value"]


def test_objects_without_marks_are_not_counted():
    marked = annotations(UNMARKED)
    assert describe_flags(CocoAnnotations(Path("a.json"), [image()], marked, CATEGORIES)) == {}


def test_a_split_of_nothing_but_crowds_says_so(tmp_path):
    bring_in(tmp_path, Export([box(1, iscrowd=1), box(2, iscrowd=1, bbox=[1, 1, 5, 5])]))
    with pytest.raises(DataError, match=r"0 boxes; 2 of 2 objects are crowds \(iscrowd 1\)"):
        judged(tmp_path)
    advice = [one["action"] for one in json.loads((tmp_path / "report/findings.json").read_text())]
    assert any("data.coco.crowd_is_object: true" in text for text in advice)


def test_voc_objects_marked_difficult_are_counted_too(tmp_path):
    item = "<object><name>fish</name><difficult>{}</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
    item += "<ymax>9</ymax></bndbox></object>"
    for split in ("train", "val"):
        folder = tmp_path / split
        folder.mkdir()
        (folder / "a.jpg").write_bytes(picture(len(split)))
        objects = item.format(1) + item.format(0).replace("9", "12")
        text = f"<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>{objects}"
        (folder / "a.xml").write_text(text + "</annotation>")
    sets = {split: {"images": split, "annotations": split} for split in ("train", "val")}
    for is_crowd, words in ((False, "are marked difficult, but learned"), (True, "are crowds (iscrowd 1): neither")):
        voc = {**sets, "difficult_is_crowd": is_crowd}
        ingest(Data.model_validate({"source": "voc", "folder": str(tmp_path), "voc": voc}), tmp_path / "out")
        notes = json.loads((tmp_path / "out/dataset.json").read_text())["notes"]
        own = [note for note in notes if f"1 of 2 objects {words}" in note]
        assert len(own) == 2 and all("fish 1" in note and "data.coco" not in note for note in own)


@pytest.mark.parametrize(("value", "angle"), [(30, 30), (-30, 150), (360, 0), ("x", 0), (None, 0), (float("nan"), 0)])
def test_angles(value, angle):
    assert rotation_of({"attributes": {"rotation": value}}) == angle
