"""Validation: every kind of bad record is found by file and id, good data is indexed, the report is self-contained."""

import csv
import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from stages.ingest import ingest
from stages.ingested import SourceReport, describe
from stages.params import Data, Validation
from stages.validate import validate
from stages.validation.check import run_rules
from stages.validation.images import ImageCheck, check_images
from stages.validation.rules import BORDER_TOLERANCE, RULES
from stages.validation.tables import make_tables
from yolov7.data.coco import CocoAnnotations
from yolov7.data.index import Index
from yolov7.errors import DataError
from yolov7.files import write_json

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
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
            content = (files or {}).get(image["file_name"], encoded())
            if content is not None:
                (folder / split / "images" / image["file_name"]).write_bytes(content)
    write_json(folder / "dataset.json", describe(folder, "coco", SourceReport()))
    return folder


def run(tmp_path: Path, **parameters) -> list[dict]:
    """Validate `tmp_path/ingested`; the findings."""
    try:
        validate(Validation(**parameters), tmp_path / "ingested", tmp_path / "report", tmp_path / "index")
    finally:
        findings = json.loads((tmp_path / "report/findings.json").read_text())
    return findings


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
        {"id": 912, **box, "bbox": [60, 40, 4 + BORDER_TOLERANCE, 8 + BORDER_TOLERANCE]},  # within the tolerance
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
            ]
        )
    ]
    test["categories"] = [
        {"id": 3, "name": "cat"},
        {"id": 3, "name": "puma"},
        {"id": 4, "name": "dog"},
        {"id": 9, "name": "dog"},
    ]
    train["categories"] += [{"id": 8, "name": "unseen"}]
    val["categories"] += [{"id": 8, "name": "unseen"}]
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
        "noisy.jpg": JPEG[:-2] + b"\x12\x34\x56" * 20 + JPEG[-2:],
    }
    folder = tmp_path_factory.mktemp("broken")
    write_ingested(folder / "ingested", documents, files)
    with pytest.raises(DataError) as caught:
        validate(Validation(), folder / "ingested", folder / "report", folder / "index")
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
    sound = {f"{split}-{i}.jpg" for split in SPLITS for i in (3, 4)}
    assert sound.isdisjoint(finding["file"] for finding in findings)
    covered = {found[0] for found in FOUND} | {"split-has-images", "split-has-boxes", "split-has-categories"}
    assert covered == {rule.name for rule in RULES}, "every rule is seen to fail in these tests"


def test_the_failure_is_one_line_that_names_rules_counts_and_first_records(broken):
    folder, message = broken
    assert "\n" not in message and str(folder / "report/index.html") in message
    assert "blocking rules do not hold" in message and "more rules" in message
    assert "category-id-is-unique (2 of 10)" in message
    assert not (folder / "index").exists()


class Page(HTMLParser):
    """Collects what a page would load, and checks that its tags pair up."""

    VOID = frozenset({"meta", "image", "rect"})

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
    assert "Stopped" in text and "cut.jpg" in text and "What to do" in text


def test_sound_data_passes_is_indexed_and_reports_the_same_bytes_every_time(tmp_path):
    write_ingested(tmp_path / "ingested", sound_documents())
    assert run(tmp_path, sample_pictures=5) == []
    first = {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()}
    assert sorted(first) == ["findings.json", "index.html", "results.json"]
    for split in SPLITS:
        index = Index.open(tmp_path / "index" / split)
        assert len(index) == 4 and index.class_names == ("cat", "dog") and index.category_ids == (3, 4)
        assert index.image_path(0).is_file()
        assert np.array_equal(index.boxes(0), np.array([[4, 5, 24, 21.5], [5, 5, 25, 21.5]], np.float32))
    page = read_page(tmp_path / "report/index.html")
    assert page.counts["svg"] == 5 and page.counts["rect"] == 10
    results = json.loads(first["results.json"])
    assert results["success"] and len(results["results"]) == len(RULES)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "ingested", "report"]


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_an_empty_split_is_refused(tmp_path, key):
    documents = sound_documents()
    for name in ("images", "annotations", "categories") if key == "images" else (key,):
        documents["val"][name] = []
    write_ingested(tmp_path / "ingested", documents)
    rule = {"images": "split-has-images", "annotations": "split-has-boxes", "categories": "split-has-categories"}[key]
    with pytest.raises(DataError, match=rule):
        run(tmp_path, check_images=False)


def test_without_image_checks_pixels_are_not_judged_but_missing_files_are(tmp_path):
    files = {"train-1.jpg": JPEG[:100], "val-1.jpg": None}
    write_ingested(tmp_path / "ingested", sound_documents(), files)
    with pytest.raises(DataError, match="1 blocking rule does not hold: image-file-exists"):
        run(tmp_path, check_images=False)
    results = json.loads((tmp_path / "report/results.json").read_text())["results"]
    assert "image-decodes" not in [result["rule"] for result in results]
    assert "were not judged" in (tmp_path / "report/index.html").read_text()


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


def test_many_failures_are_listed_from_the_top(monkeypatch):
    monkeypatch.setattr("stages.validation.check._PIECE", 7)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 10, "height": 10} for i in range(50)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 5, i % 3]} for i in range(50)]
    coco = CocoAnnotations(Path("a.json"), images, boxes, [{"id": 1, "name": "x"}])
    splits = dict.fromkeys(SPLITS, coco)
    tables = make_tables(splits, {split: [ImageCheck(exists=True)] * 50 for split in SPLITS})
    outcomes, findings = run_rules(tables, [rule for rule in RULES if not rule.needs_pixels], max_findings=20)
    failed = {outcome.rule.name: outcome.failures for outcome in outcomes if not outcome.passed}
    assert failed == {"box-height-is-positive": 51}
    assert [(finding.split, finding.annotation_id) for finding in findings] == [
        *[("train", i) for i in range(0, 50, 3)],
        *[("val", i) for i in (0, 3, 6)],
    ]


def test_a_rule_about_a_column_there_is_not_is_a_defect_and_no_finding():
    coco = CocoAnnotations(Path("a.json"), [], [], [])
    tables = make_tables(dict.fromkeys(SPLITS, coco), {split: [] for split in SPLITS})
    rule = replace(RULES[0], column="nowhere")
    with pytest.raises(RuntimeError, match="split-has-images could not be judged"):
        run_rules(tables, [rule], max_findings=1)


def test_image_checks_keep_the_order_over_many_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.validation.images._IMAGES_PER_WORKER", 10)
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i}.png")
        if i % 7:
            paths[-1].write_bytes(encoded(20 + i, 10, ".png"))
    checks = check_images(paths, decode=True)
    assert [check.width for check in checks] == [20 + i if i % 7 else None for i in range(40)]
    assert [check.exists for check in checks] == [bool(i % 7) for i in range(40)]


def test_the_command_prints_one_line_exits_with_2_and_writes_the_report(tmp_path):
    write_ingested(tmp_path / "data/ingested", sound_documents(), {"test-2.jpg": JPEG[:-300]})
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "stages.validate"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
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
    assert run(tmp_path) == []
    sizes = [len(Index.open(tmp_path / "index" / split)) for split in SPLITS]
    assert sizes == [160, 40, 40]
    assert Index.open(tmp_path / "index/train").num_boxes == 173
    photograph = next((tmp_path / "ingested/train/images").iterdir())
    assert photograph.read_bytes() == (SHARED / "raccoon/images" / photograph.name).read_bytes()
