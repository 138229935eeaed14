"""Int8 of every variant, most an eighth as wide: ONNX Runtime and OpenVINO take its file and compute in eight bits.

The operators and their order are those of the full width; the weights are random.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_aligned import small_aligned

import yolov7
from tests.unit.yolov7.model.test_quantized import read_by
from yolov7.errors import ModelError
from yolov7.export import check_tensorrt, export_onnx, export_openvino
from yolov7.export.calibrate import calibrate, shared
from yolov7.export.kernels import in_float, is_plain_mean
from yolov7.export.onnx import described, write_graph
from yolov7.export.quantize import CONVOLUTIONS, quantizable, quantized
from yolov7.export.sensitivity import last_maps
from yolov7.model import ModelMetadata, create_model
from yolov7.model.quantized import quantized as quantized_form
from yolov7.model.quantized import quantized_convolutions
from yolov7.model.scaling import scale
from yolov7.model.variants import find_variant
from yolov7.predict.openvino_runtime import openvino_core

# The ordinary tests have one network of each family. Those of YOLOv9 are deep: a small one has all its kinds of layer.
SMALL = "small-aligned"
ORDINARY = ("yolov7-tiny", SMALL, "yolov6-n")
VARIANTS = [
    pytest.param(name, marks=pytest.mark.slow if name in ORDINARY else pytest.mark.thorough)
    for name in (SMALL, *yolov7.list_variants())
]
BYTES = ("u8", "i8")


@pytest.fixture(scope="module")
def exported_variant(request, tmp_path_factory):
    """A model and its graph: tracing it takes longer than all that follows."""
    model = narrow(request.param)
    metadata = ModelMetadata.of(model, class_names=("a", "b"), category_ids=(1, 2), image_size=model.stride)
    file = tmp_path_factory.mktemp(request.param) / "model.onnx"
    return model, export_onnx(model, file, metadata=metadata, dynamic=False)


every_variant = pytest.mark.parametrize("exported_variant", VARIANTS, indirect=True)


@every_variant
def test_every_variant_rounds_where_its_graph_does(exported_variant):
    model, graph = exported_variant
    form, nodes = quantized_form(model), read_by(graph)
    names = {f"{name}.weight" for name in quantized_convolutions(form)}
    assert {nodes[name].name for name in names} == set(quantizable(graph))
    of_values = {}
    for name, conv in quantized_convolutions(form).items():
        of_values.setdefault(id(conv.values), set()).add(nodes[f"{name}.weight"].input[0])
    assert all(len(values) == 1 for values in of_values.values())


@every_variant
def test_both_runtimes_compute_a_variant_in_eight_bits(exported_variant, tmp_path):
    model, graph = exported_variant
    side = model.stride
    image = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    ranges, layers = calibrate(graph, lambda: [image]), quantizable(graph)
    kinds = Counter(node.op_type for node in graph.graph.node if node.name in layers)
    assert_all_but_the_last(model, graph, layers, image)
    floats, means = in_float(graph, layers), sum(map(is_plain_mean, graph.graph.node))

    expected = run(graph, image)
    of_file = {"own": ranges}
    if kinds["ConvTranspose"]:  # values without a Relu, joined to others with one
        of_file["shared"] = shared(graph, ranges)
    for name, chosen in of_file.items():
        file = tmp_path / f"{name}.onnx"
        write_graph(file, quantized(graph, layers, chosen), *described(graph))
        assert_reads_bytes(onnx.load(file), layers, floats)
        found, operators = run_optimised(file, image, tmp_path)
        # It has no transposed convolution of bytes.
        assert operators["QLinearConv"] == kinds["Conv"] - len(floats) + means
        assert np.abs(found - expected).mean() < 0.05

    write_graph(tmp_path / "inputs.onnx", quantized(graph, layers, ranges, placement="openvino"), *described(graph))
    export_openvino(tmp_path / "inputs.onnx", tmp_path / "inputs.xml")
    found, in_bytes = run_openvino(tmp_path / "inputs.xml", image)
    assert in_bytes == len(layers)
    assert np.abs(found - expected).mean() < 0.05

    symmetric = quantized(graph, layers, ranges, placement="tensorrt")
    write_graph(tmp_path / "tensorrt.onnx", symmetric, *described(graph))
    assert check_tensorrt(tmp_path / "tensorrt.onnx").problems == []
    assert np.abs(run(symmetric, image) - expected).mean() < 0.05


def narrow(variant):
    """An eighth as wide, or in full where an auxiliary branch names channels by number."""
    if variant == SMALL:
        return small_aligned(num_classes=2)
    network = find_variant(variant)
    try:
        return create_model(scale(network, width=0.125), num_classes=2, seed=1).eval()
    except ModelError:
        return create_model(network, num_classes=2, seed=1).eval()


def assert_all_but_the_last(model, graph, layers, image):
    levels = model.reparameterize().raw(torch.from_numpy(image).float() / 255)
    of_each = 1 if levels[0].ndim == 5 else 2  # anchors: one convolution; otherwise one for boxes, one for classes
    last = [node.name for node in graph.graph.node if node.output[0] in last_maps(graph)]
    assert len(last) == of_each * len(levels)
    convolutions = [node.name for node in graph.graph.node if node.op_type in CONVOLUTIONS]
    assert sorted([*layers, *last]) == sorted(convolutions)


def assert_reads_bytes(graph, layers, floats):
    """`floats` compute rounded values in float, and their weights are constants."""
    made_by = {value: node.op_type for node in graph.graph.node for value in node.output}
    for node in graph.graph.node:
        if node.name in layers:
            rounded = node.input[:1] if node.name in floats else node.input
            assert {made_by[name] for name in rounded} == {"DequantizeLinear"}, node.name


def run(graph, image):
    """Scores (N, C)."""
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {"images": image.astype(np.float32) / 255})[0][0, :, 4:]


def run_optimised(file, image, folder):
    """Scores, and the operators of the graph that is computed."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options)
    scores = session.run(None, {"images": image.astype(np.float32) / 255})[0][0, :, 4:]
    return scores, Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def run_openvino(file, image):
    """Scores, and the number of convolutions that are computed in bytes."""
    compiled = openvino_core().compile_model(str(file), "CPU")
    found = compiled({"images": image.astype(np.float32) / 255})[0][0, :, 4:]
    info = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [(one["layerType"].astype(str), one["runtimePrecision"].astype(str)) for one in info]
    return found, sum(kind in ("Convolution", "Deconvolution") and precision in BYTES for kind, precision in kinds)
