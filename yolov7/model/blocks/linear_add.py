"""LinearAdd: the RepVGG block of RepOptimizer's hyper-search (reference sheet: yolov6-training, section 10)."""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolov7.model import reparameterize as fold
from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.layers import activation, batch_norm, every
from yolov7.model.blocks.unit import FusedConv
from yolov7.model.spec import Map


@dataclass(frozen=True)
class LinearAdd(ConvBlock):
    """The RepVGG block with a learnt scale instead of a batch norm in each branch, and one batch norm after the sum."""

    out: int
    stride: int = 1

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride * self.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return LinearAddModule(channels[0], self.out, self.stride, act=self.act or act)


class Scale(nn.Module):
    """A learnt factor for each channel, 1 at first. Its parameter is a `weight`, which the optimiser decays."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


class LinearAddModule(nn.Module):
    """act(BN(g3 * conv3x3(x) + g1 * conv1x1(x) + gi * x)), g a scale per output channel; x where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, act: str = "relu"):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.dense_scale = Scale(out_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pointwise_scale = Scale(out_channels)
        keeps_shape = in_channels == out_channels and stride == 1
        self.identity_scale = Scale(out_channels) if keeps_shape else None
        self.bn = batch_norm(out_channels)
        self.act = activation(act)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense_scale(self.conv(x)) + self.pointwise_scale(self.pointwise(every(x, self.stride)))
        if self.identity_scale is not None:
            y = y + self.identity_scale(x)
        out: Tensor = self.act(self.bn(y))
        return out

    def reparameterize(self) -> FusedConv:
        """One 3x3 convolution with bias that computes the same."""
        if self.conv.weight.is_meta:
            return FusedConv(fold.laid_out(self.conv), self.act)
        identity = None if self.identity_scale is None else fold.float64(self.identity_scale.weight)
        kernel = summed_kernel(
            fold.float64(self.conv.weight),
            fold.float64(self.pointwise.weight),
            fold.float64(self.dense_scale.weight),
            fold.float64(self.pointwise_scale.weight),
            identity,
        )
        none = kernel.new_zeros(kernel.shape[0])
        kernel, bias = fold.fold_affine_after(kernel, none, *fold.batch_norm_affine(self.bn))
        return FusedConv(fold.biased_conv(self.conv, kernel, bias), self.act)


def summed_kernel(
    dense: Tensor, pointwise: Tensor, dense_scale: Tensor, pointwise_scale: Tensor, identity_scale: Tensor | None
) -> Tensor:
    """The branches as one kernel (O, I, 3, 3): W3 * g3 + pad(W1) * g1, and gi on the diagonal of the centre tap.

    Kernels (O, I, 3, 3) and (O, I, 1, 1), scales (O,).
    """
    kernel = dense * dense_scale[:, None, None, None]
    kernel = kernel + F.pad(pointwise * pointwise_scale[:, None, None, None], [1, 1, 1, 1])
    if identity_scale is not None:
        kernel = kernel + fold.identity_kernel(kernel) * identity_scale[:, None, None, None]
    return kernel
