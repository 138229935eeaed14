"""Calibration: ranges by each method, shared and learnt ones, and what is wrong with images or values."""

from __future__ import annotations

import logging
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from byte_arithmetic import rounded
from graph_maker import CHANNELS, GraphMaker
from onnx import numpy_helper

from yolov7.config import RangeMethod
from yolov7.errors import DataError, ModelError
from yolov7.export.calibrate import calibrate, learnt_values, shared, with_learnt
from yolov7.export.quantize import quantizable, quantized
from yolov7.export.samples import augmented_batches, augmented_like
from yolov7.ranges import NOTHING, steps, weight_scales


def relu(maker, value):
    return maker.add("Relu", value)


def branches(negative=False):
    """A pool and a concatenation of two branches, one of them with negative values, and two convolutions behind."""
    maker = GraphMaker()
    stem = relu(maker, maker.conv("images", inputs=3))
    one = relu(maker, maker.conv(stem))
    two = maker.conv(stem) if negative else relu(maker, maker.conv(stem))
    pooled = maker.add("MaxPool", one, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = maker.add("Concat", one, pooled, two, axis=1)
    last = relu(maker, maker.conv(joined, inputs=3 * CHANNELS))
    return maker.model(maker.conv(last, channels=3)), {"stem": stem, "joined": [one, pooled, two, joined], "last": last}


def images(count=3):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (1, 3, 32, 32), dtype=np.uint8) for _ in range(count)]


def run(graph, batch):
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {"images": batch.astype(np.float32) / 255})[0]


def test_every_method_gives_ranges_that_fit_the_values():
    graph, _ = branches()
    found = {method: calibrate(graph, images, method=method) for method in get_args(RangeMethod)}
    for method, ranges in found.items():
        assert all(low <= 0 < high for low, high in ranges.values()), method
        assert all(low >= found["max"][name][0] for name, (low, _) in ranges.items())
        assert all(high <= found["max"][name][1] for name, (_, high) in ranges.items())
    assert len({tuple(ranges.values()) for ranges in found.values()}) == 4
    assert calibrate(graph, images) == found["mse"]
    assert calibrate(graph, lambda: images()[::-1], method="percentile") == found["percentile"]


def test_shared_ranges_are_the_union_over_what_is_joined():
    graph, values = branches()
    own = calibrate(graph, images)
    joint = shared(graph, own)
    group = [own[name] for name in values["joined"]]
    expected = (min(low for low, _ in group), max(high for _, high in group))
    assert {joint[name] for name in values["joined"]} == {expected} and len(set(group)) > 1
    assert {name for name in own if own[name] != joint[name]} <= set(values["joined"])
    assert shared(graph, joint) == joint


def test_a_relu_stays_where_its_range_reaches_below_zero():
    """The quantiser drops a Relu in front of a range from zero; joined to a negative branch, it has none."""
    graph, values = branches(negative=True)
    ranges = shared(graph, calibrate(graph, images))
    assert ranges[values["joined"][0]][0] < 0
    result = quantized(graph, quantizable(graph), ranges)
    made_by = {name: node for node in result.graph.node for name in node.output}
    assert made_by[values["joined"][0]].op_type == "Relu"
    batch = images(1)[0]
    assert 0 < np.abs(run(result, batch) - run(graph, batch)).mean() < 0.06 * run(graph, batch).std()


def test_values_that_are_always_zero_are_named_and_have_a_range(caplog):
    graph, values = branches()
    weights = {node.name: node.input[1] for node in graph.graph.node if node.op_type == "Conv"}
    node = next(node for node in graph.graph.node if node.output[0] == values["stem"])
    dead = next(n for n in graph.graph.node if n.output[0] == node.input[0])
    for tensor in graph.graph.initializer:
        if tensor.name in dead.input:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    with caplog.at_level(logging.WARNING):
        ranges = calibrate(graph, images)
    assert ranges[values["stem"]] == ranges[dead.output[0]] == NOTHING
    (record,) = caplog.records
    assert "always zero on the calibration images" in record.getMessage()
    assert f"the output of {weights[dead.name]}, the Relu behind {weights[dead.name]}" in record.getMessage()
    result = quantized(graph, quantizable(graph), ranges)
    assert np.isfinite(run(result, images(1)[0])).all()


def test_values_that_are_not_finite_name_the_layer():
    graph, _ = branches()
    node = [node for node in graph.graph.node if node.op_type == "Conv"][1]
    tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), tensor.name))
    with pytest.raises(ModelError, match=f"^int8: the output of {node.input[1]}: its values are not finite"):
        calibrate(graph, images)


def test_images_that_show_nothing_are_refused_and_equal_ones_warned_of(caplog):
    graph, _ = branches()
    plain = np.full((1, 3, 32, 32), 7, np.uint8)
    bordered = plain.copy()
    bordered[..., :8] = 114
    with pytest.raises(DataError, match="the 2 calibration images are of a single colour each"):
        calibrate(graph, lambda: [plain, bordered])
    with pytest.raises(DataError, match="no images to calibrate with"):
        calibrate(graph, list)
    assert not caplog.records
    calibrate(graph, lambda: images(1) * 3)
    assert [record.getMessage() for record in caplog.records] == [
        "int8: the 3 calibration images are all the same, so the ranges are those of one image; check the images of "
        "the training split"
    ]
    caplog.clear()
    calibrate(graph, lambda: [plain, *images(1)])
    calibrate(graph, lambda: images(1))
    assert not caplog.records


def test_learnt_ranges_are_found_by_the_names_of_weights():
    graph, values = branches()
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    found = learnt_values(
        graph, {convolutions[1].input[1]: (-0.5, 2.0), convolutions[2].input[1]: (0.0, 3.0), "c0": (0.0, 1.0)}
    )
    assert found == {values["stem"]: (-0.5, 3.0), "images": (0.0, 1.0)}  # the union of those of one value
    for learnt, message in (
        ({"nothing.weight": (0.0, 1.0)}, "'nothing.weight', which is not the weight of a convolution"),
        ({"c0": (0.0, np.inf)}, "is not a range around zero"),
        ({"c0": (0.0, 0.0)}, "is not a range around zero"),
        ({"c0": (1.0, 2.0)}, "is not a range around zero"),
    ):
        with pytest.raises(ModelError, match=message):
            learnt_values(graph, learnt)


def test_a_value_in_front_of_a_pool_takes_its_learnt_range():
    graph, values = branches()
    ranges = calibrate(graph, images)
    one, pooled, two, joined = values["joined"]
    merged = with_learnt(graph, ranges, {pooled: (0.0, 9.0), joined: (0.0, 5.0)})
    assert merged[one] == merged[pooled] == (0.0, 9.0) and merged[joined] == (0.0, 5.0)
    assert merged[two] == ranges[two]
    merged = with_learnt(graph, ranges, {pooled: (0.0, 9.0), one: (0.0, 8.0)})
    assert merged[one] == (0.0, 8.0) and merged[pooled] == (0.0, 9.0)


def pooled_network():
    """A value that is read by a convolution, and by another one behind a pool."""
    maker = GraphMaker()
    stem = relu(maker, maker.conv("images", inputs=3))
    pooled = maker.add("MaxPool", stem, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = maker.add("Concat", relu(maker, maker.conv(stem)), relu(maker, maker.conv(pooled)), axis=1)
    return maker.model(maker.conv(relu(maker, maker.conv(joined, inputs=2 * CHANNELS)), channels=3)), stem, pooled


@pytest.mark.parametrize("placement", ["onnx", "openvino", "tensorrt"])
def test_two_learnt_ranges_at_a_pool_are_both_kept(placement):
    graph, stem, pooled = pooled_network()
    learnt = {stem: (0.0, 1.5), pooled: (0.0, 2.5)}
    ranges = with_learnt(graph, calibrate(graph, images), learnt)
    result = quantized(graph, quantizable(graph), ranges, placement=placement, exact=set(learnt))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    made_by = {name: node for node in result.graph.node for name in node.output}
    convolutions = [node for node in result.graph.node if node.op_type == "Conv"][1:3]
    scales = [constants[made_by[node.input[0]].input[1]] for node in convolutions]
    expected = [1.5 / 127, 2.5 / 127] if placement == "tensorrt" else [steps(0.0, high)[0] for high in (1.5, 2.5)]
    np.testing.assert_array_equal(scales, np.float32(expected))


def test_a_file_rounds_as_the_arithmetic_of_the_ranges_says():
    """Inputs, weights and biases, by hand, against the graph: what a training that rounds relies on."""
    maker = GraphMaker()
    middle = relu(maker, maker.conv("images", inputs=3))
    total = maker.add("Add", relu(maker, maker.conv(middle)), middle)  # reads the value itself, not the rounded one
    graph = maker.model(maker.conv(relu(maker, maker.conv(total)), channels=3))
    names = quantizable(graph)
    ranges = calibrate(graph, images, method="percentile") | {middle: (-0.1, 1.2)}
    result = quantized(graph, names, ranges, placement="openvino", exact={middle})
    by_hand = onnx.ModelProto()
    by_hand.CopyFrom(graph)
    for node in by_hand.graph.node:
        if node.name in names:
            tensor = next(tensor for tensor in by_hand.graph.initializer if tensor.name == node.input[1])
            weight = numpy_helper.to_array(tensor)
            scales = weight_scales(weight)[:, None, None, None]
            tensor.CopyFrom(numpy_helper.from_array(np.round(weight / scales) * scales, tensor.name))
            bias = next(tensor for tensor in by_hand.graph.initializer if tensor.name == node.input[2])
            unit = scales.ravel() * steps(*ranges[node.input[0]])[0]
            bias.CopyFrom(numpy_helper.from_array(np.round(numpy_helper.to_array(bias) / unit) * unit, bias.name))
    batch = images(1)[0]
    value = batch.astype(np.float32) / 255
    reads = {node.output[0]: set(node.input) for node in result.graph.node}
    assert middle in reads[total]
    # Each convolution alone, on its input rounded by hand.
    for node in by_hand.graph.node:
        if node.op_type == "Conv" and node.name in names:
            value_in, expected = observed(result, node.input[0], node.output[0], value)
            low, high = ranges[node.input[0]]
            np.testing.assert_allclose(alone(by_hand, node, rounded(value_in, low, high)), expected, atol=2e-6)


def observed(result, name, output, value):
    """The value that the rounding reads, and the output of the convolution."""
    copy = onnx.ModelProto()
    copy.CopyFrom(result)
    wanted = [name for name in (name, output) if name != "images"]
    copy.graph.output.extend(onnx.ValueInfoProto(name=one) for one in wanted)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = onnxruntime.InferenceSession(copy.SerializeToString(), options).run(wanted, {"images": value})
    return (value, *found) if name == "images" else found


def alone(graph, node, value):
    info = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    constants = [tensor for tensor in graph.graph.initializer if tensor.name in node.input]
    copy = onnx.helper.make_node("Conv", ["x", *node.input[1:]], ["y"], pads=[1, 1, 1, 1])
    made = onnx.helper.make_model(
        onnx.helper.make_graph([copy], "one", info[:1], info[1:], constants),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    return onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": value})[0]


def test_mosaics_are_those_of_the_training_by_its_seed(index):
    from yolov7.config import train_parameters

    def batches(seed):
        train = train_parameters({"image_size": 64, "seed": seed}, where="train")
        return list(augmented_batches(augmented_like(train, index), 3))

    first, again, other = batches(0), batches(0), batches(1)
    assert [batch.shape for batch in first] == [(1, 3, 64, 64)] * 3 and first[0].dtype == np.uint8
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(np.array_equal(one, two) for one, two in zip(first, other, strict=True))
