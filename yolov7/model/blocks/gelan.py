"""GELAN: layer aggregation over any computational block (YOLOv9 paper, section 4.2; reference sheet: yolov9, 1).

Dimension letters: B batch, c channels, h w cells.
"""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.rep import RepConvModule
from yolov7.model.blocks.unit import ConvUnit
from yolov7.model.spec import Map, Scaling, widened

Computational = Literal["plain", "conv", "res", "dark", "csp"]
"""Computational block before each 3x3 of a GELAN block; `plain`: none, as in ELAN."""


@dataclass(frozen=True)
class Gelan(ConvBlock):
    """GELAN block, released as RepNCSPELAN4 (`csp`) and ELAN1 (`plain`).

    `hidden` is the width of the first 1x1, whose halves start the chain; `width` that of each step of the chain, a
    computational block and a 3x3. `depth` is the number of steps (D_ELAN), `inner` the layers of a computational block
    (D_CSP).
    """

    out: int
    hidden: int
    width: int
    block: Computational = "csp"
    depth: int = 2
    inner: int = 1

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        if self.block not in get_args(Computational):
            raise ModelError(f"Gelan.block: {self.block!r} is not one of {', '.join(get_args(Computational))}")
        if self.depth < 1 or self.inner < 1 or self.hidden % 2:
            raise ModelError("Gelan: `depth` and `inner` are at least 1, and `hidden` is even")
        return GelanModule(
            channels[0],
            self.out,
            self.hidden,
            self.width,
            block=self.block,
            depth=self.depth,
            inner=self.inner,
            act=self.act or act,
        )

    def scaled(self, scaling: Scaling) -> Gelan:
        return replace(
            self,
            out=widened(self.out, scaling.transition),
            hidden=widened(self.hidden, scaling.inside),
            width=widened(self.width, scaling.inside),
            depth=scaling.layers(self.depth),
        )


class GelanModule(nn.Module):
    """1x1, its halves and every step of the chain on the second half concatenated, 1x1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        width: int,
        *,
        block: Computational = "csp",
        depth: int = 2,
        inner: int = 1,
        act: str = "silu",
    ):
        super().__init__()
        self.enter = ConvUnit(in_channels, hidden, act=act)
        self.chain = nn.ModuleList()
        for step in range(depth):
            before = hidden // 2 if step == 0 else width
            self.chain.append(GelanStep(before, width, block=block, inner=inner, act=act))
        self.out = ConvUnit(hidden + depth * width, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        taps = list(self.enter(x).chunk(2, 1))
        for step in self.chain:
            taps.append(step(taps[-1]))
        out: Tensor = self.out(torch.cat(taps, 1))
        return out


class GelanStep(nn.Module):
    """Computational block, 3x3."""

    def __init__(self, in_channels: int, out_channels: int, *, block: Computational, inner: int, act: str):
        super().__init__()
        self.block: nn.Module | None = None
        if block != "plain":
            self.block = _COMPUTATIONAL[block](in_channels, out_channels, inner, act)
            in_channels = out_channels
        self.conv = ConvUnit(in_channels, out_channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x if self.block is None else self.block(x))
        return y


class CspModule(nn.Module):
    """RepNCSP: a 1x1 and `inner` bottlenecks beside a 1x1, concatenated, 1x1; half as wide inside."""

    def __init__(self, in_channels: int, out_channels: int, inner: int, act: str):
        super().__init__()
        half = out_channels // 2
        self.enter = ConvUnit(in_channels, half, act=act)
        self.bypass = ConvUnit(in_channels, half, act=act)
        self.bottlenecks = nn.ModuleList(Bottleneck(half, act=act) for _ in range(inner))
        self.out = ConvUnit(2 * half, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        for bottleneck in self.bottlenecks:
            y = bottleneck(y)
        out: Tensor = self.out(torch.cat((y, self.bypass(x)), 1))
        return out


class Bottleneck(nn.Module):
    """RepConvN and 3x3 with a residual."""

    def __init__(self, channels: int, *, act: str):
        super().__init__()
        self.rep = RepConvModule(channels, channels, act=act, identity=False)
        self.conv = ConvUnit(channels, channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.rep(x))
        return x + y


class ResidualModule(nn.Module):
    """A chain of convolutions, added to its input where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, chain: nn.Sequential):
        super().__init__()
        self.chain = chain
        self.residual = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.chain(x)
        return x + y if self.residual else y


def _repeated(
    one: Callable[[int, int, str], nn.Module],
) -> Callable[[int, int, int, str], nn.Module]:
    """`inner` blocks in a row, the first of which changes the width."""

    def built(in_channels: int, out_channels: int, inner: int, act: str) -> nn.Module:
        widths = (in_channels, *[out_channels] * inner)
        return nn.Sequential(*(one(before, out_channels, act) for before in widths[:-1]))

    return built


def _conv(in_channels: int, out_channels: int, act: str) -> nn.Module:
    return ConvUnit(in_channels, out_channels, 3, act=act)


def _res(in_channels: int, out_channels: int, act: str) -> nn.Module:
    half = out_channels // 2
    chain = (
        ConvUnit(in_channels, half, act=act),
        ConvUnit(half, half, 3, act=act),
        ConvUnit(half, out_channels, act=act),
    )
    return ResidualModule(in_channels, out_channels, nn.Sequential(*chain))


def _dark(in_channels: int, out_channels: int, act: str) -> nn.Module:
    half = out_channels // 2
    chain = (ConvUnit(in_channels, half, act=act), ConvUnit(half, out_channels, 3, act=act))
    return ResidualModule(in_channels, out_channels, nn.Sequential(*chain))


_COMPUTATIONAL: Mapping[str, Callable[[int, int, int, str], nn.Module]] = MappingProxyType(
    {"conv": _repeated(_conv), "res": _repeated(_res), "dark": _repeated(_dark), "csp": CspModule}
)
"""Builders by name: input width, output width, layers, activation."""
