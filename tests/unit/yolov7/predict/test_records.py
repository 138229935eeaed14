"""Files for labelling tools: what they document, for any name."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from urllib.parse import unquote

import pytest
import torch

from yolov7.data.formats.coco import read_coco
from yolov7.detections import Detections
from yolov7.model.checkpoint import ModelMetadata
from yolov7.predict.records import (
    WRITERS,
    About,
    write_coco,
    write_cvat,
    write_label_config,
    write_label_studio,
)

NAMES = ("cat", "a \"b\" <c> & 'd'", "grün")
CATEGORY_IDS = (4, 9, 2)
FILES = ("a.png", 'sub/ü & "b" <1>.jpg', "odd\x1b[31m\n.png")
SIZES = ((100, 50), (37, 41), (8, 8))


@pytest.fixture
def about() -> About:
    metadata = ModelMetadata(
        variant="small", num_classes=3, class_names=NAMES, category_ids=CATEGORY_IDS, image_size=96, form="deploy"
    )
    return About(metadata, 0.3, 0.45)


def records():
    """Two images with detections and one without."""
    boxes = torch.tensor([[10.0, 20.0, 30.5, 41.0], [0.0, 0.0, 5.0, 5.0]])
    detections = Detections(boxes, torch.tensor([0.9, 0.5]), torch.tensor([1, 2]))
    nothing = Detections(boxes[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    for number, (name, (width, height)) in enumerate(zip(FILES, SIZES, strict=True), 1):
        image = {"id": number, "file_name": name, "width": width, "height": height}
        some = detections if number < 3 else nothing
        yield {"image": image, "annotations": some.to_coco(number, category_ids=CATEGORY_IDS, first_id=2 * number - 1)}


def written(write, about: About) -> bytes:
    file = io.BytesIO()
    write(file, about, records)
    assert not file.closed
    return file.getvalue()


def test_coco_is_read_by_our_own_reader(about, tmp_path):
    (tmp_path / "a.json").write_bytes(written(write_coco, about))
    read = read_coco(tmp_path / "a.json")
    assert read.images == [record["image"] for record in records()]
    assert read.annotations == [found for record in records() for found in record["annotations"]]
    assert {one["id"]: one["name"] for one in read.categories} == dict(zip(CATEGORY_IDS, NAMES, strict=True))


def test_cvat_for_images(about):
    root = ElementTree.fromstring(written(write_cvat, about))
    assert root.tag == "annotations" and root.find("version").text == "1.1"
    assert [label.find("name").text for label in root.findall("meta/task/labels/label")] == list(NAMES)
    images = root.findall("image")
    assert [image.get("name") for image in images] == [*FILES[:2], "odd\\x1b[31m .png"]
    assert [image.get("id") for image in images] == ["0", "1", "2"]
    assert [(int(image.get("width")), int(image.get("height"))) for image in images] == list(SIZES)
    assert [len(image) for image in images] == [2, 2, 0]
    first, second = images[0]
    assert first.attrib == {
        "label": NAMES[1], "source": "auto", "occluded": "0",
        "xtl": "10.0", "ytl": "20.0", "xbr": "30.5", "ybr": "41.0", "z_order": "0",
    }  # fmt: skip
    assert second.get("label") == NAMES[2]


def test_label_studio_tasks_fit_their_labelling_interface(about):
    tasks = json.loads(written(write_label_studio, about))
    config = ElementTree.fromstring(written(write_label_config, about))
    (picture,), (control,) = config.findall("Image"), config.findall("RectangleLabels")
    assert picture.get("value") == "$image" and control.get("toName") == picture.get("name")
    assert [label.get("value") for label in control] == list(NAMES)
    assert len(tasks) == 3
    for task, record in zip(tasks, records(), strict=True):
        address, _, name = task["data"]["image"].partition("?d=")
        assert address == "/data/local-files/" and unquote(name) == record["image"]["file_name"]
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "small" and 0 <= prediction["score"] <= 1
        assert len(prediction["result"]) == len(record["annotations"])
        assert len({region["id"] for region in prediction["result"]}) == len(record["annotations"])
        width, height = record["image"]["width"], record["image"]["height"]
        for region, found in zip(prediction["result"], record["annotations"], strict=True):
            assert (region["from_name"], region["to_name"]) == (control.get("name"), picture.get("name"))
            assert region["type"] == "rectanglelabels" and region["score"] == found["score"]
            assert (region["original_width"], region["original_height"]) == (width, height)
            value = region["value"]
            assert value["rectanglelabels"] == [NAMES[CATEGORY_IDS.index(found["category_id"])]]
            sides = [value["x"] * width, value["y"] * height, value["width"] * width, value["height"] * height]
            assert [side / 100 for side in sides] == pytest.approx(found["bbox"], abs=1e-3)


def test_names_that_xml_cannot_hold_are_the_same_in_tasks_and_interfaces(about):
    names = ("a\x00\x1b[31m\n\u202eb", "\ud800\ufffe\uffff", "  c")
    odd = About(replace(about.metadata, class_names=names), 0.3, 0.45)
    labels = ElementTree.fromstring(written(write_label_config, odd)).find("RectangleLabels")
    shown = [label.get("value") for label in labels]
    assert shown == ["a\\x00\\x1b[31m \\u202eb", "\\ud800\\ufffe\\uffff", "  c"]
    used = {name for task in json.loads(written(write_label_studio, odd)) for region in task["predictions"][0]["result"]
            for name in region["value"]["rectanglelabels"]}  # fmt: skip
    assert used == set(shown[1:])
    cvat = ElementTree.fromstring(written(write_cvat, odd))
    assert [label.find("name").text for label in cvat.findall("meta/task/labels/label")] == shown
    assert {box.get("label") for box in cvat.iter("box")} == set(shown[1:])


@pytest.mark.parametrize("format", WRITERS)
def test_a_job_without_images_is_a_valid_file(about, format):
    for name, write in WRITERS[format].items():
        file = io.BytesIO()
        write(file, about, lambda: iter(()))
        if name.endswith(".xml"):
            assert ElementTree.fromstring(file.getvalue()).findall("image") == []
        elif name.endswith(".json"):
            assert json.loads(file.getvalue()) == []
        else:
            assert file.getvalue().count(b"\n") == 1
