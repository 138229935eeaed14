"""The kinds of operation of a training step on a CPU."""

from __future__ import annotations

import pytest
import torch
from cpu_step import KINDS, REST, ByOperation, kind_of, step_flops

from yolov7.model.blocks import ConvUnit


@pytest.mark.parametrize("act", ["leaky-relu", "silu", "relu"])
def test_operations_of_a_conv_unit_are_found_forward_and_back(act):
    unit = ConvUnit(3, 4, 3, act=act).train()
    with ByOperation() as operations:
        unit(torch.rand(2, 3, 8, 8)).backward(torch.ones(2, 4, 8, 8))
    assert {"convolution", "convolution_backward", "native_batch_norm_backward"} <= set(operations.seconds)
    kinds = {kind_of(name) for name in operations.seconds}
    # The sum is the counter of the batch norm.
    assert kinds - {REST} == {"convolution", "convolution, backward", "batch norm", "activation", "sums, products"}


def test_every_kind_has_operations_and_what_is_of_none_is_the_rest():
    names = ("cat", "max_pool2d_with_indices_backward", "upsample_nearest2d", "add_", "mul", "_foreach_lerp_")
    expected = ["concatenation", *["pooling, up-sampling"] * 2, *["sums, products"] * 2, "optimiser, average"]
    assert [kind_of(name) for name in names] == expected
    assert set(expected) <= set(KINDS)
    assert {kind_of(name) for name in ("addcmul", "sort", "topk", "convolution_overrideable")} == {REST}


def test_operations_are_counted_forward_and_twice_back_but_for_the_gradient_of_the_image():
    forward = 2 * 32 * 3 * 9 * 32 * 32  # first convolution of yolov7-tiny: 3 to 32 channels, 3x3, 64 px to 32
    first = step_flops("yolov7-tiny", 64)
    assert step_flops("yolov7-tiny", 128) == 4 * first
    assert (first + forward) % 3 == 0, "the first convolution alone has two passes, all others three"
