"""The quantised form: it computes what the int8 files compute, its ranges are learnt, and its files come back.

That every variant rounds where its graph does is in tests/unit/yolov7/export/test_int8_variants.py, with the graphs.
"""

from copy import deepcopy
from dataclasses import replace

import byte_arithmetic
import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_aligned import small_aligned
from small_detector import SIDE, metadata_of, pictures, small_detector
from small_efficient import small_efficient, trained_efficient
from torch import nn

from yolov7 import ranges
from yolov7.errors import DataError, ModelError
from yolov7.export.quantize import quantizable
from yolov7.export.quantize import quantized as quantized_graph
from yolov7.model import create_model, load_checkpoint, save_checkpoint
from yolov7.model.quantized import calibrate, learnt_ranges, quantized, quantized_convolutions
from yolov7.model.rep_optimizer import target
from yolov7.model.rounding import InputRange, QuantizedConv
from yolov7.model.variants import find_variant
from yolov7.predict import load_detector
from yolov7.predict.runtimes import onnx_session

LOW, HIGH = st.floats(-1e4, 0.0), st.floats(1e-3, 1e4)


def images(count=2, side=SIDE):
    shown = [np.ascontiguousarray(image[:side, :side]) for image in pictures(12) if min(image.shape[:2]) >= side]
    return torch.from_numpy(np.stack(shown[:count])).permute(0, 3, 1, 2).float() / 255


def calibrated(model, method="mse"):
    form = quantized(model)
    calibrate(form, images(3).split(1), method)
    return form


def read_by(graph):
    """The value that each convolution reads, by the name of its weight in deploy form."""
    found = {}
    for node in graph.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            name = node.input[1]
            found[name[min(i for part in ("backbone.", "neck.", "head.") if (i := name.find(part)) >= 0) :]] = node
    return found


# What the int8 files compute -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["", "_aligned", "_yolov6"])
def test_the_quantised_form_computes_what_the_int8_graph_does(family, request):
    """Convolution by convolution on the values of the graph, and as a whole where nothing falls between two steps.

    A value in the middle of two steps may fall to either side, since the two divide by a scale and multiply by its
    inverse. In a deep network whose weights are drawn and not learnt that moves everything behind it.
    """
    model = request.getfixturevalue({"": "trained"}.get(family, f"trained{family}"))
    graph = onnx.load(request.getfixturevalue(f"exported{family}") / "model.onnx")
    form, nodes = calibrated(model), read_by(graph)
    learnt, shown = learnt_ranges(form), images(1)
    chosen = [node.name for name, node in nodes.items() if name in learnt]
    assert sorted(chosen) == sorted(quantizable(graph))
    values = {nodes[name].input[0]: extent for name, extent in learnt.items()}
    found = run(quantized_graph(graph, chosen, values, placement="openvino"), nodes.values(), shown.numpy())
    apart, outputs = 0, 0
    for name, conv in quantized_convolutions(form).items():
        node = nodes[f"{name}.weight"]
        step = np.ptp(conv.values.range()) / 255
        with torch.inference_mode():
            off = np.abs(conv(torch.from_numpy(found[node.input[0]])).numpy() - found[node.output[0]])
        assert off.max() <= 2 * step * float(conv.weight.abs().max()), name
        apart, outputs = apart + (off > 1e-3 * step).sum(), outputs + off.size
    assert apart <= 0.002 * outputs
    if family == "":
        with torch.inference_mode():
            np.testing.assert_allclose(form(shown).numpy(), found["detections"], rtol=1e-3, atol=1e-3)


def run(graph, nodes, shown):
    """The detections of a graph, and what the convolutions read and return, by name."""
    inside = {value for node in nodes for value in (node.input[0], node.output[0])}
    present = {value.name for value in (*graph.graph.output, *graph.graph.input)}
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(inside - present))
    session = onnx_session(graph, optimised=False)
    wanted = [output.name for output in session.get_outputs()]
    return {"images": shown, **dict(zip(wanted, session.run(wanted, {"images": shown}), strict=True))}


@pytest.mark.parametrize("family", ["", "_aligned", "_yolov6"])
def test_convolutions_of_a_value_share_its_range(family, request):
    model = request.getfixturevalue({"": "trained"}.get(family, f"trained{family}"))
    nodes = read_by(onnx.load(request.getfixturevalue(f"exported{family}") / "model.onnx"))
    ours = {}
    for name, conv in quantized_convolutions(quantized(model)).items():
        ours.setdefault(nodes[f"{name}.weight"].input[0], set()).add(id(conv.values))
    assert all(len(shared) == 1 for shared in ours.values())
    assert len({next(iter(shared)) for shared in ours.values()}) == len(ours)


@settings(max_examples=60, deadline=None)
@given(low=LOW, high=HIGH, seed=st.integers(0, 10))
@example(low=0.0, high=1.0, seed=0)
@example(low=-1e4, high=1e-3, seed=0)
def test_values_are_rounded_as_in_the_files(low, high, seed):
    values = InputRange()
    values.set(low, high)
    low, high = values.range()
    x = torch.from_numpy(np.random.default_rng(seed).normal(0, high - low, (1, 4, 9, 9)).astype(np.float32))
    x[0, 0, 0] = 0.0
    rounded, wanted = values(x).detach().numpy(), byte_arithmetic.rounded(x.numpy(), low, high)
    scale, _ = ranges.steps(low, high)
    assert (rounded[0, 0, 0] == 0).all()
    assert np.abs(rounded - wanted).max() <= scale * 1.001
    # Beside halves, which the two add up in another order, all are equal.
    middle = np.abs(np.abs(x.numpy() / scale - np.round(x.numpy() / scale)) - 0.5) < 1e-3
    np.testing.assert_allclose(rounded[~middle], wanted[~middle], rtol=1e-5, atol=scale * 1e-4)


@pytest.mark.parametrize(
    ("conv", "axis"),
    [
        (nn.Conv2d(6, 8, 3, 2, 1), 0),
        (nn.Conv2d(8, 8, 3, padding=1, groups=4), 0),
        (nn.ConvTranspose2d(6, 8, 2, 2), 1),
    ],
)
def test_weights_are_rounded_as_in_the_files_and_convolve_as_before(conv, axis):
    with torch.no_grad():
        conv.weight.select(axis, 1).zero_()  # a channel that says nothing
        conv.weight.select(axis, 2).mul_(1e3)
    form, x = QuantizedConv(conv, InputRange(), owns=True), torch.rand(2, conv.in_channels, 8, 8)
    shape = [1] * 4
    shape[axis] = -1
    scale = ranges.weight_scales(conv.weight.detach().numpy(), axis=axis).reshape(shape)
    np.testing.assert_array_equal(form._weight_scales().numpy(), scale.ravel())
    wanted = np.round(conv.weight.detach().numpy() / scale) * scale
    np.testing.assert_allclose(form.rounded_weight().detach().numpy(), wanted, rtol=1e-6, atol=1e-7)
    plain = deepcopy(form).reparameterize()
    assert torch.equal(plain.weight, conv.weight) and plain(x).shape == conv(x).shape
    assert torch.equal(plain(x), conv(x))
    with torch.no_grad():
        plain.weight.copy_(form.rounded_weight())
        plain.bias.copy_(form.rounded_bias())
    assert float((plain.bias - conv.bias).abs().max()) <= float(scale.max()) / 255
    torch.testing.assert_close(form(x), plain(form.values(x)))


# Gradients -----------------------------------------------------------------------------------------------------------


def straight_through(x, ends):
    """The rounding with torch's own derivatives, float64: a rounded number has the gradient of the number."""

    def passed(number):
        return number + (number.round() - number).detach()

    scale = (ends[1] - ends[0]) / 255
    zero = passed(-ends[0] / scale)
    return passed((x / scale).maximum(-zero).minimum(255 - zero)) * scale


@settings(max_examples=40, deadline=None)
@given(zero=st.integers(0, 254), exponent=st.integers(-6, 6), seed=st.integers(0, 5))
def test_gradients_are_those_of_rounding_that_is_passed_straight_through(zero, exponent, seed):
    scale = 2.0**exponent  # a zero point that is exact: the rule for the ends takes it for that
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 5, 5, generator=generator) * 200 * scale
    weight = torch.randn(x.shape, generator=generator)
    values = InputRange()
    values.set(-zero * scale, (255 - zero) * scale)
    ours = x.clone().requires_grad_()
    (values(ours) * weight).sum().backward()

    ends = torch.tensor([-zero * scale, (255 - zero) * scale], dtype=torch.float64, requires_grad=True)
    theirs = x.double().requires_grad_()
    (straight_through(theirs, ends) * weight.double()).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad)
    factor = float(values.unit) / (x[0].numel() * 255) ** 0.5
    torch.testing.assert_close(values.bounds.grad.double(), ends.grad * factor, rtol=1e-3, atol=1e-3 * factor)


def test_the_gradient_of_an_end_is_the_slope_of_what_is_clipped_to_it():
    x = torch.full((1, 1, 4, 4), 9.0)  # all above the range: where the output follows the end smoothly
    values = InputRange()
    values.set(0.0, 4.0)
    values(x).sum().backward()

    def clipped(high):
        return np.float64(byte_arithmetic.rounded(x.numpy(), 0.0, high).astype(np.float64).sum())

    slope = (clipped(4.0 + 1e-3) - clipped(4.0 - 1e-3)) / 2e-3
    factor = float(values.unit) / (x[0].numel() * 255) ** 0.5
    assert float(values.bounds.grad[1]) == pytest.approx(slope * factor, rel=1e-3)
    assert float(values.bounds.grad[0]) == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-1e6, 1e6), high=st.floats(-1e6, 1e6))
@example(low=0.0, high=0.0)
@example(low=5.0, high=-5.0)
def test_wherever_the_ends_move_the_output_is_finite_and_zero_stays_zero(low, high):
    values = InputRange()
    with torch.no_grad():
        values.bounds.copy_(torch.tensor([low, high]))
    x = torch.linspace(-3, 3, 13).reshape(1, 1, 1, 13).requires_grad_()
    y = values(x)
    y.sum().backward()
    assert bool(y.isfinite().all()) and float(y[..., 6]) == 0.0
    assert bool(x.grad.isfinite().all()) and bool(values.bounds.grad.isfinite().all())
    assert values.range()[0] <= 0.0 <= values.range()[1]


def test_all_weights_biases_and_ranges_are_trained_and_nothing_else():
    form = calibrated(trained_efficient(small_efficient("3.0", anchor_aided=True, distributions=True))).train()
    sum(level.square().sum() for level in form.raw(images())).backward()
    trained = {name for name, parameter in form.named_parameters() if parameter.grad is not None}
    bins = {name for name, parameter in form.named_parameters() if not parameter.requires_grad}
    assert trained | bins == {name for name, _ in form.named_parameters()}
    assert any(name.endswith(".input.bounds") for name in trained)
    assert all(name.split(".")[-1] in ("weight", "bias", "bounds") for name in trained)


# The form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [small_detector(), small_aligned(), trained_efficient(small_efficient("3.0", anchor_aided=True))]
)
def test_nothing_is_left_that_only_training_has(model):
    form = quantized(model)
    assert form.form == "quantized" and not form.has_auxiliary and form.auxiliary is None
    assert form.spec.auxiliary == () and form.spec.head == form.spec.head.deployed()
    assert len(form.train().raw(images())) == len(form.strides)
    plain = form.reparameterize()
    assert plain.form == "deploy" and not quantized_convolutions(plain)
    with torch.inference_mode():
        assert torch.equal(plain(images()), model.reparameterize()(images()))
    assert model.form == "training"  # the original is as it was


def test_calibration_measures_what_is_read_without_rounding():
    model = small_detector()
    form = calibrated(model, "max")
    seen = {}
    plain = model.reparameterize()
    for name in quantized_convolutions(form):
        plain.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    with torch.inference_mode():
        plain(images(3))
    for name, (low, high) in learnt_ranges(form).items():
        value = seen[name.removesuffix(".weight")]
        assert low == pytest.approx(min(0.0, float(value.min())), rel=1e-4, abs=1e-6)
        assert high == pytest.approx(max(0.0, float(value.max())), rel=1e-4, abs=1e-6)


def test_calibration_refuses_no_images_and_values_that_are_not_finite():
    form = quantized(small_detector())
    with pytest.raises(DataError, match="no images to calibrate with"):
        calibrate(form, [], "mse")
    with torch.no_grad():
        next(form.parameters()).fill_(float("inf"))
    with pytest.raises(ModelError, match="not finite"):
        calibrate(form, images().split(1), "mse")


def test_a_head_that_does_not_name_its_last_convolutions_is_refused(monkeypatch):
    model = small_detector()
    monkeypatch.delattr(type(model.head), "outputs")
    with pytest.raises(ModelError, match="small: its head does not say which convolutions are its last"):
        quantized(model)


def test_networks_of_rep_optimizer_are_quantised_too():
    model = create_model(replace(target(find_variant("yolov6-n")), image_size=SIDE), 2)
    assert len(quantized_convolutions(quantized(model))) == len(
        quantized_convolutions(quantized(create_model("yolov6-n", 2)))
    )


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    form = calibrated(small_detector())
    path = tmp_path / "quantized.safetensors"
    save_checkpoint(path, form, replace(metadata_of(small_detector()), form="quantized"))
    return path


def test_round_trip(file):
    form, (loaded, told) = calibrated(small_detector()), load_checkpoint(file)
    assert told.form == loaded.form == "quantized" and not loaded.training
    assert loaded.spec == form.spec and learnt_ranges(loaded) == learnt_ranges(form)
    before, after = form.state_dict(), loaded.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    with torch.inference_mode():
        assert torch.equal(form.eval()(images()), loaded(images()))
    loaded.train().raw(images())[0].sum().backward()
    assert any(parameter.grad is not None for parameter in loaded.parameters())


def test_a_quantised_file_predicts_as_it_will_in_int8(file):
    detector = load_detector(file)
    picture = np.ascontiguousarray((images(1)[0] * 255).byte().permute(1, 2, 0).numpy())
    decoded = detector.decoded(torch.from_numpy(picture).permute(2, 0, 1)[None])
    with torch.inference_mode():
        assert torch.equal(decoded, load_checkpoint(file)[0](torch.from_numpy(picture).permute(2, 0, 1)[None] / 255))


def changed(file, change):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=header)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("backbone.P2.down.conv.input.bounds"),
            r"1 tensors are missing \(first 'backbone.P2.down.conv.i",
        ),
        (
            lambda t: t.update({"backbone.P2.down.conv.input.bounds": torch.zeros(3)}),
            r"\(2,\).* is expected, got \(3,\)",
        ),
        (lambda t: t.update({"backbone.P2.down.conv.input.bounds": torch.zeros(2)}), "cannot be rounded to eight bits"),
        (lambda t: t.update({"neck.X.input.unit": torch.ones(())}), "not of this network"),
        (lambda t: t["backbone.P2.down.conv.input.unit"].fill_(float("nan")), "not finite"),
        (lambda t: t.pop("backbone.P2.down.conv.weight"), "missing"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(file, change, message):
    changed(file, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
