"""Detections as other tools take them: COCO, supervision, a notebook."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from small_detector import pictures

from yolov7.data.formats.coco import read_coco
from yolov7.detections import Detections
from yolov7.errors import ConfigError
from yolov7.nms import Thresholds
from yolov7.predict import TiledPredictor, load_detector
from yolov7.predict.notebook import detector_table, show

NAMES = ("cat", "<script>alert(1)</script>", "dog & co")
HOSTILE = NAMES[1]


def found(count: int = 2, names: tuple[str, ...] = NAMES) -> Detections:
    boxes = torch.tensor([[10.0, 20.0, 30.5, 60.25], [0.0, 0.0, 5.0, 5.0]])[:count]
    return Detections(boxes, torch.tensor([0.9, 0.4])[:count], torch.tensor([1, 2])[:count], names)


def test_coco_records_are_read_by_our_reader_and_by_pycocotools(tmp_path):
    records = [*found().to_coco(3, category_ids=(7, 9, 11)), *found().to_coco(4, category_ids=(7, 9, 11), first_id=3)]
    assert [record["id"] for record in records] == [1, 2, 3, 4]
    categories = [{"id": number, "name": name} for number, name in zip((7, 9, 11), NAMES, strict=True)]
    images = [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 64} for number in (3, 4)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"images": images, "annotations": records, "categories": categories}))
    read = read_coco(file)
    assert read.annotations == records and read.categories == categories
    assert records[0]["bbox"] == [10.0, 20.0, 20.5, 40.25] and records[0]["category_id"] == 9
    assert records[0]["score"] == 0.9 and records[0]["area"] == pytest.approx(20.5 * 40.25, abs=1e-3)
    results = COCO(str(file)).loadRes(records)
    assert [one["score"] for one in results.loadAnns(results.getAnnIds(imgIds=[4]))] == [0.9, 0.4]


def test_categories_are_those_of_the_model_unless_others_are_given():
    known = replace(found(), category_ids=(7, 9, 11))
    assert [record["category_id"] for record in known.to_coco(1)] == [9, 11]
    assert [record["category_id"] for record in known.to_coco(1, category_ids=(3, 2, 1))] == [2, 1]


def test_without_category_ids_the_class_numbers_count():
    assert [record["category_id"] for record in found().to_coco(1)] == [1, 2]
    assert found(0).to_coco(1) == []


@dataclass
class Recorded:
    """The fields of supervision.Detections that we fill."""

    xyxy: np.ndarray
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict[str, Any]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_supervision_is_handed(monkeypatch, count):
    module = type(sys)("supervision")
    module.Detections = Recorded
    monkeypatch.setitem(sys.modules, "supervision", module)
    check_supervision(found(count), count)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_supervision_itself_takes_it(count):
    supervision = pytest.importorskip("supervision")
    made = found(count).to_supervision()
    assert isinstance(made, supervision.Detections) and len(made) == count
    check_supervision(found(count), count)
    assert made[made.confidence > 0.5].data["class_name"].tolist() == [HOSTILE][:count]


def check_supervision(ours: Detections, count: int) -> None:
    made = ours.to_supervision()
    assert made.xyxy.shape == (count, 4) and made.xyxy.dtype == np.float32
    assert made.confidence.tolist() == ours.scores.tolist() and made.class_id.tolist() == ours.labels.tolist()
    assert made.data["class_name"].tolist() == [NAMES[label] for label in ours.labels.tolist()]
    made.xyxy[:] = -1  # an array of its own: supervision's tools change theirs in place
    assert not (ours.boxes == -1).any()


def test_without_supervision_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="pip install supervision"):
        found().to_supervision()


def test_a_notebooks_table_escapes_names():
    page = found()._repr_html_()
    assert "<script" not in page and "&lt;script&gt;" in page and "dog &amp; co" in page
    table = ElementTree.fromstring(f"<div>{page}</div>")
    rows = [[cell.text for cell in row] for row in table.iter("tr")]
    assert rows[0] == ["class", "score", "x1", "y1", "x2", "y2"]
    assert rows[1] == [HOSTILE, "0.900", "10.0", "20.0", "30.5", "60.2"]
    assert table.find("p").text == "2 detections"


def test_a_long_table_is_cut_and_says_so():
    many = Detections(torch.zeros(60, 4), torch.full((60,), 0.5), torch.zeros(60, dtype=torch.int64))
    page = many._repr_html_()
    assert page.count("<tr>") == 51 and "60 detections, the best 50 shown" in page and "<td>0</td>" in page


def test_a_picture_with_detections_for_a_notebook():
    image = np.full((80, 100, 3), 128, np.uint8)
    shown = show(image, found())
    picture = cv2.imdecode(np.frombuffer(shown._repr_png_(), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert (picture == shown.picture).all() and max(picture.shape) >= 640
    grey = (picture.max(axis=2) - picture.min(axis=2)) < 10
    assert 0.5 < grey.mean() < 1, "boxes are drawn in colour"
    assert (image == 128).all(), "the image itself is left alone"
    page = shown._repr_html_()
    assert page.startswith('<img src="data:image/png;base64,') and "&lt;script&gt;" in page and "<script" not in page


def test_a_detector_states_classes_and_categories_with_and_without_tiles(exported):
    detector = load_detector(exported, confidence=0.01)
    ids = tuple(detector.metadata.category_ids)
    for predictor in (detector, TiledPredictor(detector, overlap=0.25)):
        (some,) = predictor.predict(pictures(1))
        assert len(some) and some.category_ids == ids
        assert [one["category_id"] for one in some.to_coco(1)] == [ids[label] for label in some.labels.tolist()]
        assert set(some.names) <= set(detector.metadata.class_names)


def test_a_detector_in_a_notebook(exported):
    detector = load_detector(exported, confidence=0.3)
    page = detector._repr_html_()
    table = ElementTree.fromstring(page)
    facts = {row[0].text: row[1].text for row in table.iter("tr")}
    assert facts["variant"] == "small" and facts["confidence"] == "0.3" and facts["input"] == "96 x 96 pixels"
    assert facts["classes"].startswith(f"{detector.metadata.num_classes}: {detector.metadata.class_names[0]}")
    assert facts["file"] == str(exported / "model.onnx")
    torch_detector = load_detector(exported / "model.safetensors")
    assert "a network in memory" in torch_detector._repr_html_()


def test_a_detectors_names_are_escaped_in_a_notebook(exported):
    metadata = replace(load_detector(exported).metadata, variant="<b>", num_classes=3, class_names=NAMES)
    page = detector_table(metadata, Thresholds(0.25, 0.45), (96, 96), "/a/<i>.onnx")
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    facts = {row[0].text: row[1].text for row in ElementTree.fromstring(page).iter("tr")}
    assert facts["classes"] == f"3: {', '.join(NAMES)}" and facts["file"] == "/a/<i>.onnx"


def test_predicted_detections_know_their_names(exported):
    detector = load_detector(exported, confidence=0.3)
    (image,) = pictures(1)
    (detections,) = detector.predict(image)
    names = detector.metadata.class_names
    assert len(detections) and detections.names == [names[label] for label in detections.labels.tolist()]
    shown = detector.show(image)
    assert shown.detections.scores.tolist() == detections.scores.tolist()
