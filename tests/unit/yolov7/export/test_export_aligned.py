"""Exports of YOLOv9: distributions decoded inside, any batch and sides, no auxiliary part, any number of classes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_aligned import small_aligned
from small_detector import SIDE, metadata_of
from small_efficient import small_efficient, trained_efficient

from yolov7.artefact import FILE_OF_FORMAT
from yolov7.export import check_tensorrt, export_onnx, export_onnx_nms
from yolov7.export.matching import agreement
from yolov7.export.trace import output_names
from yolov7.model import load_checkpoint, save_checkpoint
from yolov7.nms import Thresholds, select
from yolov7.predict import open_onnx
from yolov7.predict.load import open_runtime

SCORE = "class probability"
FILES = {
    "deploy": "model.safetensors",
    "onnx": "model.onnx",
    **{name: FILE_OF_FORMAT[name] for name in ("onnx-raw", "openvino", "openvino-float16")},
}
EXPORTED, WIDE = Thresholds(0.2, 0.5, 20), Thresholds(0.2, 0.5, 300)


def random_batch(*shape, seed=0):
    """Coarse, so that there is something to see; uint8 (B, 3, H, W)."""
    batch, height, width = shape
    coarse = torch.rand(batch, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


def expected_of(model, batch):
    with torch.inference_mode():
        return model(batch.float() / 255)


def assert_same_detections(found, expected):
    assert sum(map(len, expected)) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.scores, theirs.scores) and torch.equal(ours.boxes, theirs.boxes)


@pytest.mark.parametrize("shape", [(3, 96, 160), (1, 64, 128)])
@pytest.mark.parametrize("form", FILES)
def test_any_batch_and_sides_give_what_pytorch_gives(exported_aligned, trained_aligned, form, shape):
    assert trained_aligned.has_auxiliary and trained_aligned.form == "training"
    batch = random_batch(*shape)
    expected = expected_of(trained_aligned, batch)
    found = open_runtime(exported_aligned / FILES[form]).decoded(batch).cpu()
    half = form.endswith("float16")
    corner, score, mean = (4.0, 0.05, 0.1) if half else (5e-3, 5e-5, 1e-3)
    assert found.shape == expected.shape == (shape[0], shape[1] * shape[2] * 5 // 64, 4 + 3)
    difference = (found - expected).abs()
    assert difference[..., :4].max() < corner and difference[..., 4:].max() < score and difference.mean() < mean
    sides = expected[..., 2:4] - expected[..., :2]
    assert sides.std(dim=(0, 1)).min() > 4  # pixels: the boxes differ, or this shows nothing
    ours, theirs = (select(d, WIDE, scoring=SCORE, multi_label=False) for d in (expected, found))
    same = agreement(ours, theirs, thresholds=WIDE, score_tolerance=score)
    assert same.expected > 30 and same.unmatched_share < 0.02 and same.matched > 0.9 * same.expected
    assert same.max_score_difference < score and same.max_box_difference < corner


@pytest.mark.parametrize("shape", [(3, 96, 160), (1, 64, 128)])
def test_suppression_inside_gives_what_select_gives(exported_aligned, shape):
    batch = random_batch(*shape)
    decoded = open_onnx(exported_aligned / "model.onnx").decoded(batch)
    expected = select(decoded, EXPORTED, scoring=SCORE, multi_label=False)
    assert_same_detections(open_onnx(exported_aligned / "model-nms.onnx").detect(batch), expected)


def dimensions(value):
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


def test_batch_and_cells_are_open_and_channels_are_not(exported_aligned):
    files = ("model.onnx", FILES["onnx-raw"])
    decoded, raw = (onnx.load(exported_aligned / name).graph for name in files)
    for graph in (decoded, raw):
        assert dimensions(graph.input[0]) == ["batch", 3, "height", "width"]
    assert [dimensions(value) for value in decoded.output] == [["batch", "predictions", 4 + 3]]
    assert [dimensions(value) for value in raw.output] == [
        ["batch", 4 * 16 + 3, f"map_{level}_rows", f"map_{level}_columns"] for level in range(2)
    ]


def test_the_graph_holds_the_deploy_form_alone(exported_aligned, trained_aligned):
    deploy, _ = load_checkpoint(exported_aligned / "model.safetensors")
    assert deploy.form == "deploy" and not deploy.has_auxiliary and deploy.auxiliary is None
    convolutions = [module for module in deploy.modules() if isinstance(module, torch.nn.Conv2d)]
    for name in ("model.onnx", "model-nms.onnx", FILES["onnx-raw"]):
        graph = onnx.load(exported_aligned / name)
        onnx.checker.check_model(graph, full_check=True)
        kinds = [node.op_type for node in graph.graph.node]
        assert kinds.count("Conv") == len(convolutions) and "BatchNormalization" not in kinds
        assert kinds.count("Softmax") == (0 if "raw" in name else len(deploy.strides))
        assert [value.name for value in graph.graph.output] == (
            output_names(deploy, "raw") if "raw" in name else ["detections"]
        )


def test_a_training_checkpoint_with_its_auxiliary_part_exports_to_the_same_graph(trained_aligned, tmp_path):
    save_checkpoint(tmp_path / "best.safetensors", trained_aligned, metadata_of(trained_aligned))
    loaded, metadata = load_checkpoint(tmp_path / "best.safetensors")
    assert loaded.has_auxiliary and loaded.form == "training"
    for name, model in (("a.onnx", loaded), ("b.onnx", trained_aligned.reparameterize())):
        export_onnx(model, tmp_path / name, metadata=metadata, dynamic=False)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_contracts_say_how_to_decode_the_maps_by_hand(exported_aligned, trained_aligned):
    files = ("model.onnx", FILES["onnx-raw"])
    decoded, raw = (open_onnx(exported_aligned / name).file.about.contract["output"] for name in files)
    assert decoded["columns"] == ["x1", "y1", "x2", "y2", "3 class probabilities"] and decoded["score"] == SCORE
    assert (raw["bins"], raw["strides"], raw["score"]) == (16, [4, 8], SCORE)
    batch = random_batch(1, 64, 96)
    session = onnxruntime.InferenceSession(str(exported_aligned / FILES["onnx-raw"]))
    second = session.run(["map_1"], {"images": batch.numpy().astype(np.float32) / 255})[0]
    row, column, stride = 3, 5, raw["strides"][1]
    cell = second[0, :, row, column].astype(np.float64)
    bins = np.exp(cell[: 4 * raw["bins"]].reshape(4, raw["bins"]))
    left, top, right, bottom = (bins / bins.sum(1, keepdims=True)) @ np.arange(raw["bins"]) * stride
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    expected = [x - left, y - top, x + right, y + bottom, *(1 / (1 + np.exp(-cell[64:])))]
    position = 16 * 24 + row * 12 + column
    found = expected_of(trained_aligned, batch)[0, position].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def small_distances(classes):
    """A YOLOv6 whose distances are numbers, all of them positive, as trained ones are: boxes inside out are empty for
    `select` and full for ONNX's operator.
    """
    model = trained_efficient(small_efficient(), classes)
    with torch.no_grad():
        for branch in model.head.lead:
            branch.box_output.conv.bias.fill_(6.0)
    return model


SMALL = {
    "yolov9": small_aligned,
    "yolov6": small_distances,
    "yolov6, 17 bins": lambda classes: trained_efficient(small_efficient(bins=17), classes),
}


ONE, THOUSAND = (1, (SIDE, SIDE)), (1000, (64, 128))


# Both counts of classes with YOLOv9, and each with one of the two heads of YOLOv6.
@pytest.mark.parametrize(
    ("kind", "classes", "sides"),
    [
        ("yolov9", *ONE),
        ("yolov9", *THOUSAND),
        ("yolov6", *THOUSAND),
        ("yolov6, 17 bins", *ONE),
        pytest.param("yolov6", *ONE, marks=pytest.mark.thorough),
        pytest.param("yolov6, 17 bins", *THOUSAND, marks=pytest.mark.thorough),
    ],
)
def test_one_class_and_a_thousand_at_fixed_sides(tmp_path, kind, classes, sides):
    model = SMALL[kind](classes)
    metadata = metadata_of(model)
    graph = export_onnx(model, tmp_path / "m.onnx", metadata=metadata, image_size=sides, dynamic=False)
    cells = sum(sides[0] * sides[1] // stride**2 for stride in model.strides)
    assert dimensions(graph.graph.output[0]) == [1, cells, 4 + classes]
    thresholds = Thresholds(0.05, 0.5, 30)
    export_onnx_nms(graph, tmp_path / "nms.onnx", thresholds)
    batch = random_batch(3, *sides)  # three images through a file that takes one at a time
    decoded, expected = open_onnx(tmp_path / "m.onnx").decoded(batch), expected_of(model, batch)
    torch.testing.assert_close(decoded[..., 4:], expected[..., 4:], atol=5e-5, rtol=0)
    torch.testing.assert_close(decoded[..., :4], expected[..., :4], atol=5e-3, rtol=0)
    chosen = select(decoded, thresholds, scoring=SCORE, multi_label=False)
    assert_same_detections(open_onnx(tmp_path / "nms.onnx").detect(batch), chosen)


@pytest.mark.parametrize("name", ["model.onnx", "model-nms.onnx", FILES["onnx-raw"]])
def test_tensorrt_can_read_the_graphs(exported_aligned, name):
    report = check_tensorrt(exported_aligned / name)
    assert report.passed, report.problems
    assert report.operators["Conv"] > 20
