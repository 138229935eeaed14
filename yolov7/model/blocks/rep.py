"""Parallel convolutions in training that become one for deployment: RepConv (YOLOv7) and RepVGG (YOLOv6)."""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from yolov7.model import reparameterize as fold
from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.layers import activation, batch_norm, every
from yolov7.model.blocks.unit import ConvUnit, FusedConv
from yolov7.model.spec import Map


@dataclass(frozen=True)
class _Parallel(ConvBlock):
    """3x3 and 1x1 in parallel."""

    out: int
    stride: int = 1
    groups: int = 1

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride * self.stride)

    def _module(self, channels: Sequence[int], act: str, *, identity: bool) -> RepConvModule:
        act = self.act or act
        return RepConvModule(channels[0], self.out, self.stride, groups=self.groups, act=act, identity=identity)


@dataclass(frozen=True)
class RepConv(_Parallel):
    """3x3 and 1x1 in parallel, with an identity where shapes allow and the output is not merged.

    This is planned re-parameterisation (YOLOv7 paper, section 4.1). See :class:`RepVgg` for an identity in any place.
    """

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return self._module(channels, act, identity=not merged)


@dataclass(frozen=True)
class RepVgg(_Parallel):
    """3x3 and 1x1 in parallel, with an identity wherever shapes allow (YOLOv6 paper, section 2.1)."""

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return self._module(channels, act, identity=True)


class RepConvModule(nn.Module):
    """3x3 and 1x1 convolution, each with its batch norm, and an identity with batch norm where shapes allow; summed.

    `identity=False` is RepConvN, which has no identity branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str = "silu",
        identity: bool = True,
    ):
        super().__init__()
        keeps_shape = in_channels == out_channels and stride == 1
        self.identity = batch_norm(in_channels) if identity and keeps_shape else None
        self.dense = ConvUnit(in_channels, out_channels, 3, stride, groups=groups, act="none")
        self.pointwise = ConvUnit(in_channels, out_channels, 1, groups=groups, act="none")
        self.stride = stride
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.pointwise(every(x, self.stride))
        if self.identity is not None:
            y = y + self.identity(x)
        out: Tensor = self.act(y)
        return out

    def reparameterize(self) -> FusedConv:
        """One 3x3 convolution with bias that computes the same."""
        conv = self.dense.conv
        if conv.weight.is_meta:
            return FusedConv(fold.laid_out(conv), self.act)
        kernel, bias = fold.fold_affine_after(*fold.kernel_and_bias(conv), *fold.batch_norm_affine(self.dense.bn))
        small, small_bias = fold.fold_affine_after(
            *fold.kernel_and_bias(self.pointwise.conv), *fold.batch_norm_affine(self.pointwise.bn)
        )
        kernel, bias = kernel + F.pad(small, [1, 1, 1, 1]), bias + small_bias
        if self.identity is not None:
            scale, shift = fold.batch_norm_affine(self.identity)
            kernel = kernel + fold.identity_kernel(kernel, conv.groups) * scale[:, None, None, None]
            bias = bias + shift
        return FusedConv(fold.biased_conv(conv, kernel, bias), self.act)
