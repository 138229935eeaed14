"""Int8: every operator that the networks have between two convolutions is calibrated, and works on rounded values."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_maker import CHANNELS, GraphMaker
from onnx import numpy_helper

from yolov7.export.calibrate import calibrate
from yolov7.export.quantize import quantizable, quantized
from yolov7.ranges import full_weight_scales, weight_scales


def silu(maker, value):
    return maker.add("Mul", value, maker.add("Sigmoid", value))


ACTIVATIONS = {
    "relu": lambda maker, value: maker.add("Relu", value),
    "leaky": lambda maker, value: maker.add("LeakyRelu", value, alpha=0.1),
    "silu": silu,
}


def halves_by_split(maker, value):
    first, second = maker.add("Split", value, maker.constant(np.int64([4, 4])), outputs=2, axis=1)
    return maker.add("Concat", second, first, axis=1)


def halves_by_slice(maker, value):
    def part(start, end):
        return maker.add("Slice", value, *(maker.constant(np.int64([number])) for number in (start, end, 1)))

    return maker.add("Concat", part(4, 8), part(0, 4), axis=1)


def doubled(maker, value):
    scales = maker.constant(np.float32([1, 1, 2, 2]))
    return maker.add("Resize", value, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric")


def weighted_residual(maker, value):
    return maker.add("Add", value, maker.add("Mul", value, maker.constant(np.float32([0.7]))))


def shuffled(maker, value):
    split = maker.add("Reshape", value, maker.constant(np.int64([0, 2, 4, 0, -1])))
    turned = maker.add("Transpose", split, perm=[0, 2, 1, 3, 4])
    return maker.add("Reshape", turned, maker.constant(np.int64([0, 8, 32, -1])))


OPERATORS = {
    "none": lambda maker, value: value,
    "MaxPool": lambda maker, value: maker.add("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2]),
    "AveragePool": lambda maker, value: maker.add("AveragePool", value, kernel_shape=[2, 2], count_include_pad=1),
    "Concat": lambda maker, value: maker.add("Concat", value, value, axis=1),
    "Add": lambda maker, value: maker.add("Add", value, maker.add("MaxPool", value, kernel_shape=[1, 1])),
    "Mul by a constant": weighted_residual,
    "Split": halves_by_split,
    "Slice": halves_by_slice,
    "Resize": doubled,
    "ConvTranspose": lambda maker, value: maker.conv(value, kind="ConvTranspose", strides=[2, 2]),
    "Transpose, Reshape": shuffled,
}


def network(activation, operator="none"):
    """Three convolutions with an activation each, the operator behind the second, and a fourth for the output."""
    maker, act = GraphMaker(), ACTIVATIONS[activation]
    first = act(maker, maker.conv("images", inputs=3))
    second = OPERATORS[operator](maker, act(maker, maker.conv(first)))
    third = act(maker, maker.conv(second, inputs=CHANNELS * (2 if operator == "Concat" else 1)))
    return maker.model(maker.conv(third, channels=3))


def images():
    return [np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)]


def run(graph):
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {"images": images()[0].astype(np.float32) / 255})[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_value_between_convolutions_has_a_range(activation):
    graph = network(activation)
    made = [value for node in graph.graph.node[:-1] for value in node.output]
    ranges = calibrate(graph, images)
    assert set(ranges) == {"images", *made} and len(made) == (9 if activation == "silu" else 6)
    assert all(low <= 0.0 <= high and low < high for low, high in ranges.values())
    if activation == "relu":
        assert all(ranges[node.output[0]][0] == 0.0 for node in graph.graph.node if node.op_type == "Relu")


@pytest.mark.parametrize("placement", ["onnx", "openvino"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_is_calibrated_and_works_on_bytes(operator, activation, placement):
    graph = network(activation, operator)
    names = quantizable(graph)
    convolutions = [node for node in graph.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert names == [node.name for node in convolutions[:-1]]
    ranges = calibrate(graph, images)
    assert {node.input[0] for node in convolutions} <= set(ranges)
    result = quantized(graph, names, ranges, placement=placement)
    onnx.checker.check_model(result, full_check=True)
    made_by = {value: node for node in result.graph.node for value in node.output}
    # The convolution of the images, with three channels, gives floats to an activation that has a kernel for floats.
    of_images = {"leaky": {"LeakyRelu1"}, "silu": {"Sigmoid1", "Mul2"}, "relu": set()}[activation]
    for node in result.graph.node:
        kinds = {made_by[value].op_type for value in node.input if value in made_by}
        if node.name in names:
            assert kinds == {"DequantizeLinear"}
        elif placement == "onnx" and node.name in of_images:
            assert kinds == ({"Conv"} if activation == "leaky" else {"Conv", "Sigmoid"} - {node.op_type})
        elif placement == "onnx" and not node.op_type.endswith("uantizeLinear") and node.name != convolutions[-1].name:
            assert kinds == {"DequantizeLinear"}, node.op_type  # nothing between works in float
    expected = run(graph)
    assert 0 < np.abs(run(result) - expected).mean() < 0.06 * expected.std()


def test_a_path_ends_where_bytes_do():
    """A convolution behind a Softmax sums up a distribution: what feeds the Softmax are logits, and stay in float."""
    maker = GraphMaker()
    features = maker.add("Relu", maker.conv(maker.add("Relu", maker.conv("images", inputs=3))))
    graph = maker.model(maker.conv(maker.add("Softmax", maker.conv(features), axis=1), channels=1))
    convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    assert quantizable(graph) == convolutions[:2]
    result = quantized(graph, convolutions[:2], calibrate(graph, images))
    assert 0 < np.abs(run(result) - run(graph)).mean() < 0.05


@pytest.mark.parametrize("placement", ["onnx", "openvino", "tensorrt"])
def test_a_transposed_convolution_has_a_scale_per_output_channel(placement):
    """Its weight is (inputs, outputs, k, k): the outputs lie along the second axis."""
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv("images", inputs=3))
    larger = maker.conv(first, channels=4, kind="ConvTranspose", strides=[2, 2])
    graph = maker.model(maker.conv(maker.add("Relu", maker.conv(larger, inputs=4)), channels=3))
    result = quantized(graph, quantizable(graph), calibrate(graph, images), placement=placement)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    made_by = {value: node for node in result.graph.node for value in node.output}
    node = next(node for node in result.graph.node if node.op_type == "ConvTranspose")
    back = made_by[node.input[1]]
    (axis,) = (attribute.i for attribute in back.attribute if attribute.name == "axis")
    original = next(n for n in graph.graph.node if n.op_type == "ConvTranspose").input[1]
    weight = next(numpy_helper.to_array(t) for t in graph.graph.initializer if t.name == original)
    expected = (full_weight_scales if placement == "tensorrt" else weight_scales)(weight, axis=1)
    assert axis == 1 and weight.shape[:2] == (CHANNELS, 4)
    np.testing.assert_array_equal(constants[back.input[1]], expected)
    assert 0 < np.abs(run(result) - run(graph)).mean() < 0.06 * run(graph).std()
