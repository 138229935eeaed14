"""Int8 files for ONNX Runtime: operators that its kernels run fast, with the numbers of the ones they stand for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.inliner
import pytest
from byte_arithmetic import rounded
from graph_maker import CHANNELS, GraphMaker
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from yolov7.export.calibrate import calibrate
from yolov7.export.kernels import DOMAIN, is_plain_mean
from yolov7.export.quantize import quantizable, quantized
from yolov7.predict.runtimes import onnx_session
from yolov7.ranges import steps, weight_scales


def silu(maker, value):
    return maker.add("Mul", value, maker.add("Sigmoid", value))


def images():
    return [np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8)]


def scaled():
    return images()[0].astype(np.float32) / 255


def run(graph, *shown):
    """The output and these values, operator by operator."""
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
    return onnx_session(graph, optimised=False).run(None, {"images": scaled()})


def constants(graph):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def of_silus():
    maker = GraphMaker()
    second = silu(maker, maker.conv(silu(maker, maker.conv("images", inputs=3))))
    third = silu(maker, maker.conv(second))
    return maker.model(maker.conv(third, channels=3))


# SiLU ----------------------------------------------------------------------------------------------------------------


def test_a_silu_of_bytes_is_one_operator_that_the_file_defines():
    graph = of_silus()
    result = quantized(graph, quantizable(graph), calibrate(graph, images))
    kinds = Counter((node.domain, node.op_type) for node in result.graph.node)
    # That of the convolution of the images reads floats, and ONNX Runtime fuses it itself.
    assert kinds[DOMAIN, "QuickGelu"] == 2 and kinds["", "Sigmoid"] == kinds["", "Mul"] == 1
    assert [(function.domain, function.name) for function in result.functions] == [(DOMAIN, "QuickGelu")]
    onnx.checker.check_model(result, full_check=True)
    defined = onnx.inliner.inline_local_functions(result)
    assert {node.domain for node in defined.graph.node} == {""}
    np.testing.assert_allclose(run(result)[0], run(defined)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_the_definition_is_that_of_the_kernel(alpha):
    graph = of_silus()
    function = quantized(graph, quantizable(graph), calibrate(graph, images)).functions[0]
    node = helper.make_node("QuickGelu", ["x"], ["y"], domain=DOMAIN, alpha=alpha)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [99]) for name in "xy")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    lone = helper.make_model(
        helper.make_graph([node], "lone", [x], [y]), functions=[function], opset_imports=opsets, ir_version=9
    )
    values = np.linspace(-9, 9, 99, dtype=np.float32)
    (expected,) = ReferenceEvaluator(lone).run(None, {"x": values})
    np.testing.assert_allclose(expected, values / (1 + np.exp(-alpha * values)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(onnx_session(lone).run(None, {"x": values})[0], expected, rtol=1e-5, atol=1e-6)


def test_a_sigmoid_that_something_else_reads_is_no_silu():
    maker = GraphMaker()
    value = maker.conv(maker.add("Relu", maker.conv("images", inputs=3)))
    gate = maker.add("Sigmoid", value)
    both = maker.add("Add", maker.add("Mul", value, gate), gate)
    graph = maker.model(maker.conv(both, channels=3))
    result = quantized(graph, quantizable(graph), calibrate(graph, images))
    assert not result.functions and "QuickGelu" not in {node.op_type for node in result.graph.node}


# Means ---------------------------------------------------------------------------------------------------------------


def test_a_mean_of_bytes_is_a_convolution_with_its_numbers():
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv(maker.add("Relu", maker.conv("images", inputs=3))))
    mean = maker.add("AveragePool", first, kernel_shape=[2, 2], strides=[1, 1])
    graph = maker.model(maker.conv(maker.add("Relu", maker.conv(mean)), channels=3))
    ranges = calibrate(graph, images)
    result = quantized(graph, quantizable(graph), ranges)
    (node,) = (node for node in result.graph.node if mean in node.output)
    (group,) = (attribute.i for attribute in node.attribute if attribute.name == "group")
    assert (node.op_type, group) == ("Conv", CHANNELS)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    (weight,) = (user.input for user in result.graph.node if node.input[1] in user.output)
    # Equal neighbours, two of which add up to 128; and their scale is a power of two.
    assert (constants[weight[0]] == 64).all() and (constants[weight[1]] == 2.0**-8).all()
    back = next(user for user in result.graph.node if user.op_type == "DequantizeLinear" and mean in user.input[0])
    _, values, means = run(result, node.input[0], back.output[0])
    corners = [values[..., i : i + 15, j : j + 15] for i in (0, 1) for j in (0, 1)]
    scale = np.float64(steps(*ranges[mean])[0])
    off = np.abs(means - rounded(np.mean(corners, axis=0, dtype=np.float64).astype(np.float32), *ranges[mean])) / scale
    # A mean in the middle of two steps may fall to either side.
    assert off.max() <= 1.001 and (off > 0.5).mean() < 0.05


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"pads": [0, 0, 0, 0], "ceil_mode": 0, "count_include_pad": 1, "auto_pad": "VALID"}, True),
        ({"pads": [1, 1, 0, 0]}, False),
        ({"ceil_mode": 1}, False),
        ({"auto_pad": "SAME_UPPER"}, False),
        ({"dilations": [2, 2]}, False),
    ],
)
def test_a_mean_with_a_border_stays_a_pool(options, plain):
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv(maker.add("Relu", maker.conv("images", inputs=3))))
    node_of = {True: "Conv", False: "AveragePool"}
    mean = maker.add("AveragePool", first, kernel_shape=[2, 2], **options)
    version = 19 if "dilations" in options else 18
    assert is_plain_mean(maker.nodes[-1]) is plain
    if version == 18:
        graph = maker.model(maker.conv(mean, channels=3))
        result = quantized(graph, quantizable(graph), calibrate(graph, images))
        assert [node.op_type for node in result.graph.node if mean in node.output] == [node_of[plain]]


def test_a_mean_of_unknown_channels_stays_a_pool():
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv(maker.add("Relu", maker.conv("images", inputs=3))))
    sides = maker.add("Mul", maker.add("Shape", first), maker.constant(np.int64([1, 1, 2, 2])))
    mean = maker.add("AveragePool", maker.add("Resize", first, "", "", sides), kernel_shape=[2, 2], strides=[2, 2])
    graph = maker.model(maker.conv(maker.add("Relu", maker.conv(mean)), channels=3))
    result = quantized(graph, quantizable(graph), calibrate(graph, images))
    assert [node.op_type for node in result.graph.node if mean in node.output] == ["AveragePool"]
    found, expected = run(result)[0], run(graph)[0]
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()


# The convolution of the images ---------------------------------------------------------------------------------------


def stem(activation, inputs=3):
    maker = GraphMaker()
    value = "images"
    if inputs != 3:
        value = maker.add("Concat", *["images"] * (inputs // 3), axis=1)
    value = activation(maker, maker.conv(value, inputs=inputs))
    graph = maker.model(maker.conv(maker.add("Relu", maker.conv(value)), channels=3))
    return graph, next(node for node in graph.graph.node if node.op_type == "Conv")


def test_a_convolution_of_few_channels_computes_rounded_values_in_float():
    graph, first = stem(silu)
    ranges = calibrate(graph, images)
    result = quantized(graph, quantizable(graph), ranges)
    (node,) = (node for node in result.graph.node if node.name == first.name)
    users = {user.op_type for user in result.graph.node if node.output[0] in user.input}
    assert users == {"Sigmoid", "Mul"}
    float_weight, weight = constants(graph)[first.input[1]], constants(result)[node.input[1]]
    scales = weight_scales(float_weight)[:, None, None, None]
    np.testing.assert_array_equal(weight, np.round(float_weight / scales) * scales)
    step = weight_scales(float_weight) * steps(*ranges["images"])[0]
    bias = constants(result)[node.input[2]] / step
    np.testing.assert_allclose(bias, np.round(bias), atol=1e-4 * np.abs(bias).max())
    read = {name for each in result.graph.node for name in each.input}
    assert set(constants(result)) <= read


@pytest.mark.parametrize("second", ["LeakyRelu", "Relu"])  # in float, in bytes
def test_convolutions_of_the_images_may_share_a_weight(second):
    maker = GraphMaker()
    shared = (maker.constant(np.random.default_rng(1).normal(0, 0.2, (CHANNELS, 3, 3, 3)).astype(np.float32)),)
    shared += (maker.constant(np.full(CHANNELS, 0.1, np.float32)),)
    one = silu(maker, maker.add("Conv", "images", *shared, pads=[1] * 4))
    other = maker.add(second, maker.add("Conv", "images", *shared, pads=[1] * 4))
    both = maker.add("Relu", maker.conv(maker.add("Add", one, other)))
    graph = maker.model(maker.conv(both, channels=3))
    result = quantized(graph, quantizable(graph), calibrate(graph, images))
    onnx.checker.check_model(result, full_check=True)
    found, expected = run(result)[0], run(graph)[0]
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()


@pytest.mark.parametrize(
    ("activation", "inputs"), [(lambda maker, value: maker.add("Relu", value), 3), (silu, 6), (lambda _, v: v, 3)]
)
def test_others_compute_in_bytes(activation, inputs):
    graph, first = stem(activation, inputs)
    result = quantized(graph, quantizable(graph), calibrate(graph, images))
    (node,) = (node for node in result.graph.node if node.name == first.name)
    assert {user.op_type for user in result.graph.node if node.output[0] in user.input} == {"QuantizeLinear"}


# Concatenations ------------------------------------------------------------------------------------------------------


def joined(negative=False):
    """One value that a convolution reads too, one that passes a pool, and one, with values below zero if asked for,
    that only the concatenation reads."""
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv("images", inputs=3))
    read = maker.add("Relu", maker.conv(first))
    pooled = maker.add("Relu", maker.conv(read))
    pool = maker.add("MaxPool", pooled, kernel_shape=[1, 1])
    last = maker.conv(first)
    lone = last if negative else maker.add("Relu", last)
    both = maker.add("Concat", read, pool, lone, axis=1)
    behind = maker.add("Relu", maker.conv(both, inputs=3 * CHANNELS))
    graph = maker.model(maker.conv(behind, channels=3))
    return graph, {"read": read, "pooled": pooled, "pool": pool, "lone": lone, "both": both}


def test_values_that_are_only_concatenated_are_rounded_as_the_concatenation():
    graph, names = joined()
    tops = {"read": 11.0, "pooled": 12.0, "pool": 13.0, "lone": 14.0, "both": 15.0}
    ranges = calibrate(graph, images) | {names[name]: (0.0, top) for name, top in tops.items()}

    def rounded_at(placement):
        """Scales of all values, by the top of their range."""
        result = quantized(graph, quantizable(graph), ranges, placement=placement)
        nodes = [node for node in result.graph.node if node.op_type == "QuantizeLinear"]
        found = Counter(round(float(constants(result)[node.input[1]]) * 255, 3) for node in nodes)
        return {top: found[top] for top in tops.values()}

    # `read` has bytes of its own for its convolution; `pooled`, `pool`, `lone` and `both` have one scale.
    assert rounded_at("onnx") == {11.0: 1, 12.0: 0, 13.0: 0, 14.0: 0, 15.0: 4}
    assert rounded_at("openvino") == {11.0: 1, 12.0: 0, 13.0: 0, 14.0: 0, 15.0: 1}


def test_a_relu_in_front_of_a_concatenation_stays_the_clipping_of_its_range():
    graph, names = joined(negative=True)
    ranges = calibrate(graph, images)
    assert ranges[names["both"]][0] < 0
    result = quantized(graph, quantizable(graph), ranges)
    assert "Relu" not in {node.op_type for node in result.graph.node}
