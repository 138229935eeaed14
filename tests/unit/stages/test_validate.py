"""Validation: every kind of bad record is found by file and id, good data is indexed, the report is self-contained."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from stages.dataset.layout import SourceReport, describe
from stages.ingest import ingest
from stages.project.params import Validation
from stages.project.params_data import Data
from stages.project.workspace import open_index
from stages.validate import validate
from stages.validation.check import list_findings, run_rules
from stages.validation.images import ImageCheck, check_images
from stages.validation.suite import choose, read_suite
from stages.validation.tables import Context, make_tables
from yolov7.data.flags import FLAGS
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import Index
from yolov7.errors import ConfigError, DataError
from yolov7.files import write_json

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data"
SUITE = ROOT / "validation"
RULES = read_suite(SUITE, {}, where="here")
COMPARISONS = {rule.name for rule in RULES if rule.table in ("balance", "drift")}
FLAGGED = {rule.name for rule in RULES if rule.column in {*(flag.name for flag in FLAGS), "not_exhaustive"}}
TOLERANCE = next(rule.arguments["max_value"] for rule in RULES if rule.name == "box-is-inside-image")
FEW = {"class-has-enough-training-boxes": "off"}
SPLITS = ("train", "val", "test")
NAN, INFINITY = math.nan, math.inf


def encoded(width: int = 64, height: int = 48, extension: str = ".jpg", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()


def sound_documents() -> dict[str, dict]:
    """Three splits of four images with two boxes each."""
    documents = {}
    for number, split in enumerate(SPLITS):
        images = [
            {"id": 10 * number + i, "file_name": f"{split}-{i}.jpg", "width": 64, "height": 48} for i in range(1, 5)
        ]
        annotations = [
            {"id": 2 * image["id"] + j, "image_id": image["id"], "category_id": 3 + j, "bbox": [4 + j, 5, 20, 16.5]}
            for image in images
            for j in range(2)
        ]
        categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
        documents[split] = {"images": images, "annotations": annotations, "categories": categories}
    return documents


def write_ingested(folder: Path, documents: dict[str, dict], files: dict[str, bytes | None] | None = None) -> Path:
    """The ingested layout; `files` replaces the content of image files (None: no file)."""
    for split, document in documents.items():
        (folder / split / "images").mkdir(parents=True, exist_ok=True)
        (folder / split / "annotations.json").write_text(json.dumps(document))
        for image in document["images"]:
            content = (files or {}).get(image["file_name"], encoded(seed=zlib.crc32(image["file_name"].encode())))
            if content is not None:
                (folder / split / "images" / image["file_name"]).write_bytes(content)
    write_json(folder / "dataset.json", describe(folder, "coco", SourceReport()))
    return folder


def rules_of_their_own(folder: Path) -> str:
    """The project's rules without a reference, whatever lies beside them in this checkout."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for file in SUITE.glob("*.yaml"):
            shutil.copy(file, folder)
    return str(folder)


def run(tmp_path: Path, *, cache: Path | None = None, **parameters) -> list[dict]:
    """Validate `tmp_path/ingested`; the findings."""
    given = {"suite": rules_of_their_own(tmp_path / "rules"), **parameters}
    given["severity"] = {**FEW, **given.get("severity", {})}
    try:
        validate(Validation(**given), tmp_path / "ingested", tmp_path / "report", tmp_path / "index", cache=cache)
    finally:
        findings = json.loads((tmp_path / "report/findings.json").read_text())
    return findings


def saved(image: Image.Image, format_: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


PIXELS = np.random.default_rng(7).integers(0, 255, (48, 64, 3)).astype(np.uint8)
PNG = encoded(extension=".png")
JPEG = encoded()


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> tuple[Path, str]:
    """One data set with every defect there is a rule for: the folder, and the message it was stopped with."""
    documents = sound_documents()
    train, val, test = (documents[split] for split in SPLITS)
    box = {"image_id": 1, "category_id": 3}
    train["annotations"] += [
        {"id": 901, **box, "bbox": [NAN, 1, 5, 5]},
        {"id": 902, **box, "bbox": [1, 1, 5, -INFINITY]},
        {"id": 903, **box, "bbox": [1, 1, 0, 5]},
        {"id": 904, **box, "bbox": [1, 1, 5, -3]},
        {"id": 905, **box, "bbox": [60, 1, 5.5, 5]},
        {"id": 906, **box, "bbox": [-40, 1, 30, 5]},
        {"id": 907, **box, "bbox": [1, 1, 1e300, 5]},
        {"id": 908, "image_id": 777, "category_id": 3, "bbox": [1, 1, 5, 5]},
        {"id": 909, "image_id": 1, "category_id": 66, "bbox": [1, 1, 5, 5]},
        {"id": 910, **box, "bbox": [30, 30, 5, 5]},
        {"id": 910, **box, "bbox": [31, 31, 5, 5]},
        {"id": 911, **box, "bbox": [30, 30, 5, 5]},
        {"id": 913, **box, "bbox": [30, 10, 5, 1.5]},
        {"id": 914, **box, "bbox": [1, 2, 60, 3]},
        {"id": 915, **box, "bbox": [0, 0, 64, 47.5]},
        {"id": 916, **box, "bbox": [10, 10, 20, 10], "area": 300},
        {"id": 912, **box, "bbox": [60, 40, 4 + TOLERANCE, 8 + TOLERANCE]},  # within the tolerance
    ]
    train["images"] += [
        {"id": 1, "file_name": "same-id.jpg", "width": 64, "height": 48},
        {"id": 51, "file_name": "train-2.jpg", "width": 64, "height": 48},
        {"id": 52, "file_name": "no-size.jpg", "width": NAN, "height": 0},
        {"id": 53, "file_name": "half-size.jpg", "width": 64.5, "height": 48},
    ]
    val["images"] += [
        {"id": 60 + i, "file_name": name, "width": 64, "height": 48}
        for i, name in enumerate(
            [
                "missing.jpg",
                "cut.jpg",
                "hole.jpg",
                "cut.png",
                "empty.jpg",
                "text.jpg",
                "other-size.jpg",
                "huge.png",
                "noisy.jpg",
                "transparent.png",
                "film.gif",
                "really-a-png.jpg",
                "black.png",
                "again.jpg",
                "darker.jpg",
            ]
        )
    ]
    test["categories"] = [
        {"id": 3, "name": "cat"},
        {"id": 3, "name": "puma"},
        {"id": 4, "name": "dog"},
        {"id": 9, "name": "dog"},
    ]
    for document in (train, val):
        document["categories"] += [{"id": 8, "name": "unseen"}, {"id": 10, "name": " Cat"}, {"id": 11, "name": "Dog"}]
    huge = PNG[:16] + (50_000).to_bytes(4, "big") * 2 + PNG[24:]
    middle = len(JPEG) // 2
    files = {
        "missing.jpg": None,
        "cut.jpg": JPEG[:middle],
        "hole.jpg": JPEG[:middle] + JPEG[-2:],
        "cut.png": PNG[:-200],
        "empty.jpg": b"",
        "text.jpg": b"<html>404</html>",
        "other-size.jpg": encoded(48, 64),
        "huge.png": huge,
        "transparent.png": saved(Image.fromarray(PIXELS).convert("RGBA"), "PNG"),
        "film.gif": saved(Image.fromarray(PIXELS), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))]),
        "really-a-png.jpg": encoded(extension=".png", seed=8),
        "black.png": cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes(),
        "again.jpg": encoded(seed=9),
        "val-4.jpg": encoded(seed=9),
        "test-1.jpg": encoded(seed=9),
        "darker.jpg": cv2.imencode(".png", cv2.imdecode(np.frombuffer(JPEG, np.uint8), 1) // 2)[1].tobytes(),
        "test-2.jpg": JPEG,
        "noisy.jpg": JPEG[:-2] + b"\x12\x34\x56" * 20 + JPEG[-2:],
    }
    folder = tmp_path_factory.mktemp("broken")
    write_ingested(folder / "ingested", documents, files)
    with pytest.raises(DataError) as caught:
        suite = rules_of_their_own(folder / "rules")
        validate(Validation(suite=suite), folder / "ingested", folder / "report", folder / "index")
    return folder, str(caught.value)


FOUND = [
    ("box-is-finite", "train", "train-1.jpg", 1, 901, "nan"),
    ("box-is-finite", "train", "train-1.jpg", 1, 902, "-inf"),
    ("box-width-is-positive", "train", "train-1.jpg", 1, 903, "[1, 1, 0, 5]"),
    ("box-height-is-positive", "train", "train-1.jpg", 1, 904, "[1, 1, 5, -3]"),
    ("box-is-inside-image", "train", "train-1.jpg", 1, 905, "1.5 pixels beyond the 64 x 48 image"),
    ("box-is-inside-image", "train", "train-1.jpg", 1, 906, "40 pixels beyond"),
    ("box-is-inside-image", "train", "train-1.jpg", 1, 907, "1e+300 pixels beyond"),
    ("annotation-image-is-known", "train", "annotations.json", 777, 908, "image_id 777"),
    ("annotation-category-is-known", "train", "train-1.jpg", 1, 909, "category_id 66"),
    ("annotation-id-is-unique", "train", "train-1.jpg", 1, 910, "occurs 2 times"),
    ("box-is-not-repeated", "train", "train-1.jpg", 1, 911, "[30, 30, 5, 5]"),
    ("box-is-not-tiny", "train", "train-1.jpg", 1, 913, "short side has 1.50 pixels"),
    ("box-is-not-a-line", "train", "train-1.jpg", 1, 914, "20.0 times as long as wide"),
    ("box-does-not-cover-everything", "train", "train-1.jpg", 1, 915, "covers 99.0%"),
    ("area-fits-the-box", "train", "train-1.jpg", 1, 916, "area 300 is 1.50 times"),
    ("image-id-is-unique", "train", "same-id.jpg", 1, None, "occurs 2 times"),
    ("image-file-is-unique", "train", "train-2.jpg", 51, None, "2 image records"),
    ("image-size-is-valid", "train", "no-size.jpg", 52, None, "nan x 0"),
    ("image-size-is-valid", "train", "half-size.jpg", 53, None, "64.5 x 48"),
    ("image-file-exists", "val", "missing.jpg", 60, None, "missing.jpg"),
    ("image-decodes", "val", "cut.jpg", 61, None, "truncated"),
    ("image-decodes", "val", "hole.jpg", 62, None, "filled in"),
    ("image-decodes", "val", "cut.png", 63, None, "truncated"),
    ("image-decodes", "val", "empty.jpg", 64, None, "empty"),
    ("image-decodes", "val", "text.jpg", 65, None, "not an image"),
    ("image-size-matches", "val", "other-size.jpg", 66, None, "annotated as 64 x 48, the file is 48 x 64"),
    ("image-decodes", "val", "huge.png", 67, None, "claims 50000 x 50000"),
    ("image-decodes-quietly", "val", "noisy.jpg", 68, None, "extraneous bytes"),
    ("image-is-plain-colour-or-grey", "val", "transparent.png", 69, None, "stored as RGBA"),
    ("image-has-one-frame", "val", "film.gif", 70, None, "several frames"),
    ("image-extension-fits", "val", "really-a-png.jpg", 71, None, "the content is PNG"),
    ("image-is-not-blank", "val", "black.png", 72, None, "brightness 0 everywhere"),
    ("image-is-not-repeated", "val", "again.jpg", 73, None, "the same bytes as val/val-4.jpg"),
    ("image-is-in-one-split", "val", "again.jpg", 73, None, "the same bytes as test/test-1.jpg"),
    ("image-is-in-one-split", "val", "val-4.jpg", 14, None, "the same bytes as test/test-1.jpg"),
    (
        "image-has-no-near-duplicate-in-another-split",
        "val",
        "darker.jpg",
        74,
        None,
        "nearly the same as test/test-2.jpg",
    ),
    ("category-name-is-clean", "train", "annotations.json", None, None, "category 10 is named ' Cat'"),
    (
        "category-name-differs-by-more-than-case",
        "train",
        "annotations.json",
        None,
        None,
        "'Dog' (category 11) and 'dog'",
    ),
    ("class-is-measured", "all", "annotations.json", None, None, "'unseen' (category 8) has no boxes in val and test"),
    ("class-has-enough-training-boxes", "all", "annotations.json", None, None, "'dog' (category 4) has 4"),
    ("category-id-is-unique", "test", "annotations.json", None, None, "category id 3 ('puma') occurs 2 times"),
    ("category-name-is-unique", "test", "annotations.json", None, None, "'dog' occurs 2 times (id 9)"),
    ("category-is-in-every-split", "all", "annotations.json", None, None, "3 'puma' is not listed in train, val"),
    ("category-is-in-every-split", "all", "annotations.json", None, None, "8 'unseen' is not listed in test"),
    ("class-has-training-boxes", "all", "annotations.json", None, None, "'unseen' (category 8) has 0"),
]


@pytest.mark.parametrize(
    "expected", FOUND, ids=[f"{found[0]}-{found[4] or found[3] or found[5][:6]}" for found in FOUND]
)
def test_a_bad_record_is_reported_by_file_and_id(broken, expected):
    rule, split, file, image_id, annotation_id, value = expected
    findings = json.loads((broken[0] / "report/findings.json").read_text())
    own = [
        finding
        for finding in findings
        if (finding["rule"], finding["split"], finding["file"]) == (rule, split, file)
        and (finding["image_id"], finding["annotation_id"]) == (image_id, annotation_id)
    ]
    assert any(value in finding["value"] for finding in own), own
    assert all(finding["action"] for finding in own)


def test_nothing_else_is_reported_and_the_counts_agree(broken):
    findings = json.loads((broken[0] / "report/findings.json").read_text())
    results = json.loads((broken[0] / "report/results.json").read_text())
    assert not results["success"]
    counted = {result["rule"]: result["unexpected_count"] for result in results["results"]}
    listed = Counter(finding["rule"] for finding in findings)
    assert {rule: count for rule, count in counted.items() if count} == dict(listed)
    assert 912 not in [finding["annotation_id"] for finding in findings], "inside the tolerance"
    sound = {f"{split}-3.jpg" for split in SPLITS}
    assert sound.isdisjoint(finding["file"] for finding in findings)
    covered = {found[0] for found in FOUND} | {"split-has-images", "split-has-boxes", "split-has-categories"} | FLAGGED
    missing = {rule.name for rule in RULES} - covered
    assert missing == COMPARISONS - covered, "every rule is seen to fail here, in test_drift or in test_flags"


def test_the_failure_is_one_line_that_names_rules_counts_and_first_records(broken):
    folder, message = broken
    assert "\n" not in message and str(folder / "report/index.html") in message
    assert "blocking rules do not hold" in message and "more rules" in message
    assert "category-id-is-unique (2 of 14)" in message
    assert not (folder / "index").exists()


class Page(HTMLParser):
    """Collects what a page would load, and checks that its tags pair up."""

    VOID = frozenset({"meta", "image", "rect", "circle", "br"})

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.counts: Counter[str] = Counter()

    def handle_starttag(self, tag, attrs):
        self.counts[tag] += 1
        self.loads += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.counts["script"] == page.counts["link"] == 0
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    assert not re.search(r"https?://|url\(|@import", text), "the page needs nothing from a network"
    return page


def test_the_page_of_a_failure_is_self_contained_and_shows_findings(broken):
    page = read_page(broken[0] / "report/index.html")
    text = (broken[0] / "report/index.html").read_text()
    assert page.counts["details"] == len({found[0] for found in FOUND})
    assert page.counts["circle"] >= 3, "boxes too small to be seen are circled"
    assert "Stopped" in text and "cut.jpg" in text and "What to do" in text


def test_sound_data_passes_is_indexed_and_reports_the_same_bytes_every_time(tmp_path):
    write_ingested(tmp_path / "ingested", sound_documents())
    assert run(tmp_path, sample_pictures=5) == []
    first = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    assert sorted(first) == ["dropped.json", "findings.json", "index.html", "results.json", "statistics.json"]
    for split in SPLITS:
        index = Index.open(tmp_path / "index" / split)
        assert len(index) == 4 and index.class_names == ("cat", "dog") and index.category_ids == (3, 4)
        assert index.image_path(0).is_file()
        assert np.array_equal(index.boxes(0), np.array([[4, 5, 24, 21.5], [5, 5, 25, 21.5]], np.float32))
    page = read_page(tmp_path / "report/index.html")
    assert page.counts["image"] == 5 and page.counts["rect"] == 10 and page.counts["svg"] == 5 + 5, "and 5 histograms"
    results = json.loads(first["results.json"])
    assert results["success"] and len(results["results"]) + len(results["skipped"]) == len(RULES)
    assert {one["rule"] for one in results["skipped"] if "reference.json" in one["reason"]} == {
        rule.name for rule in RULES if rule.needs == "reference"
    }
    run(tmp_path, sample_pictures=5)
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == first


def test_names_are_escaped_on_the_page(tmp_path):
    documents = sound_documents()
    for document in documents.values():
        document["categories"][0]["name"] = "<script>alert(1)</script>"
    documents["train"]["annotations"][0]["bbox"] = [0, 0, -1, 5]
    write_ingested(tmp_path / "ingested", documents)
    with pytest.raises(DataError, match="1 blocking rule does not hold: box-width-is-positive"):
        run(tmp_path, check_images=False)
    read_page(tmp_path / "report/index.html")


def test_a_failure_leaves_the_earlier_index_as_it_was(tmp_path):
    documents = sound_documents()
    write_ingested(tmp_path / "ingested", documents)
    run(tmp_path, check_images=False)
    before = (tmp_path / "index/train/index.json").read_bytes()
    documents["val"]["annotations"][0]["image_id"] = 404
    write_ingested(tmp_path / "ingested", documents)
    with pytest.raises(DataError, match=r"val/annotations\.json \(annotation 22, image 404\)"):
        run(tmp_path, check_images=False)
    assert (tmp_path / "index/train/index.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "ingested", "report", "rules"]


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_an_empty_split_is_refused(tmp_path, key):
    documents = sound_documents()
    for name in ("images", "annotations", "categories") if key == "images" else (key,):
        documents["val"][name] = []
    write_ingested(tmp_path / "ingested", documents)
    rule = {"images": "split-has-images", "annotations": "split-has-boxes", "categories": "split-has-categories"}[key]
    with pytest.raises(DataError, match=rule):
        run(tmp_path, check_images=False)


def test_an_index_of_labels_that_were_edited_since_is_refused(tmp_path, monkeypatch):
    """By the stages that measure or train, where one is run by hand; `dvc repro` makes the index again."""
    monkeypatch.chdir(tmp_path)
    documents = sound_documents()
    write_ingested(Path("data/ingested"), documents)
    index = Path("data/index")

    def made() -> None:
        suite = rules_of_their_own(tmp_path / "rules")
        validate(Validation(suite=suite, severity=FEW), Path("data/ingested"), tmp_path / "report", index)

    made()
    assert len(open_index("test")) == 4
    documents["test"]["annotations"][0]["category_id"] = 4
    write_ingested(Path("data/ingested"), documents)
    for split in ("train", "test"):
        with pytest.raises(DataError, match="data/ingested has changed since it was validated; run `dvc repro val"):
            open_index(split)
    made()
    assert len(open_index("test")) == 4
    (index / "dataset.json").unlink()  # as earlier revisions left it
    write_ingested(Path("data/ingested"), sound_documents())
    assert len(open_index("test")) == 4


def test_without_image_checks_pixels_are_not_judged_but_missing_files_are(tmp_path):
    files = {"train-1.jpg": JPEG[:100], "val-1.jpg": None}
    write_ingested(tmp_path / "ingested", sound_documents(), files)
    with pytest.raises(DataError, match="1 blocking rule does not hold: image-file-exists"):
        run(tmp_path, check_images=False)
    results = json.loads((tmp_path / "report/results.json").read_text())["results"]
    assert "image-decodes" not in [result["rule"] for result in results]
    assert "were skipped" in (tmp_path / "report/index.html").read_text()


def test_findings_are_limited_by_rule_and_the_count_stays_exact(tmp_path):
    documents = sound_documents()
    for annotation in documents["train"]["annotations"]:
        annotation["bbox"] = [0, 0, 0, 0]
    write_ingested(tmp_path / "ingested", documents)
    with pytest.raises(DataError, match=r"box-width-is-positive \(8 of 24\)"):
        run(tmp_path, check_images=False, max_findings=3)
    findings = json.loads((tmp_path / "report/findings.json").read_text())
    assert Counter(finding["rule"] for finding in findings)["box-width-is-positive"] == 3
    assert "first 3 of 8" in (tmp_path / "report/index.html").read_text()


def test_findings_of_a_rule_are_those_of_the_first_records():
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 10, "height": 10} for i in range(50)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 5, i % 3]} for i in range(50)]
    coco = CocoAnnotations(Path("a.json"), images, boxes, [{"id": 1, "name": "x"}])
    tables = made_tables(coco, 50)
    rules = [rule for rule in RULES if rule.table == "annotations" and rule.severity == "blocking"]
    outcomes = run_rules(tables, rules)
    failed = {outcome.rule.name: outcome.failures for outcome in outcomes if not outcome.passed}
    assert failed == {"box-height-is-positive": 51}
    findings = list_findings(tables, outcomes, limit=20, in_full=())
    assert [(finding.split, finding.annotation_id) for finding in findings] == [
        *[("train", i) for i in range(0, 50, 3)],
        *[("val", i) for i in (0, 3, 6)],
    ]
    assert len(list_findings(tables, outcomes, limit=20, in_full={"box-height-is-positive"})) == 51


def made_tables(coco: CocoAnnotations, images: int):
    checks = {split: [ImageCheck(exists=True)] * images for split in SPLITS}
    return make_tables(dict.fromkeys(SPLITS, coco), checks, Context())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": "box_widht"}, "box-width-is-positive: table annotations has no column 'box_widht' (did you mean"),
        ({"expectation": "expect_column_values_to_be_betwen"}, "has no 'expect_column_values_to_be_betwen' (did you"),
        ({"arguments": {"min_value": 0, "minimum": 1}}, "arguments do not fit expect_column_values_to_be_between"),
        ({"arguments": {"min_value": "a"}}, "box-width-is-positive"),
        ({"found": "{box_width.__class__}"}, "'box_width.__class__', which is not a column of annotations"),
        ({"found": "{box_width"}, "`found` is not a valid format string"),
        ({"found": "{file_name:.1f}"}, "`found` cannot show"),
        ({"expectation": "expect_table_row_count_to_equal", "arguments": {"value": 3}}, "box-width-is-positive"),
    ],
)
def test_a_rule_that_cannot_be_judged_is_named(change, message):
    images = [{"id": 1, "file_name": "1.jpg", "width": 10, "height": 10}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 5]}]
    tables = made_tables(CocoAnnotations(Path("a.json"), images, boxes, [{"id": 1, "name": "x"}]), 1)
    [rule] = [rule.model_copy(update=change) for rule in RULES if rule.name == "box-width-is-positive"]
    with pytest.raises(ConfigError) as caught:
        list_findings(tables, run_rules(tables, [rule]), limit=1, in_full=())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_expectation_about_a_whole_column_gives_one_finding():
    images = [{"id": 1, "file_name": "1.jpg", "width": 10, "height": 10}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 5]}]
    tables = made_tables(CocoAnnotations(Path("a.json"), images, boxes, [{"id": 1, "name": "x"}]), 1)
    mean = {"expectation": "expect_column_mean_to_be_between", "arguments": {"max_value": 3}}
    [rule] = [rule.model_copy(update=mean) for rule in RULES if rule.name == "box-width-is-positive"]
    outcomes = run_rules(tables, [rule])
    [finding] = list_findings(tables, outcomes, limit=9, in_full=())
    assert outcomes[0].failures == 1 and finding.value == "box_width of annotations: 4.0"


def test_image_checks_keep_the_order_over_many_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.validation.images._IMAGES_PER_PROCESS", 10)
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i}.png")
        if i % 7:
            paths[-1].write_bytes(encoded(20 + i, 10, ".png"))
    found = check_images(paths, decode=True)
    assert [check.width for check in found.checks] == [20 + i if i % 7 else None for i in range(40)]
    assert [check.exists for check in found.checks] == [bool(i % 7) for i in range(40)]


def test_no_image_is_decoded_twice(tmp_path, caplog):
    cache = tmp_path / "state/checks.sqlite"
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(seed=i))
    paths[5].write_bytes(JPEG[:200])
    paths.append(tmp_path / "none.jpg")
    first = check_images(paths, decode=True, cache=cache)
    again = check_images(paths, decode=True, cache=cache)
    assert (first.decoded, again.decoded) == (6, 0) and first.checks == again.checks

    moved = paths[0].rename(tmp_path / "moved.jpg")
    paths[1].write_bytes(encoded(seed=77))
    changed = check_images([moved, *paths[1:]], decode=True, cache=cache)
    assert changed.decoded == 1, "a file that moved is known, one that changed is not"
    assert [a == b for a, b in zip(first.checks, changed.checks, strict=True)] == [i != 1 for i in range(7)]

    cache.write_bytes(b"no database at all, but long enough to be read as one" * 100)
    assert check_images(paths[2:4], decode=True, cache=cache).decoded == 2
    assert "damaged" in caplog.text
    assert check_images(paths[2:4], decode=True, cache=cache).decoded == 0


def test_an_image_that_ends_its_worker_is_named_and_the_others_are_judged(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.validation.images.check_image", ends_with_the_file_named_bad)
    paths = [tmp_path / name for name in ("a.jpg", "bad.jpg", "c.jpg")]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(seed=i))
    checks = check_images(paths, decode=True).checks
    assert [check.defect is None for check in checks] == [True, False, True]
    assert "crashed" in checks[1].defect and checks[2].width == 64


def ends_with_the_file_named_bad(path: Path) -> ImageCheck:
    """In a worker: what a crash of the decoder looks like."""
    from stages.validation.images import check_image

    if path.name == "bad.jpg":
        os.kill(os.getpid(), signal.SIGSEGV)
    return check_image(path)


def test_bad_records_are_dropped_where_the_user_says_so(tmp_path):
    documents = sound_documents()
    train, val, _ = (documents[split] for split in SPLITS)
    train["annotations"][0]["bbox"] = [0, 0, 0, 5]
    train["annotations"][3] = {**train["annotations"][3], "category_id": 77}
    val["images"].append({"id": 99, "file_name": "cut.jpg", "width": 64, "height": 48})
    val["annotations"].append({"id": 500, "image_id": 99, "category_id": 3, "bbox": [1, 1, 5, 5]})
    write_ingested(tmp_path / "ingested", documents, {"cut.jpg": JPEG[:200]})
    findings = run(tmp_path, on_bad_record="drop")
    assert {(finding["rule"], finding["annotation_id"] or finding["image_id"]) for finding in findings} == {
        ("box-width-is-positive", 2),
        ("annotation-category-is-known", 5),
        ("image-decodes", 99),
    }
    assert all(finding["dropped"] for finding in findings)
    dropped = json.loads((tmp_path / "report/dropped.json").read_text())
    assert [(one["split"], one["kind"], one["id"], one["because"]) for one in dropped] == [
        ("train", "annotation", 2, ["box-width-is-positive"]),
        ("train", "annotation", 5, ["annotation-category-is-known"]),
        ("val", "image", 99, ["image-decodes"]),
        ("val", "annotation", 500, ["its image is left out"]),
    ]
    index = Index.open(tmp_path / "index/train")
    assert len(index) == 4 and index.num_boxes == 6 and 2 not in index.annotation_ids(0)
    assert len(Index.open(tmp_path / "index/val")) == 4
    statistics = json.loads((tmp_path / "report/statistics.json").read_text())
    assert statistics["splits"]["train"]["boxes"] == 6, "what is described is what is trained on"
    text = (tmp_path / "report/index.html").read_text()
    assert "Passed without 4 records" in text and "its image is left out" in text


def test_what_is_dropped_is_counted_by_reason_and_class_and_most_of_a_class_is_a_warning(tmp_path, caplog):
    documents = sound_documents()
    boxes = documents["train"]["annotations"]
    of_class = [box for box in boxes if box["category_id"] == boxes[0]["category_id"]]
    everywhere = [box for split in SPLITS for box in documents[split]["annotations"]]
    total = sum(box["category_id"] == boxes[0]["category_id"] for box in everywhere)
    extra = [{**of_class[0], "id": 900 + n, "bbox": [0, 0, 0, 5]} for n in range(total + 1)]
    documents["train"]["annotations"] = boxes + extra
    write_ingested(tmp_path / "ingested", documents)
    run(tmp_path, on_bad_record="drop")
    name = next(c["name"] for c in documents["train"]["categories"] if c["id"] == of_class[0]["category_id"])
    assert f"the index leaves out {len(extra)} of {len(everywhere) + len(extra)} objects:" in caplog.messages
    assert f"  {len(extra)} box-width-is-positive: {name} {len(extra)}" in caplog.messages
    assert any(
        line.startswith(f"class {name!r} loses {len(extra)} of {total + len(extra)} boxes") for line in caplog.messages
    )
    assert "Box-width-is-positive" in (tmp_path / "report/index.html").read_text()
    dropped = json.loads((tmp_path / "report/dropped.json").read_text())
    assert {one["class_name"] for one in dropped} == {name}


def test_dropping_does_not_hide_what_is_wrong_with_the_whole(tmp_path):
    documents = sound_documents()
    for annotation in documents["test"]["annotations"]:
        annotation["bbox"] = [0, 0, -1, 5]
    write_ingested(tmp_path / "ingested", documents)
    with pytest.raises(DataError, match=r"1 blocking rule does not hold: split-has-boxes \(1 of 3\): test"):
        run(tmp_path, on_bad_record="drop", check_images=False)
    findings = json.loads((tmp_path / "report/findings.json").read_text())
    assert Counter(finding["rule"] for finding in findings)["split-has-boxes"] == 1
    assert not (tmp_path / "index").exists()


def test_severity_by_params_and_what_is_off_is_not_judged(tmp_path):
    documents = sound_documents()
    documents["train"]["annotations"][0]["bbox"] = [50, 0, 40, 5]
    documents["train"]["annotations"][1]["bbox"] = [5, 5, 1, 8]
    write_ingested(tmp_path / "ingested", documents)
    lenient = yaml.safe_load("{box-is-inside-image: warning, box-is-not-tiny: off}")
    assert [finding["severity"] for finding in run(tmp_path, check_images=False, severity=lenient)] == ["warning"]
    with pytest.raises(DataError, match="box-is-not-tiny"):
        run(tmp_path, check_images=False, severity={"box-is-inside-image": "off", "box-is-not-tiny": "blocking"})
    with pytest.raises(ConfigError, match=r"severity: unknown rule 'box-is-tiny' \(did you mean 'box-is-not-tiny'\?\)"):
        run(tmp_path, check_images=False, severity={"box-is-tiny": "off"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "- {name: a-rule, severity: fatal}",
            "own.yaml: a-rule.severity: Input should be 'blocking', 'warning' or 'off'",
        ),
        ("- {name: a-rule, serverity: off}", "own.yaml: a-rule.serverity: unknown key (did you mean 'severity'?)"),
        ("rules: []", "own.yaml: a list of rules is expected"),
        ("- [", "own.yaml: not readable as YAML"),
        ("DUPLICATE", "box-is-finite: a rule of this name exists already"),
    ],
)
def test_an_invalid_suite_is_refused_by_file_and_field(tmp_path, text, message):
    folder = Path(rules_of_their_own(tmp_path / "rules"))
    [finite] = [rule for rule in RULES if rule.name == "box-is-finite"]
    (folder / "own.yaml").write_text(yaml.safe_dump([finite.model_dump()]) if text == "DUPLICATE" else text)
    with pytest.raises(ConfigError) as caught:
        read_suite(folder, {}, where="here")
    assert message in str(caught.value)


def test_no_suite_is_an_error():
    with pytest.raises(ConfigError, match="no folder with rules"):
        read_suite(Path("nowhere"), {}, where="here")
    chosen, skipped = choose(RULES, pixels=False, no_reference="none yet")
    assert {one.reason for one in skipped} == {"none yet", "needs decoded images, and validation.check_images is off"}
    assert len(chosen) + len(skipped) == len(RULES)


def test_the_command_prints_one_line_exits_with_2_and_writes_the_report(tmp_path):
    write_ingested(tmp_path / "data/ingested", sound_documents(), {"test-2.jpg": JPEG[:-300]})
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    rules_of_their_own(tmp_path / "validation")
    command = [sys.executable, "-m", "stages.validate"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: data/ingested: 1 blocking rule does"), done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / ".state/image-checks.sqlite").is_file()
    assert "image-decodes (1 of 12): test/test-2.jpg (image 22): the image is truncated" in done.stderr
    assert "reports/validation/index.html" in done.stderr and (tmp_path / "reports/validation/index.html").is_file()
    assert not (tmp_path / "data/index").exists()


@pytest.mark.skipif(not (SHARED / "raccoon").is_dir(), reason="../shared/data/raccoon is not here")
def test_real_photographs_pass_from_ingest_to_index(tmp_path):
    everything = json.loads((SHARED / "raccoon/raccoon_all.json").read_text())
    for split, name in (("train", "train_labels.csv"), ("val", "test_labels.csv")):
        with (SHARED / "raccoon" / name).open() as file:
            names = {row["filename"] for row in csv.DictReader(file)}
        images = [image for image in everything["images"] if image["file_name"] in names]
        ids = {image["id"] for image in images}
        annotations = [mark for mark in everything["annotations"] if mark["image_id"] in ids]
        part = {**everything, "images": images, "annotations": annotations}
        (tmp_path / f"{split}.json").write_text(json.dumps(part))
    folder = {"images": str(SHARED / "raccoon/images")}
    coco = {split: {**folder, "annotations": f"{split}.json"} for split in ("train", "val")}
    ingest(Data.model_validate({"source": "coco", "folder": str(tmp_path), "coco": coco}), tmp_path / "ingested")
    findings = run(tmp_path)
    assert {finding["rule"] for finding in findings} == {"image-is-not-repeated", "box-does-not-cover-everything"}
    assert "the same bytes as train/raccoon-52.jpg" in {finding["value"] for finding in findings}
    sizes = [len(Index.open(tmp_path / "index" / split)) for split in SPLITS]
    assert sizes == [160, 40, 40]
    assert Index.open(tmp_path / "index/train").num_boxes == 173
    photograph = next((tmp_path / "ingested/train/images").iterdir())
    assert photograph.read_bytes() == (SHARED / "raccoon/images" / photograph.name).read_bytes()
