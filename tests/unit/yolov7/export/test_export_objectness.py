"""Exports of YOLOv6 with objectness: the decoded file, the one with suppression, and the raw maps."""

import pytest
import torch
from small_detector import metadata_of
from small_efficient import small_efficient, trained_efficient

from tests.unit.yolov7.export.test_export_aligned import FILES, expected_of, random_batch
from yolov7.export import export_folder
from yolov7.nms import Thresholds, select
from yolov7.predict import open_onnx
from yolov7.predict.load import open_runtime

SCORE = "objectness x class probability"
CLASSES = 3
FORMS = [form for form in FILES if not form.endswith("float16")]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The model and the folder of its files, each of which the export has verified."""
    model = trained_efficient(small_efficient(objectness=True), CLASSES)
    with torch.no_grad():
        for branch in model.head.lead:
            branch.object_output.conv.bias.fill_(1.0)
            branch.class_output.conv.bias.fill_(-1.0)
    folder = tmp_path_factory.mktemp("objectness")
    thresholds = {"confidence": 0.2, "iou": 0.5, "max_detections": 20}
    export_folder(model, folder, metadata=metadata_of(model), formats=("openvino", "onnx-raw"), **thresholds)
    return model, folder


@pytest.mark.parametrize("form", FORMS)
def test_every_file_gives_what_pytorch_gives(case, form):
    model, folder = case
    batch = random_batch(2, 64, 96)
    expected = expected_of(model, batch)
    runtime = open_runtime(folder / FILES[form])
    found = runtime.decoded(batch).cpu()
    assert runtime.scoring == SCORE
    assert found.shape == expected.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 5 + CLASSES)
    difference = (found - expected).abs()
    assert difference[..., :4].max() < 5e-3 and difference[..., 4:].max() < 5e-5
    assert expected[..., 4].std() > 0.02 and expected[..., 5:].std() > 0.02


def test_suppression_inside_gives_what_select_gives(case):
    _, folder = case
    batch = random_batch(2, 64, 96)
    decoded = open_onnx(folder / "model.onnx").decoded(batch)
    expected = select(decoded, Thresholds(0.2, 0.5, 20), scoring=SCORE, multi_label=False)
    found = open_onnx(folder / "model-nms.onnx").detect(batch)
    assert sum(map(len, expected)) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.scores, theirs.scores)


def test_the_contracts_name_the_objectness(case):
    _, folder = case
    decoded, raw = (
        open_onnx(folder / name).file.about.contract["output"] for name in ("model.onnx", FILES["onnx-raw"])
    )
    assert decoded["columns"] == ["x1", "y1", "x2", "y2", "objectness", "3 class probabilities"]
    assert decoded["score"] == raw["score"] == SCORE
    assert raw["shape"] == ["batch", 4 + 1 + CLASSES, "rows", "columns"]
