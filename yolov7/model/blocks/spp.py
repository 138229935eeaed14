"""Spatial pyramid pooling."""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.unit import ConvUnit
from yolov7.model.spec import Map


class PoolPyramid(nn.Module):
    """Max-pools of growing odd sides, stride 1, "same" padding: x -> [pool of each size].

    A wide pool is a narrow one of the pool before it (padding is minus infinity, so this is exact) and costs less.
    """

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        steps = [after - before + 1 for before, after in zip((1, *sizes), sizes, strict=False)]
        self.pools = nn.ModuleList(nn.MaxPool2d(step, stride=1, padding=step // 2) for step in steps)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for pool in self.pools:
            x = pool(x)
            maps.append(x)
        return maps


@dataclass(frozen=True)
class SppCspc(ConvBlock):
    """SPPCSPC, `out` wide inside and outside."""

    out: int
    pools: tuple[int, ...] = (5, 9, 13)

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return SppCspcModule(channels[0], self.out, self.pools, act=self.act or act)


@dataclass(frozen=True)
class SppCsp(ConvBlock):
    """SPPCSPC of YOLOv6 3.0: `hidden` wide inside, and the other way round in the last concatenation."""

    transitions: ClassVar[tuple[str, ...]] = ("out", "hidden")

    out: int
    hidden: int
    pools: tuple[int, ...] = (5, 9, 13)

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        act = self.act or act
        return SppCspcModule(channels[0], self.out, self.pools, hidden=self.hidden, shortcut_first=True, act=act)


class SppCspcModule(nn.Module):
    """Spatial pyramid pooling in a cross-stage-partial frame; the hidden width is that of the output unless given."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        pools: Sequence[int] = (5, 9, 13),
        *,
        hidden: int | None = None,
        shortcut_first: bool = False,
        act: str = "silu",
    ):
        super().__init__()
        c = out_channels if hidden is None else hidden
        self.shortcut_first = shortcut_first
        self.cv1 = ConvUnit(in_channels, c, act=act)
        self.cv2 = ConvUnit(in_channels, c, act=act)
        self.cv3 = ConvUnit(c, c, 3, act=act)
        self.cv4 = ConvUnit(c, c, act=act)
        self.cv5 = ConvUnit((1 + len(pools)) * c, c, act=act)
        self.cv6 = ConvUnit(c, c, 3, act=act)
        self.cv7 = ConvUnit(2 * c, out_channels, act=act)
        self.pools = PoolPyramid(pools)

    def forward(self, x: Tensor) -> Tensor:
        u = self.cv4(self.cv3(self.cv1(x)))
        v = self.cv6(self.cv5(torch.cat((u, *self.pools(u)), 1)))
        shortcut = self.cv2(x)
        out: Tensor = self.cv7(torch.cat((shortcut, v) if self.shortcut_first else (v, shortcut), 1))
        return out


@dataclass(frozen=True)
class TinySpp(ConvBlock):
    """The pyramid pooling of yolov7-tiny. Its hidden width is a transition, as in SPPCSPC."""

    transitions: ClassVar[tuple[str, ...]] = ("out", "hidden")

    out: int
    hidden: int
    pools: tuple[int, ...] = (5, 9, 13)

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return TinySppModule(channels[0], self.out, self.hidden, self.pools, act=self.act or act)


class TinySppModule(nn.Module):
    """The small pyramid pooling of yolov7-tiny: [pool13 b, pool9 b, pool5 b, b] -> d; [d, a] -> out."""

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int, pools: Sequence[int] = (5, 9, 13), *, act: str = "silu"
    ):
        super().__init__()
        self.a = ConvUnit(in_channels, hidden, act=act)
        self.b = ConvUnit(in_channels, hidden, act=act)
        self.pools = PoolPyramid(pools)
        self.d = ConvUnit((1 + len(pools)) * hidden, hidden, act=act)
        self.out = ConvUnit(2 * hidden, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        d = self.d(torch.cat((*self.pools(b)[::-1], b), 1))
        out: Tensor = self.out(torch.cat((d, a), 1))
        return out


@dataclass(frozen=True)
class SppElan(ConvBlock):
    """SPP-ELAN of YOLOv9: pools in a row inside an ELAN."""

    transitions: ClassVar[tuple[str, ...]] = ("out", "hidden")

    out: int
    hidden: int
    pools: tuple[int, ...] = (5, 9, 13)

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return SppElanModule(channels[0], self.out, self.hidden, self.pools, act=self.act or act)


class SppElanModule(nn.Module):
    """1x1, [itself, pool5, pool9, pool13], 1x1. Three pools of side 5 in a row are those of sides 5, 9 and 13."""

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int, pools: Sequence[int] = (5, 9, 13), *, act: str = "silu"
    ):
        super().__init__()
        self.enter = ConvUnit(in_channels, hidden, act=act)
        self.pools = PoolPyramid(pools)
        self.out = ConvUnit((1 + len(pools)) * hidden, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        out: Tensor = self.out(torch.cat((y, *self.pools(y)), 1))
        return out
