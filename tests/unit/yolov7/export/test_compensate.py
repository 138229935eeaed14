"""Weights rounded so that their errors cancel: what they read, how they are rounded, what stands in the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from graph_maker import CHANNELS, GraphMaker
from onnx import numpy_helper

from yolov7.artefact import Int8Settings
from yolov7.data.index import Index
from yolov7.errors import ModelError
from yolov7.export import compensate
from yolov7.export.calibrate import calibrate
from yolov7.export.compensate import compensated_weights, neighbouring, round_compensated
from yolov7.export.int8 import Int8Exporter
from yolov7.export.quantize import quantizable, quantized
from yolov7.ranges import PAIR, TOGETHER, full_weight_scales, weight_scales

SHAPES = {
    "plain": {},
    "strides": {"strides": [2, 2]},
    "dilations": {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
    "uneven padding": {"pads": [0, 1, 1, 0], "strides": [2, 1]},
}


def pictures(count=3, size=24):
    """Smooth images: neighbouring pixels and channels are alike, as in photographs."""
    small = np.random.default_rng(5).uniform(0, 255, (count, 3, 4, 4))
    return [np.kron(image, np.ones((size // 4, size // 4)))[None].astype(np.uint8) for image in small]


def chain(kind="plain", **attributes):
    """Three convolutions; the middle one is of this kind."""
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv("images", inputs=3))
    middle = maker.conv(first, **{**SHAPES.get(kind, {}), **attributes})
    return maker.model(maker.conv(maker.add("Relu", middle)))


def weights_of(graph):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def rounded(graph, placement="onnx", images=None):
    images = images or pictures()
    return compensated_weights(graph, quantizable(graph), lambda: images, len(images), placement)


def magnitudes(weight, placement="onnx", axis=0):
    scales = (full_weight_scales if placement == "tensorrt" else weight_scales)(weight, axis=axis)
    return scales.reshape([-1 if i == axis else 1 for i in range(4)])


def test_two_equal_inputs_make_up_for_each_other():
    weight, alike = np.array([[0.4, 0.4, 0.0]]), torch.tensor([[1.0, 1.0, 0], [1.0, 1.0, 0], [0, 0, 1.0]])
    assert np.round(weight).sum() == 0
    assert round_compensated(weight, alike, np.ones(1)).tolist() == [[0.0, 1.0, 0.0]]


def test_unrelated_and_unseen_inputs_are_rounded_to_the_nearest():
    weight = np.random.default_rng(0).normal(0, 40, (5, 7))
    scales = np.linspace(0.7, 1.4, 5)
    nearest = np.round(weight / scales[:, None]).clip(-127, 127)
    for power in (torch.eye(7) * 3.0, torch.zeros(7, 7), torch.diag(torch.tensor([5.0, 0, 1, 0, 2, 9, 1]))):
        assert (round_compensated(weight, power, scales) == nearest).all()


@pytest.mark.parametrize("inputs", [12, 300])  # less than a block of inputs, and several
def test_outputs_are_nearer_than_with_the_nearest_steps(inputs):
    generator = np.random.default_rng(inputs)
    seen = generator.normal(0, 1, (4 * inputs, inputs // 3)) @ generator.normal(0, 1, (inputs // 3, inputs)) + 1.0
    weight, scales = generator.normal(0, 20, (6, inputs)), np.ones(6)

    def error(steps):
        return (((weight - steps) @ seen.T) ** 2).mean()

    steps = round_compensated(weight, torch.from_numpy(seen.T @ seen), scales)
    assert error(steps) < 0.2 * error(np.round(weight))
    assert (steps == np.round(steps)).all() and np.abs(steps - weight).max() < 20


def test_few_samples_are_believed_less():
    """One image of nine places says little about 72 inputs: more of the weights keep their nearest steps."""
    generator = np.random.default_rng(4)
    weight = generator.normal(0, 1, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    (layer,) = compensate._layers(chain(), [chain().graph.node[2].name])
    found = torch.from_numpy(generator.uniform(0, 1, (1, layer.inputs, 9)).astype(np.float32))
    nearest = np.round(weight / magnitudes(weight)) * magnitudes(weight)
    believed, doubted = (compensate._rounded(weight, layer, layer.moments(found), seen, "onnx") for seen in (10_000, 9))
    assert 0 < (~np.isclose(doubted, nearest)).sum() < (~np.isclose(believed, nearest)).sum()


@pytest.mark.parametrize("moments", [torch.full((3, 3), torch.inf), torch.diag(torch.tensor([1.0, torch.nan, 1.0]))])
def test_moments_that_are_not_finite_are_refused(moments):
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        round_compensated(np.ones((2, 3)), moments, np.ones(2))


def test_moments_that_rounding_made_indefinite_are_damped_until_they_are_not():
    indefinite = torch.tensor([[1.0, 1.05, 0.0], [1.05, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert round_compensated(np.array([[0.4, 0.4, 0.2]]), indefinite, np.ones(1)).tolist() == [[0.0, 1.0, 0.0]]
    with pytest.raises(torch.linalg.LinAlgError, match="not definite"):
        round_compensated(np.ones((1, 2)), torch.tensor([[1.0, 900.0], [900.0, 1.0]]), np.ones(1))


def test_a_layer_whose_values_are_too_large_keeps_the_nearest_steps(caplog):
    graph = chain()
    huge = next(tensor for tensor in graph.graph.initializer if tensor.name == graph.graph.node[0].input[1])
    huge.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(huge) * np.float32(1e19), huge.name))
    # Weights of the project's networks have longer names; a warning has the layer's.
    for holder in (graph.graph.initializer, graph.graph.node):
        for one in holder:
            if isinstance(one, onnx.TensorProto) and one.name == "c2":
                one.name = "head/model.neck.U2.conv.weight"
            elif isinstance(one, onnx.NodeProto) and one.op_type == "Conv" and one.input[1] == "c2":
                one.input[1] = "head/model.neck.U2.conv.weight"
    assert rounded(graph).keys() == {"c0"}
    assert "int8: the inputs of neck.U2.conv are too large; its weights have the nearest steps" in caplog.text


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_neighbours_are_those_whose_products_a_processor_may_add(kernel):
    generator = np.random.default_rng(1)
    inputs = 6 * kernel[0] * kernel[1]
    weight, scales = generator.uniform(-127, 127, (40, 6, *kernel)), np.ones(40)
    seen = generator.uniform(0, 1, (200, inputs))
    flat, moments = weight.reshape(40, inputs), torch.from_numpy(seen.T @ seen)

    def most_together(steps):
        values = np.abs(steps).reshape(weight.shape)
        orders = values.reshape(40, -1), np.moveaxis(values, 1, -1).reshape(40, -1)
        return max((order[:, 1:] + order[:, :-1]).max() for order in orders)

    assert most_together(round_compensated(flat, moments, scales)) > TOGETHER, "the bound is needed"
    bounded = round_compensated(flat, moments, scales, neighbouring(6, kernel))
    assert PAIR - 1 <= most_together(bounded) <= TOGETHER


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("groups", [1, 2, CHANNELS])
def test_the_inputs_that_are_looked_at_are_those_of_the_convolution(kind, groups):
    """With all places, the mean square of a convolution's outputs follows from the moments."""
    given = SHAPES[kind]
    graph = chain(kind, inputs=CHANNELS // groups, group=groups)
    (layer,) = compensate._layers(graph, [graph.graph.node[2].name])
    value = np.random.default_rng(3).normal(0, 1, (1, CHANNELS, 9, 11)).astype(np.float32)
    samples = layer.samples(value, 10_000, np.random.default_rng(0))
    weight = torch.from_numpy(weights_of(graph)[layer.weight])
    top, left, bottom, right = given.get("pads", [1, 1, 1, 1])
    padded = F.pad(torch.from_numpy(value), (left, right, top, bottom))
    strides, dilations = given.get("strides", 1), given.get("dilations", 1)
    expected = F.conv2d(padded, weight, stride=strides, dilation=dilations, groups=groups)
    rows = weight.reshape(groups, CHANNELS // groups, -1)
    assert torch.allclose((rows @ samples).reshape(expected.shape), expected, atol=1e-5)
    power = (rows @ layer.moments(samples)).mul(rows).sum()
    assert torch.allclose(power, expected.square().sum(), rtol=1e-4)
    some = layer.samples(value, 7, np.random.default_rng(0))
    assert some.shape == (*samples.shape[:2], 7)
    assert all((samples == column[..., None]).all(dim=(0, 1)).any() for column in some.unbind(2))


@pytest.mark.parametrize("placement", ["onnx", "openvino", "tensorrt"])
def test_the_file_holds_these_steps_and_other_weights_stay(placement):
    graph, before = chain(), weights_of(chain())
    found = rounded(graph, placement)
    layers = quantizable(graph)
    assert set(found) == {node.input[1] for node in graph.graph.node if node.name in layers}
    assert weights_of(graph).keys() == before.keys(), "the float graph is not touched"
    result = quantized(graph, layers[:1], calibrate(graph, pictures), placement=placement, weights=found)
    written = weights_of(result)
    name, other = (next(n.input[1] for n in graph.graph.node if n.name == layer) for layer in layers[:2])
    steps = found[name] / magnitudes(before[name], placement)
    assert np.abs(steps - np.round(steps)).max() < 1e-4 and np.abs(steps).max() <= 127.001
    assert not np.array_equal(np.round(steps), np.round(before[name] / magnitudes(before[name], placement)))
    if placement == "tensorrt":
        assert np.array_equal(written[name], found[name])  # its weights are float, with a pair of operators behind
    else:
        assert np.array_equal(written[f"{name}_quantized"], np.round(steps).astype(np.int8))
    assert np.array_equal(written[other], before[other]), "in float, with its own weights"


def test_outputs_of_every_layer_are_nearer_to_float():
    graph = chain(inputs=CHANNELS // 2, group=2)
    found = rounded(graph, images=pictures(8))
    for layer in compensate._layers(graph, quantizable(graph)):
        weight = weights_of(graph)[layer.weight]
        scales = magnitudes(weight)
        moments = compensate._moments(graph, [layer], pictures, 3)[layer.weight][1].numpy()

        def error(values, moments=moments, weight=weight, layer=layer):
            difference = (values - weight).reshape(layer.groups, -1, layer.inputs)
            return np.einsum("goi,gij,goj->", difference, moments, difference)

        assert error(found[layer.weight]) < 0.5 * error(np.round(weight / scales) * scales)


def test_a_transposed_convolution():
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv("images", inputs=3))
    graph = maker.model(maker.conv(maker.conv(first, kind="ConvTranspose", strides=[2, 2])))
    (layer,) = (one for one in compensate._layers(graph, quantizable(graph)) if one.transposed)
    weight = weights_of(graph)[layer.weight]
    found, scales = rounded(graph)[layer.weight], magnitudes(weight, axis=1)
    steps = found / scales
    assert np.abs(steps - np.round(steps)).max() < 1e-4
    value = np.abs(np.random.default_rng(2).normal(1, 1, (1, CHANNELS, 6, 6))).astype(np.float32)
    samples = layer.samples(value, 1000, np.random.default_rng(0))
    own = compensate._rounded(weight, layer, layer.moments(samples), samples.shape[2], "onnx")

    def outputs(values):
        return F.conv_transpose2d(torch.from_numpy(value), torch.from_numpy(values), stride=2)

    near, nearest = ((outputs(w) - outputs(weight)).square().mean() for w in (own, np.round(weight / scales) * scales))
    assert near < 0.5 * nearest


@pytest.mark.parametrize("kind", ["Conv", "grouped", "depthwise", "ConvTranspose"])
@pytest.mark.parametrize("placement", ["onnx", "openvino"])
def test_weights_in_files_add_up_to_128_with_each_neighbour(kind, placement):
    """Whatever the weights: here all of them are near the largest, so that half of the steps are just enough."""
    groups = {"grouped": 2, "depthwise": CHANNELS}.get(kind, 1)
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv("images", inputs=3))
    given = {"kind": kind, "strides": [2, 2]} if kind == "ConvTranspose" else {"group": groups}
    middle = maker.conv(first, inputs=CHANNELS // groups, **given)
    graph = maker.model(maker.conv(maker.add("Relu", middle)))
    name = graph.graph.node[2].input[1]
    tensor = next(one for one in graph.graph.initializer if one.name == name)
    near = np.random.default_rng(0).uniform(0.9, 1.0, tuple(tensor.dims)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(near, name))
    weights = rounded(graph)
    result = quantized(graph, quantizable(graph), calibrate(graph, pictures), placement=placement, weights=weights)
    axis = 1 if kind == "ConvTranspose" else 0
    steps = weights_of(result)[f"{name}_quantized"]
    assert np.array_equal(steps, np.round(weights[name] / magnitudes(near, axis=axis)).astype(np.int8))
    values = np.abs(np.moveaxis(steps.astype(int), axis, 0))
    orders = values.reshape(len(values), -1), np.moveaxis(values, 1, -1).reshape(len(values), -1)
    assert 120 < max((order[:, 1:] + order[:, :-1]).max() for order in orders) <= TOGETHER


def test_convolutions_whose_inputs_are_not_known_well_are_left_out():
    graph = chain()
    node = graph.graph.node[2]
    assert [layer.weight for layer in compensate._layers(graph, [node.name])] == [node.input[1]]
    node.attribute.append(onnx.helper.make_attribute("auto_pad", "SAME_UPPER"))
    assert compensate._layers(graph, [node.name]) == []


def test_parts_that_fit_in_memory_give_the_same(monkeypatch):
    graph = chain()
    whole = rounded(graph)
    monkeypatch.setattr(compensate, "_MEMORY", 1)
    runs = []
    images = pictures()
    parts = compensated_weights(graph, quantizable(graph), lambda: runs.append(1) or images, len(images), "onnx")
    assert len(runs) == len(quantizable(graph)) == len(parts)
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)


def test_a_weight_that_two_convolutions_share_is_rounded_for_both():
    maker = GraphMaker()
    first = maker.add("Relu", maker.conv("images", inputs=3))
    second = maker.conv(first)
    again = maker.add("Conv", maker.add("Relu", second), *maker.nodes[-2].input[1:], pads=[1, 1, 1, 1])
    graph = maker.model(maker.conv(maker.add("Relu", again)))
    layers = compensate._layers(graph, quantizable(graph))
    shared = [layer for layer in layers if layer.weight == layers[1].weight]
    assert len(shared) == 2
    both = compensate._moments(graph, shared, pictures, 3)[layers[1].weight][1]
    each = [compensate._moments(graph, [layer], pictures, 3)[layer.weight][1] for layer in shared]
    assert torch.allclose(both, each[0] + each[1], rtol=1e-3)
    found = rounded(graph)
    assert len(found) == len(layers) - 1
    # With one of the two in float, the weight is the network's.
    result = quantized(graph, [quantizable(graph)[1]], calibrate(graph, pictures), weights=found)
    name = layers[1].weight
    steps = weights_of(result)[f"{name}_quantized"]
    assert np.array_equal(steps, np.round(weights_of(graph)[name] / magnitudes(weights_of(graph)[name])))


@pytest.fixture
def make(exported, index):
    graph = onnx.load(exported / "model.onnx")

    def exporter(learnt=None, **settings):
        given = Int8Settings(**{"calibration_images": 4, "max_ap_drop": 1.0, **settings})
        kept = {"calibration": index, "validation": index, "settings": given, "learnt": learnt}
        return Int8Exporter(graph, exported / "model.onnx", **kept)

    return exporter


def test_files_are_rounded_by_the_settings(make, tmp_path):
    by_default, nearest = make(), make(rounding="nearest")
    files = {}
    for name, exporter in (("compensated", by_default), ("nearest", nearest)):
        report = exporter.export(tmp_path / f"{name}.onnx", "onnx")
        assert report.rounding == name == exporter.rounding
        files[name] = weights_of(onnx.load(tmp_path / f"{name}.onnx"))
    assert nearest.weights("onnx") == {} and len(by_default.weights("onnx")) == report.layers
    assert by_default.weights("openvino") is by_default.weights("onnx")
    assert by_default.weights("tensorrt") is not by_default.weights("onnx")
    changed = [name for name in files["nearest"] if name.endswith("_quantized") and "weight" in name]
    assert len(changed) == report.layers
    assert sum(not np.array_equal(files["nearest"][name], files["compensated"][name]) for name in changed) > 0


@pytest.mark.parametrize("settings", [{}, {"keep_in_float": 1}, {"sensitivity": True}])
def test_values_that_are_not_finite_are_refused_before_any_rounding(make, settings, tmp_path):
    exporter = make(**settings)
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(exporter.graph)
    weight = next(node.input[1] for node in spoilt.graph.node if node.name == quantizable(spoilt)[1])
    tensor = next(one for one in spoilt.graph.initializer if one.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    exporter.graph = spoilt
    exporter.__dict__["float_ap"] = 0.5
    with pytest.raises(ModelError, match=r"int8: the output of .*: its values are not finite"):
        exporter.export(tmp_path / "m.onnx", "onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_trained_network_keeps_the_nearest_steps(make):
    graph = make().graph
    convolution = next(node for node in graph.graph.node if node.name == quantizable(graph)[2])
    trained = make(learnt={convolution.input[1].removeprefix("model."): (-0.7, 3.1)})
    assert trained.rounding == "nearest" and trained.weights("onnx") == {}


def test_layers_are_ranked_with_the_weights_of_the_file(make, monkeypatch):
    exporter, seen = make(), []
    real = quantized

    def watched(graph, names, ranges, **more):
        seen.append(more["weights"])
        return real(graph, names, ranges, **more)

    monkeypatch.setattr("yolov7.export.sensitivity.quantized", watched)
    exporter.sensitivities(quantizable(exporter.graph)[:2], "onnx")
    assert len(seen) == 2 and all(weights is exporter.weights("onnx") for weights in seen)


def test_images_of_the_index_are_enough(index: Index, make):
    """More images asked for than there are: each place counts once."""
    assert set(make(calibration_images=len(index) + 50).weights("onnx")) == set(make().weights("onnx"))
