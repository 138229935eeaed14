"""ONNX export: the same outputs for any batch and sides, lean and self-describing files, suppression inside."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small_detector import SIDE, metadata_of, small_detector

from yolov7.errors import ConfigError, ModelError
from yolov7.export import export_onnx, export_onnx_nms, export_onnx_raw
from yolov7.export.suppression import append_suppression
from yolov7.files import sha256_file
from yolov7.model import create_model
from yolov7.model.scaling import scale
from yolov7.model.variants import find_variant
from yolov7.nms import Thresholds, select
from yolov7.predict import OnnxNmsRuntime, OnnxRuntime, open_onnx
from yolov7.predictions import SCORINGS, columns_before_classes

PRODUCT = "objectness x class probability"


def run(file, images):
    return onnxruntime.InferenceSession(str(file)).run(None, {"images": images})[0]


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(1, 3, 96, 96), (3, 3, 8, 8), (2, 3, 160, 48), (1, 3, 16, 200)])
def test_any_batch_and_sides_give_what_pytorch_gives(exported, trained, shape):
    images = random_images(*shape)
    found = run(exported / "model.onnx", images)
    with torch.inference_mode():
        expected = trained(torch.from_numpy(images)).numpy()
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found[..., :4], expected[..., :4], atol=5e-3)  # pixels, float32 in another order
    np.testing.assert_allclose(found[..., 4:], expected[..., 4:], atol=1e-5)


def test_the_graph_is_lean_and_says_nothing_of_the_machine(exported, trained):
    graph = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"BatchNormalization", "Identity", "Dropout", "Constant", "If", "Loop"}
    convolutions = [m for m in trained.reparameterize().modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(node.op_type == "Conv" for node in graph.graph.node) == len(convolutions) == 8
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 18)]
    dimensions = [d.dim_param or d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
    assert (graph.graph.input[0].name, dimensions) == ("images", ["batch", 3, "height", "width"])
    dimensions = [d.dim_param or d.dim_value for d in graph.graph.output[0].type.tensor_type.shape.dim]
    assert (graph.graph.output[0].name, dimensions) == ("detections", ["batch", "predictions", 8])
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    for trace in (b"site-packages", b".py", b"/home", b"/root"):
        assert trace not in graph.SerializeToString()


@pytest.mark.slow
def test_a_network_with_an_auxiliary_head_is_exported_without_it(tmp_path):
    """A P6 network: a space-to-depth stem, RepConv, and auxiliary maps that the exported graph must not hold."""
    side = 128
    model = create_model(scale(find_variant("yolov7-w6"), depth=1.0, width=0.125), 3, seed=1).eval()
    graph = export_onnx(model, tmp_path / "model.onnx", metadata=metadata_of(model), image_size=side)
    convolutions = [m for m in model.reparameterize().modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(node.op_type == "Conv" for node in graph.graph.node) == len(convolutions)
    images = random_images(2, 3, side, 2 * side)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    found = run(tmp_path / "model.onnx", images)
    np.testing.assert_allclose(found[..., :4], expected[..., :4], atol=5e-3)
    np.testing.assert_allclose(found[..., 4:], expected[..., 4:], atol=1e-5)


def test_a_lone_file_describes_itself(exported, trained):
    runtime = open_onnx(exported / "model.onnx")
    assert isinstance(runtime, OnnxRuntime)
    assert runtime.metadata.class_names == metadata_of(trained).class_names
    assert runtime.metadata.category_ids == (10, 11, 12)
    assert runtime.metadata.form == "deploy" and runtime.metadata.image_size == SIDE
    assert runtime.metadata.extra["run"] == "r1"
    assert runtime.metadata.extra["thresholds"] == {"confidence": 0.2, "iou": 0.5, "max_detections": 20}
    assert runtime.file.about.contract["output"]["columns"][:5] == ["x1", "y1", "x2", "y2", "objectness"]
    assert runtime.stride == trained.stride == 8
    with_nms = open_onnx(exported / "model-nms.onnx")
    assert isinstance(with_nms, OnnxNmsRuntime)
    assert with_nms.thresholds == Thresholds(0.2, 0.5, 20)


def test_model_json_lists_every_file_with_its_sha256(exported):
    description = json.loads((exported / "model.json").read_text())
    assert set(description["files"]) == {
        "model.safetensors", "model.onnx", "model-nms.onnx", "optional/formats.json", "optional/model-raw.onnx",
        "optional/openvino.xml", "optional/openvino.bin",
        "optional/openvino-float16.xml", "optional/openvino-float16.bin",
    }  # fmt: skip
    for name, said in description["files"].items():
        assert said == {"sha256": sha256_file(exported / name), "bytes": (exported / name).stat().st_size}
    assert description["contracts"]["model-nms.onnx"]["output"]["columns"] == [
        "image", "x1", "y1", "x2", "y2", "score", "class",
    ]  # fmt: skip
    assert description["class_names"] == ["kind 0", "kind 1", "kind 2"]


def test_suppression_inside_gives_what_select_gives(exported):
    batch = torch.randint(0, 256, (3, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = open_onnx(exported / "model-nms.onnx").detect(batch)
    decoded = open_onnx(exported / "model.onnx").decoded(batch)
    expected = select(decoded, Thresholds(0.2, 0.5, 20), scoring=PRODUCT, multi_label=False)
    assert sum(map(len, expected)) > 20
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.boxes, theirs.boxes)


def test_raw_maps_are_those_of_the_network(exported, trained, tmp_path):
    export_onnx_raw(trained, tmp_path / "raw.onnx", metadata=metadata_of(trained))
    session = onnxruntime.InferenceSession(str(tmp_path / "raw.onnx"))
    images = random_images(2, 3, 64, 96)
    found = session.run(["map_0", "map_1"], {"images": images})
    with torch.inference_mode():
        expected = trained.raw(torch.from_numpy(images))[: len(trained.strides)]
        decoded = trained(torch.from_numpy(images))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape == (2, 3, *theirs.shape[2:4], 8)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4)
    # The contract says enough to make boxes of them.
    said = json.loads(session.get_modelmeta().custom_metadata_map["yolov7.contract"])["output"]
    first = 1 / (1 + np.exp(-found[0][0, 1, 5, 7]))
    assert said["strides"] == [4, 8]
    centre = (2 * first[:2] - 0.5 + [7, 5]) * said["strides"][0]
    sides = (2 * first[2:4]) ** 2 * np.array(said["anchors"][0][1])
    position = 1 * 16 * 24 + 5 * 24 + 7  # anchor, row, column
    box = np.concatenate([centre - sides / 2, centre + sides / 2])
    np.testing.assert_allclose(box, decoded[0, position, :4].numpy(), atol=1e-2)
    batch = torch.from_numpy((images * 255).astype(np.uint8))
    runtime = open_onnx(tmp_path / "raw.onnx")
    torch.testing.assert_close(
        runtime.decoded(batch), open_onnx(exported / "model.onnx").decoded(batch), atol=5e-3, rtol=0
    )
    with pytest.raises(ModelError, match="its output is 'raw', 'decoded' is needed"):
        OnnxRuntime(runtime.file)


def test_one_class_is_scored_by_objectness_alone_and_bytes_repeat(tmp_path):
    model = small_detector(1)
    graph = export_onnx(model, tmp_path / "model.onnx", metadata=metadata_of(model), dynamic=False)
    export_onnx(model, tmp_path / "again.onnx", metadata=metadata_of(model), dynamic=False)
    assert sha256_file(tmp_path / "again.onnx") == sha256_file(tmp_path / "model.onnx")
    export_onnx_nms(graph, tmp_path / "nms.onnx", Thresholds(0.1, 0.5, 50))
    batch = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = open_onnx(tmp_path / "nms.onnx").detect(batch)
    with torch.inference_mode():
        decoded = model(batch.float() / 255)
    for image, predictions in zip(found, decoded, strict=True):
        assert len(image) > 0 and set(image.labels.tolist()) == {0}
        assert float(image.scores[0]) == pytest.approx(float(predictions[:, 4].max()), abs=1e-5)


def test_fixed_sides_that_are_not_square_and_many_classes(tmp_path):
    model = small_detector(1000)
    metadata = metadata_of(model)
    graph = export_onnx(model, tmp_path / "m.onnx", metadata=metadata, image_size=(48, 80), dynamic=False, opset=20)
    export_onnx_nms(graph, tmp_path / "nms.onnx", Thresholds(0.01, 0.5, 30))
    runtime = open_onnx(tmp_path / "m.onnx")
    assert runtime.input_shape == (1, 48, 80)
    assert runtime.file.about.contract["output"]["shape"] == [1, 3 * (12 * 20 + 6 * 10), 1005]
    batch = torch.randint(0, 256, (3, 3, 48, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    decoded = runtime.decoded(batch)  # three images through a file that takes one at a time
    with torch.inference_mode():
        expected = model(batch.float() / 255)
    torch.testing.assert_close(decoded[..., 4:], expected[..., 4:], atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded[..., :4], expected[..., :4], atol=5e-3, rtol=0)
    chosen = select(decoded, Thresholds(0.01, 0.5, 30), scoring=PRODUCT, multi_label=False)
    found = open_onnx(tmp_path / "nms.onnx").detect(batch)
    assert sum(map(len, found)) > 0
    for ours, theirs in zip(found, chosen, strict=True):
        assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.boxes, theirs.boxes)
    with pytest.raises(ModelError, match="exported for images of 48 x 80"):
        runtime.decoded(batch.transpose(2, 3))


def decoded_graph(columns: int) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "n", columns]) for n in ("x", "detections")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["detections"])], "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scoring=st.sampled_from(SCORINGS),
    classes=st.sampled_from([1, 2, 7]),
    count=st.integers(1, 60),
    levels=st.sampled_from([4, 1000]),
    limit=st.integers(1, 30),
)
def test_suppression_graph_equals_select_on_anything(seed, scoring, classes, count, levels, limit):
    """Ties in score, identical, nested and empty boxes, no detection at all, fewer boxes than the limit."""
    classes = 1 if scoring == "objectness" else classes
    columns = columns_before_classes(scoring) + classes
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (2, count, 2)) * 4.0
    decoded = np.concatenate(
        [
            corner,
            corner + rng.integers(0, 8, (2, count, 2)) * 4.0,
            rng.integers(0, levels, (2, count, columns - 4)) / levels,
        ],
        axis=-1,
    ).astype(np.float32)
    thresholds = Thresholds(0.25, 0.45, limit)
    graph = append_suppression(decoded_graph(columns), thresholds, classes=classes, scoring=scoring)
    rows = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"x": decoded})[0]
    expected = select(torch.from_numpy(decoded), thresholds, scoring=scoring, multi_label=False)
    assert rows.shape == (sum(map(len, expected)), 7)
    for image, detections in enumerate(expected):
        ours = rows[rows[:, 0] == image]
        boxes, scores, labels = detections.to_numpy()
        np.testing.assert_array_equal(ours[:, 5], scores)
        theirs = np.column_stack([scores, labels, boxes])
        mine = np.column_stack([ours[:, 5], ours[:, 6], ours[:, 1:5]])
        np.testing.assert_array_equal(mine, theirs)


def test_what_cannot_be_exported_is_refused(trained, exported, tmp_path):
    metadata = metadata_of(trained)
    with pytest.raises(ConfigError, match="opset 9"):
        export_onnx(trained, tmp_path / "x.onnx", metadata=metadata, opset=9)
    with pytest.raises(ConfigError, match="multiples of the network's stride 8"):
        export_onnx(trained, tmp_path / "x.onnx", metadata=metadata, image_size=100)
    with pytest.raises(ModelError, match="metadata is of"):
        export_onnx(trained, tmp_path / "x.onnx", metadata=metadata_of(small_detector(2)))
    with pytest.raises(ConfigError, match="out of range"):
        export_onnx_nms(exported / "model.onnx", tmp_path / "x.onnx", Thresholds(2, 0.5, 1))
    with pytest.raises(ModelError, match="decoded output is needed"):
        export_onnx_nms(exported / "model-nms.onnx", tmp_path / "x.onnx", Thresholds(0.2, 0.5, 1))
    assert list(tmp_path.iterdir()) == []
