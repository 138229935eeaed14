"""Stacks of one 3x3 block: RepBlock and CSPStackRep of YOLOv6 (paper, section 2.1; reference sheet: yolov6, section 1).

The 3x3 block has a mode: RepVGG, a plain convolution, or the linear addition that RepOptimizer searches with.
Dimension letters: B batch, c channels, h w cells.
"""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.conv import Conv
from yolov7.model.blocks.linear_add import LinearAdd, LinearAddModule
from yolov7.model.blocks.rep import RepConvModule, RepVgg
from yolov7.model.blocks.unit import ConvUnit
from yolov7.model.spec import Block, Map, Scaling, widened

Mode = Literal["rep", "conv", "linear-add"]
"""The 3x3 block: RepVGG, a plain conv unit, or a sum of scaled convolutions under one batch norm."""


def _rep(in_channels: int, out_channels: int, stride: int, act: str, bias: bool | None) -> nn.Module:
    return RepConvModule(in_channels, out_channels, stride, act=act)


def _conv(in_channels: int, out_channels: int, stride: int, act: str, bias: bool | None) -> nn.Module:
    return ConvUnit(in_channels, out_channels, 3, stride, act=act, bias=bias)


def _linear_add(in_channels: int, out_channels: int, stride: int, act: str, bias: bool | None) -> nn.Module:
    return LinearAddModule(in_channels, out_channels, stride, act=act)


MODULES: Mapping[str, Callable[[int, int, int, str, bool | None], nn.Module]] = MappingProxyType(
    {"rep": _rep, "conv": _conv, "linear-add": _linear_add}
)
"""Builders by mode: input width, output width, stride, activation, bias of a plain convolution."""
SPECS: Mapping[str, Callable[[int, int, bool | None], ConvBlock]] = MappingProxyType(
    {
        "rep": lambda out, stride, bias: RepVgg(out, stride),
        "conv": lambda out, stride, bias: Conv(out, 3, stride, bias=bias),
        "linear-add": lambda out, stride, bias: LinearAdd(out, stride),
    }
)
"""Specs of single blocks by mode: output width, stride, bias of a plain convolution."""


def block_of(mode: Mode, out: int, stride: int = 1, *, bias: bool | None = None) -> ConvBlock:
    """A stage of one 3x3 block in this mode. `bias` gives a plain convolution a bias besides its batch norm."""
    return SPECS[_known(mode)](out, stride, bias)


def module_of(
    mode: Mode, in_channels: int, out_channels: int, stride: int = 1, *, act: str, bias: bool | None = None
) -> nn.Module:
    """The module of one 3x3 block in this mode."""
    return MODULES[_known(mode)](in_channels, out_channels, stride, act, bias)


def mode_of(block: Block) -> Mode | None:
    """Mode of a stack's 3x3 blocks, or of a block that may be a single one; None for any other block."""
    if isinstance(block, RepStack | CspStack):
        return block.mode
    if isinstance(block, Conv):
        return "conv" if block.kernel == 3 else None
    if isinstance(block, LinearAdd):
        return "linear-add"
    return "rep" if isinstance(block, RepVgg) else None


def _known(mode: str) -> str:
    if mode not in MODULES:
        raise ModelError(f"mode: {mode!r} is not one of {', '.join(MODULES)}")
    return mode


@dataclass(frozen=True)
class RepStack(ConvBlock):
    """RepBlock: `count` 3x3 blocks in a row, the first of which changes the width."""

    out: int
    count: int
    mode: Mode = "rep"
    bias: bool | None = None
    """Give plain convolutions a bias besides their batch norm."""

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        if self.count < 1:
            raise ModelError(f"RepStack.count: at least 1, got {self.count}")
        widths = (channels[0], *[self.out] * (self.count - 1))
        return nn.Sequential(
            *(module_of(self.mode, before, self.out, act=self.act or act, bias=self.bias) for before in widths)
        )

    def scaled(self, scaling: Scaling) -> RepStack:
        return replace(self, out=widened(self.out, scaling.transition), count=scaling.layers(self.count))


@dataclass(frozen=True)
class CspStack(ConvBlock):
    """CSPStackRep: a stack of `units` pairs of 3x3 blocks, `hidden` wide, in a cross-stage-partial frame."""

    out: int
    hidden: int
    units: int
    mode: Mode = "rep"
    bias: bool | None = None
    """Give the plain convolutions of the units a bias besides their batch norm."""

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        if self.units < 1:
            raise ModelError(f"CspStack.units: at least 1, got {self.units}")
        return CspStackModule(
            channels[0], self.out, self.hidden, self.units, mode=self.mode, act=self.act or act, bias=self.bias
        )

    def scaled(self, scaling: Scaling) -> CspStack:
        return replace(
            self,
            out=widened(self.out, scaling.transition),
            hidden=widened(self.hidden, scaling.inside),
            units=scaling.layers(self.units),
        )


class CspStackModule(nn.Module):
    """[units on a 1x1, another 1x1] concatenated, 1x1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        units: int,
        *,
        mode: Mode = "rep",
        act: str = "relu",
        bias: bool | None = None,
    ):
        super().__init__()
        self.enter = ConvUnit(in_channels, hidden, act=act)
        self.bypass = ConvUnit(in_channels, hidden, act=act)
        self.units = nn.Sequential(*(PairUnit(hidden, mode=mode, act=act, bias=bias) for _ in range(units)))
        self.out = ConvUnit(2 * hidden, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        stacked = self.units(self.enter(x))  # (B, hidden, h, w)
        out: Tensor = self.out(torch.cat((stacked, self.bypass(x)), 1))
        return out


class PairUnit(nn.Module):
    """Two 3x3 blocks, and the input times one number, added.

    The number is a parameter of the published networks, but their optimisers never step it: it stays 1 (reference
    sheet: yolov6-training, section 2). So it takes no gradient here.
    """

    def __init__(self, channels: int, *, mode: Mode, act: str, bias: bool | None):
        super().__init__()
        self.first = module_of(mode, channels, channels, act=act, bias=bias)
        self.second = module_of(mode, channels, channels, act=act, bias=bias)
        self.alpha = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x)) + self.alpha * x
        return y
