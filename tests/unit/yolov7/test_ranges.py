"""Ranges: a running histogram, four ways to choose a range, and the arithmetic of ONNX Runtime's operators."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from byte_arithmetic import rounded, symmetric_scale
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from yolov7.config import RangeMethod
from yolov7.errors import ModelError
from yolov7.ranges import (
    NOTHING,
    Histogram,
    full_weight_scales,
    range_of,
    steps,
    union,
    weight_scales,
)

METHODS = get_args(RangeMethod)
NUMBERS = st.floats(-1e6, 1e6, width=32)
ARRAYS = st.lists(st.lists(NUMBERS, min_size=1, max_size=20), min_size=1, max_size=5)


def seen(*arrays, name="value"):
    histogram = Histogram(name)
    for array in arrays:
        histogram.add(np.asarray(array, np.float32))
    return histogram


@given(ARRAYS)
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_arrays_does_not_matter_and_no_number_is_lost(arrays):
    one, turned, whole = seen(*arrays), seen(*arrays[::-1]), seen(np.concatenate(arrays))
    values = np.concatenate(arrays).astype(np.float32)
    for histogram in (one, turned, whole):
        assert histogram.counts.sum() + histogram.zeros == values.size
        assert (histogram.low, histogram.high) == (min(values.min(), 0), max(values.max(), 0))
        np.testing.assert_array_equal(histogram.counts, one.counts)
        np.testing.assert_allclose(histogram.sums, one.sums, atol=1e-9 * np.abs(values).sum())
    if not one.is_zero:
        edges = one.edges()
        assert edges[0] <= one.low and one.high <= edges[-1]
        means, counts = one.means()
        assert (means >= edges[:-1][one.counts > 0] - 1e-9).all() and counts.sum() == one.counts.sum()


@given(ARRAYS, st.sampled_from(METHODS))
@settings(max_examples=30, deadline=None)
def test_a_range_includes_zero_and_lies_in_what_was_seen(arrays, method):
    histogram = seen(*arrays)
    low, high = range_of(histogram, method)
    assert low <= 0 <= high and low < high
    assert histogram.is_zero or (histogram.low <= low and high <= histogram.high)
    assert method != "max" or histogram.is_zero or (low, high) == (histogram.low, histogram.high)


def test_each_method_leaves_out_what_is_too_rare_to_matter():
    normal = np.random.default_rng(0).normal(0, 1, (60, 1 << 14)).astype(np.float32)
    usual, rare = seen(*normal), seen(*normal, [100.0])
    assert range_of(rare, "max")[1] == 100
    for method, (least, most) in {"percentile": (3.6, 4.0), "mse": (3.9, 75), "entropy": (2.5, 20)}.items():
        low, high = range_of(rare, method)
        assert least < high < most and low < -0.5, method
        low, high = range_of(usual, method)
        assert -5 < low < -2.5 and 2.5 < high < 5, method
    # A value behind a SiLU: the short end is not worth a clipping.
    silu = normal * 2 / (1 + np.exp(-normal * 2))
    for method in ("max", "percentile", "entropy"):
        assert range_of(seen(*silu), method)[0] == pytest.approx(-0.2785, abs=2e-3)


def test_bytes_have_their_own_range_without_error():
    images = np.arange(256, dtype=np.float32).repeat(3) / 255
    assert range_of(seen(images), "mse") == (0.0, 1.0)
    np.testing.assert_allclose(rounded(images, 0.0, 1.0), images, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_zero_or_constant_have_a_range(method):
    assert seen(np.zeros(9)).is_zero and range_of(seen(np.zeros(9)), method) == NOTHING
    assert range_of(Histogram(), method) == NOTHING
    assert range_of(seen(np.full(9, 7.0)), method) == (0.0, 7.0)
    assert range_of(seen(np.full(9, -1e-30)), method)[1] == 0.0
    mostly_zero = seen(np.zeros(16384), np.zeros(16384), [2.0])
    assert range_of(mostly_zero, method) == (0.0, 2.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_the_value(bad):
    with pytest.raises(ModelError, match=r"^neck\.conv: its values are not finite, so it has no range in eight bits$"):
        seen([1.0, bad, 2.0], name="neck.conv")


def test_a_large_array_is_sampled_but_its_ends_are_exact():
    values = np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)
    values[999_999] = -50
    histogram = seen(values)
    assert histogram.low == -50 and 10_000 < histogram.counts.sum() < 40_000


def test_a_union_holds_every_range():
    assert union([(-1.0, 2.0), (0.0, 3.0), (-0.5, 0.5)]) == (-1.0, 3.0)


def through_onnx(values, scale, zero):
    """QuantizeLinear and DequantizeLinear of ONNX Runtime."""
    names = ("x", "y")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in names]
    constants = [onnx.numpy_helper.from_array(np.asarray(v), n) for v, n in ((scale, "s"), (zero, "z"))]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values})[0]


@pytest.mark.parametrize("ends", [(0.0, 6.0), (-0.2785, 11.3), (-3.0, 0.0), (-1e-3, 1e-3), (-7.1, 4.2)])
def test_the_arithmetic_is_that_of_onnx_runtime(ends):
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    zero, scale = compute_scale_zp(*np.float32(ends), np.uint8(0), np.uint8(255))
    assert steps(*ends) == (scale, zero) and steps(*ends)[0].dtype == np.float32
    zero, scale = compute_scale_zp(*np.float32(ends), np.int8(-127), np.int8(127), symmetric=True)
    assert symmetric_scale(*ends) == scale and zero == 0
    values = np.random.default_rng(0).uniform(1.3 * ends[0] - 1e-3, 1.3 * ends[1] + 1e-3, 4096).astype(np.float32)
    scale, zero = steps(*ends)
    halves = (np.arange(256, dtype=np.float32) - np.float32(zero) + np.float32(0.5)) * scale
    values = np.concatenate([values, halves])
    np.testing.assert_array_equal(rounded(values, *ends), through_onnx(values, scale, np.uint8(zero)))


@pytest.mark.parametrize("axis", [0, 1])
def test_full_weights_have_a_scale_per_output_channel(axis):
    from onnxruntime.quantization.quant_utils import quantize_data

    weight = np.random.default_rng(0).normal(0, 1, (4, 5, 3, 3)).astype(np.float32)
    weight[(slice(None),) * axis + (2,)] = 0
    scales = full_weight_scales(weight, axis=axis)
    assert scales.shape == (weight.shape[axis],) and scales.dtype == np.float32 and scales[2] == 1
    for channel, scale in enumerate(scales):
        values = weight.take(channel, axis).ravel()
        zero, expected, q = quantize_data(values, TensorProto.INT8, True)
        assert zero == 0 and scale == expected and np.abs(q.astype(int)).max() == (127 if channel != 2 else 0)
        np.testing.assert_array_equal(q, np.round(values / scale))


def in_sixteen_bits(weight):
    """Whether a product of the largest bytes with two neighbouring weights (C, I, K, K) overflows anywhere."""
    sums = []
    for order in (weight, np.moveaxis(weight, 1, -1)):
        products = np.abs(order.reshape(len(order), -1).astype(np.int64)) * 255
        sums.append((products[:, 1:] + products[:, :-1]).max(initial=0))
        sums.append(products.max())
    return max(sums) <= np.iinfo(np.int16).max


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3)),
    tail=st.floats(0.3, 6.0),
    axis=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_products_with_two_neighbouring_weights_fit_in_sixteen_bits(shape, tail, axis, seed):
    outputs, inputs, side = shape
    size = (outputs, inputs, side, side) if axis == 0 else (inputs, outputs, side, side)
    random = np.random.default_rng(seed)
    weight = (np.abs(random.normal(0, 1, size)) ** tail * random.choice([-1, 1], size)).astype(np.float32)
    scales = weight_scales(weight, axis=axis)
    rows = np.moveaxis(weight, axis, 0)
    steps_of = np.round(rows / scales[:, None, None, None])
    assert scales.dtype == np.float32 and in_sixteen_bits(steps_of)
    most = np.abs(steps_of).reshape(outputs, -1).max(axis=1)
    assert (most >= 64).all() and (most <= 127).all()  # never less than seven bits, nothing clipped
    largest = np.abs(rows).reshape(outputs, -1).max(axis=1)
    np.testing.assert_allclose(most * scales, largest, rtol=1e-6)  # and not rounded
    full = full_weight_scales(weight, axis=axis)
    assert (scales >= full * (1 - 1e-6)).all() and (scales <= full * 127 / 64 * (1 + 1e-6)).all()


def test_a_weight_beside_small_ones_has_nearly_eight_bits():
    weight = np.full((3, 4, 3, 3), 0.01, np.float32)
    weight[0, 1, 1, 1] = 1.0  # alone
    weight[1, 1, 1, 1:3] = 1.0  # two along the kernel
    weight[2, 1:3, 1, 1] = -1.0  # two along the inputs
    np.testing.assert_allclose(1 / weight_scales(weight), [125, 64, 64], rtol=1e-6)  # 127 / 1.01, a whole number
    assert not in_sixteen_bits(np.round(weight / full_weight_scales(weight)[:, None, None, None]))
    assert weight_scales(np.zeros((2, 1, 1, 1), np.float32)).tolist() == [1, 1]
