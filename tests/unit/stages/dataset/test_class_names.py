"""Names of classes with line breaks, control characters and formulas, from ingest to the tables."""

from __future__ import annotations

import csv
import io
import json

import cv2
import numpy as np
import pytest

from flows.markdown import table
from stages.ingest import ingest
from stages.project.params_data import Data
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.data.sources.class_names import with_plain_names
from yolov7.data.sources.image_set import ImageSet
from yolov7.errors import DataError
from yolov7.evaluate.curves import curves_from, write_curves
from yolov7.export.model_card import _classes

NAMES = ["=1+cmd|' /C calc'!A0", "red\x1b[31m", "two\nlines", "\u202ebackwards", "plain"]
PLAIN = ["=1+cmd|' /C calc'!A0", "red\\x1b[31m", "two lines", "\\u202ebackwards", "plain"]


def annotations(names, path):
    return CocoAnnotations(
        path=path,
        images=[{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
        annotations=[
            {"id": n, "image_id": 1, "category_id": n, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
            for n in range(1, len(names) + 1)
        ],
        categories=[{"id": n, "name": name} for n, name in enumerate(names, 1)],
    )


def test_names_are_made_plain_with_a_note(tmp_path):
    coco = annotations(NAMES, tmp_path / "a.json")
    found = with_plain_names({"train": ImageSet(coco, tmp_path, "data.coco.train")})["train"]
    assert [category["name"] for category in found.coco.categories] == PLAIN
    assert len(found.notes) == 1
    assert "3 class names" in found.notes[0]
    assert found.notes[0].isprintable()


def test_plain_names_are_left_alone(tmp_path):
    sets = {"train": ImageSet(annotations(["knife, kitchen", "=x", "日本　語"], tmp_path), tmp_path, "k")}
    assert with_plain_names(sets)["train"] is sets["train"]


@pytest.mark.parametrize("other", ["cafe\u0301", "Caf\u00e9", "caf\u00e9 "])
def test_names_that_look_alike_are_noted_within_a_set_and_across(tmp_path, other):
    def sets(*groups):
        return {str(n): ImageSet(annotations(names, tmp_path), tmp_path, "k") for n, names in enumerate(groups)}

    for given in (sets(["caf\u00e9", other]), sets(["caf\u00e9"], [other])):
        (note,) = with_plain_names(given)["0"].notes
        assert "'caf\\xe9'" in note and ascii(other) in note


def test_names_that_become_equal_are_refused(tmp_path):
    coco = annotations(["a b", "a\nb"], tmp_path / "a.json")
    with pytest.raises(DataError, match="a b"):
        with_plain_names({"train": ImageSet(coco, tmp_path, "k")})


def test_ingest_keeps_no_control_character(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.jpg"), np.zeros((30, 40, 3), np.uint8))
    coco = annotations(NAMES, tmp_path)
    document = {"images": coco.images, "annotations": coco.annotations, "categories": coco.categories}
    (tmp_path / "a.json").write_text(json.dumps(document))
    split = {"images": "images", "annotations": "a.json"}
    data = Data(source="coco", folder=str(tmp_path), coco={"train": split, "val": split})
    ingest(data, tmp_path / "out")
    said = json.loads((tmp_path / "out/dataset.json").read_text())
    assert said["classes"] == PLAIN
    assert any("control characters" in note for note in said["notes"])


def test_an_index_of_earlier_data_is_read_plain(tmp_path):
    assert list(build_index(annotations(NAMES, tmp_path), tmp_path, tmp_path / "index").class_names) == PLAIN


def test_tables_of_curves_are_defused_and_read_back(tmp_path):
    shape = (10, 101, len(NAMES))
    write_curves(tmp_path / "c.csv", curves_from(np.ones(shape), np.ones(shape), NAMES))
    rows = list(csv.reader(io.StringIO((tmp_path / "c.csv").read_text(), newline="")))
    names = list(dict.fromkeys(row[0] for row in rows[1:]))
    assert names == ["all", "'" + PLAIN[0], *PLAIN[1:]]
    assert all(len(row) == 4 for row in rows)


def test_markdown_of_cards_and_pages_begins_nothing():
    names = ["<img src=x onerror=alert(1)>", "[x](http://evil)", "a|b", "line\n# heading", "`code`"]
    text = _classes(names, list(range(5)))
    assert "<img" not in text
    assert "](" not in text.replace("\\]", "")
    assert "\n" not in text
    row = table(("name",), [(name,) for name in names])
    assert len(row) == 2 + len(names)
    assert not any("<img" in line or "[x](" in line.replace("\\[", "") for line in row)
