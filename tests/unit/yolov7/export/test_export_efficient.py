"""Exports of YOLOv6 with distances as numbers, nothing of what only training has. Distributions: see YOLOv9's."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_detector import metadata_of, pictures, small_index
from small_efficient import small_efficient, trained_efficient

from tests.unit.yolov7.export.test_export_aligned import FILES, dimensions, expected_of, random_batch
from yolov7.artefact import FILE_OF_FORMAT
from yolov7.export import export_onnx, export_onnx_nms, verify
from yolov7.model import load_checkpoint
from yolov7.nms import Thresholds, select
from yolov7.predict import Predictor, TorchRuntime, open_onnx
from yolov7.predict.load import open_runtime

SCORE = "class probability"
EXPORTED = Thresholds(0.2, 0.5, 20)


@pytest.fixture
def case(trained_yolov6, exported_yolov6):
    """The trained model and the folder of its files."""
    return trained_yolov6, exported_yolov6


@pytest.mark.parametrize("form", [form for form in FILES if not form.endswith("float16")])
def test_any_batch_and_sides_give_what_pytorch_gives(case, form):
    model, folder = case
    batch = random_batch(3, 96, 160)
    expected = expected_of(model, batch)
    found = open_runtime(folder / FILES[form]).decoded(batch).cpu()
    assert found.shape == expected.shape == (3, 12 * 20 + 6 * 10 + 3 * 5, 4 + 3)
    difference = (found - expected).abs()
    assert difference[..., :4].max() < 5e-3 and difference[..., 4:].max() < 5e-5
    sides = expected[..., 2:4] - expected[..., :2]
    assert sides.std(dim=(0, 1)).min() > 4  # pixels: the boxes differ, or this shows nothing


def test_suppression_inside_gives_what_select_gives(case):
    _, folder = case
    batch = random_batch(2, 96, 160)
    expected = select(open_onnx(folder / "model.onnx").decoded(batch), EXPORTED, scoring=SCORE, multi_label=False)
    found = open_onnx(folder / "model-nms.onnx").detect(batch)
    assert sum(map(len, expected)) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.boxes, theirs.boxes)


def test_the_graph_holds_the_deploy_form_alone(case):
    _, folder = case
    deploy, _ = load_checkpoint(folder / "model.safetensors")
    assert deploy.form == "deploy" and not deploy.has_auxiliary
    convolutions = [module for module in deploy.modules() if type(module) is torch.nn.Conv2d]
    for name in ("model.onnx", FILE_OF_FORMAT["onnx-raw"]):
        graph = onnx.load(folder / name)
        kinds = [node.op_type for node in graph.graph.node]
        assert kinds.count("Conv") == len(convolutions) and "BatchNormalization" not in kinds
        assert kinds.count("ConvTranspose") == 2
        assert kinds.count("Softmax") == 0
    assert [dimensions(value)[1] for value in graph.graph.output] == [4 + 3] * 3


def test_contracts_say_how_to_decode_the_maps_by_hand(case):
    model, folder = case
    raw = open_onnx(folder / FILE_OF_FORMAT["onnx-raw"]).file.about.contract["output"]
    assert (raw["bins"], raw["strides"], raw["score"]) == (0, [8, 16, 32], SCORE)
    batch = random_batch(1, 64, 96)
    session = onnxruntime.InferenceSession(str(folder / FILE_OF_FORMAT["onnx-raw"]))
    maps = session.run(["map_1"], {"images": batch.numpy().astype(np.float32) / 255})[0]
    row, column, stride = 3, 4, raw["strides"][1]
    cell = maps[0, :, row, column].astype(np.float64)
    left, top, right, bottom = cell[:4] * stride
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    expected = [x - left, y - top, x + right, y + bottom, *(1 / (1 + np.exp(-cell[4:])))]
    found = expected_of(model, batch)[0, 8 * 12 + row * 6 + column].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("sides", [None, (64, 96)])
def test_verification_passes_every_form_at_any_sides(case, tmp_path, sides):
    """`sides`: a file for images of these sides alone."""
    model, folder = case
    metadata, images = metadata_of(model), pictures(4)
    runtime = TorchRuntime(model, metadata)
    found = Predictor(runtime, confidence=0.2, iou=0.5, max_detections=12).predict(images)
    index = small_index(tmp_path, found, images, metadata)
    decoded, inside = folder / "model.onnx", folder / "model-nms.onnx"
    if sides is not None:
        graph = export_onnx(model, tmp_path / "m.onnx", metadata=metadata, image_size=sides, dynamic=False)
        export_onnx_nms(graph, tmp_path / "nms.onnx", EXPORTED)
        decoded, inside = tmp_path / "m.onnx", tmp_path / "nms.onnx"
    report = verify(model, folder / "model.safetensors", decoded, inside, index, metadata=metadata)
    assert report.passed, report.problems
    for form in report.forms:
        assert form.detections.matched > 10 and form.ap > 0
        if form.name != "onnx-nms":  # rounding of float32 by other orders of summation, as above
            assert form.max_raw_difference < 5e-5 and form.max_box_difference < 5e-3


def test_boxes_from_bins_differ_between_runtimes_by_float32_rounding_alone(tmp_path):
    """A distance is the mean of 0 to 16 strides under a softmax: an error e of the logits moves it by at most
    2 e x 16^2 / 4 strides, 128 e. Of random weights, whose logits reach 60, that is hundredths of a pixel at stride 32.
    """
    model = trained_efficient(small_efficient(bins=17), 1)
    export_onnx(model, tmp_path / "m.onnx", metadata=metadata_of(model))
    batch, double = random_batch(3, 96, 160), copy.deepcopy(model).double()
    with torch.inference_mode():
        exact, images = double(batch.double() / 255)[..., :4], batch.float() / 255
        pairs = zip(model.raw(images), double.raw(batch.double() / 255), strict=True)
        error = max(float((ours - theirs)[:, :68].abs().max()) for ours, theirs in pairs)
        found = {
            "trained": model(images),
            "deploy": model.reparameterize().eval()(images),
            "onnx": open_onnx(tmp_path / "m.onnx").decoded(batch),
        }
    off = {name: float((decoded[..., :4] - exact).abs().max()) for name, decoded in found.items()}
    assert 0 < off["trained"] < 128 * error * 32 < 1, "pixels"
    assert max(off.values()) < 4 * off["trained"], f"no form is worse than the trained network itself: {off}"
