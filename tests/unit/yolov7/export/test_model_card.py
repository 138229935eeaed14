"""The model card says what the folder's own files say, and nothing in a class name breaks its tables."""

from __future__ import annotations

import json

import pytest

from yolov7.export.model_card import model_card


def test_a_card_says_how_a_yolov6_is_read(exported_yolov6):
    description, formats = (
        json.loads((exported_yolov6 / name).read_text()) for name in ("model.json", "optional/formats.json")
    )
    card = model_card(description, {"images": [], "forms": {}}, formats)
    for text in (
        "# small-efficient, 3 classes",
        "sides multiples of 32; trained at 96 pixels",
        "x1, y1, x2, y2, 3 class probabilities; boxes in pixels of the input; score = class probability",
    ):
        assert text in card, text
    assert "anchor" not in card and "objectness" not in card


def test_a_card_has_the_facts_of_the_folder(exported):
    description = json.loads((exported / "model.json").read_text())
    description |= {"git_revision": "abc123", "run_id": "run7", "data_sha256": "d" * 64, "licence": "Apache-2.0 (code)"}
    description["class_names"] = ["kind 0", "a | b\nc", "kind 2"]
    form = {
        "ap": 0.5, "trained_ap": 0.51, "max_raw_difference": 1e-6, "max_box_difference": 2e-4, "passed": True,
        "detections": {"unmatched_share": 0.01},
    }  # fmt: skip
    without = {**form, "max_raw_difference": None, "max_box_difference": None, "passed": False}
    formats = json.loads((exported / "optional/formats.json").read_text())
    assert formats["formats"] == ["openvino", "openvino-float16", "onnx-raw"]
    formats["int8"] = {
        "onnx-int8": {
            "kept_in_float": ["node_7"], "steps": [{"in_float": 0, "AP": 0.4}, {"in_float": 1, "AP": 0.5}], "layers": 6,
            "float_ap": 0.503, "ap": 0.5, "calibration_images": 64, "validation_images": 100,
        },
        "openvino-int8": {
            "file": "openvino-int8.xml", "kept_in_float": [], "steps": [{"in_float": 0, "AP": 0.51}], "layers": 6,
            "float_ap": 0.503, "ap": 0.51, "calibration_images": 64, "validation_images": 100, "method": "entropy",
            "trained": True,
        },
    }  # fmt: skip
    parts = {"optional/openvino-int8.xml": 1_000_000, "optional/openvino-int8.bin": 5_250_000}
    description["files"] |= {name: {"bytes": size, "sha256": "0" * 64} for name, size in parts.items()}
    card = model_card(description, {"images": [1, 2], "forms": {"onnx": form, "onnx-nms": without}}, formats)
    for text in (
        "# small, 3 classes\n\nA detector, trained and exported by",
        f"| `model.onnx` | {description['files']['model.onnx']['bytes']:,} | "
        f"`{description['files']['model.onnx']['sha256']}` |",
        "| `optional/openvino.bin` |",
        "| git revision | abc123 |",
        "| MLflow run | run7 |",
        "| training data, sha256 | dddd",
        "| licence | Apache-2.0 (code) |",
        "confidence 0.2, IoU 0.5, at most 20 detections",
        "RGB in 0 to 1, sides multiples of 8; trained at 96 pixels",
        "| onnx | 0.5000 | 0.5100 | 1.0e-06 | 2.0e-04 | 1.0 % | yes |",
        "| onnx-nms | 0.5000 | 0.5100 |  |  | 1.0 % | NO |",
        "On 2 validation images",
        "Of 6 layers kept in float: `node_7`. Steps: 0 in float: AP 0.4000; 1 in float: AP 0.5000.",
        f"| `model.onnx` | ONNX Runtime | {description['files']['model.onnx']['bytes'] / 1e6:.1f} | 0.5030 |  |",
        "| `model-int8.onnx` | ONNX Runtime |  | 0.5000 | -0.0030 |",
        "| `openvino-int8.xml` | OpenVINO | 6.2 | 0.5100 | +0.0070 |",
        "`model-int8.onnx`: post-training, ranges on 64 training images; AP on 100 validation images.",
        "`openvino-int8.xml`: quantisation-aware training; other ranges by entropy on 64 training images",
        "Of 6 layers none kept in float. Steps: 0 in float: AP 0.5100.",
        "* `model-nms.onnx`: no problems found",
        "0 kind 0, 1 a \\| b c, 2 kind 2. Category ids: 10 to 12.",
    ):
        assert text in card, text


@pytest.mark.parametrize(
    ("family", "name"), [("yolov7", "YOLOv7"), ("yolov9", "YOLOv9 and GELAN"), ("yolov6", "YOLOv6")]
)
def test_a_thousand_classes_do_not_fill_the_card(exported, family, name):
    description = json.loads((exported / "model.json").read_text())
    description |= {"class_names": [f"kind {i}" for i in range(1000)], "category_ids": list(range(1000))}
    assert description["family"] is None, "a network of the user's own"
    card = model_card(description | {"family": family}, {"images": [], "forms": {}}, {})
    assert f"A detector of the {name} family, trained and exported by" in card
    assert "# small, 1000 classes" in card and "99 kind 99, and 900 more in `model.json`" in card
    assert "## Int8" not in card and "kind 100" not in card


def test_published_weights_and_their_licence_stand_in_the_card(exported):
    description = json.loads((exported / "model.json").read_text())
    assert "published weights" not in model_card(description, {"images": [], "forms": {}}, {})
    origin = {"address": "https://github.com/a/b.pt", "sha256": "ab" * 32, "licence": "GPL-3.0"}
    started = description | {"extra": {"published_weights": origin}}
    card = model_card(started, {"images": [], "forms": {}}, {})
    assert f"| published weights | https://github.com/a/b.pt, GPL-3.0, {'ab' * 32} |" in card
    assert "published weights" not in model_card(
        started | {"extra": {"published_weights": 3}}, {"images": [], "forms": {}}, {}
    )
