"""Down-sampling by two."""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.unit import ConvUnit
from yolov7.model.spec import Block, Map


@dataclass(frozen=True)
class SpaceToDepth(Block):
    """ReOrg: 2x2 neighbours become channels."""

    def output(self, maps: Sequence[Map]) -> Map:
        source = self.single(maps)
        return Map(4 * source.channels, 2 * source.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return SpaceToDepthModule()


class SpaceToDepthModule(nn.Module):
    """(B, C, 2h, 2w) -> (B, 4C, h, w), groups by (row, column) offset (0, 0), (1, 0), (0, 1), (1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class MaxPool(Block):
    """Max-pool 2x2, stride 2."""

    def output(self, maps: Sequence[Map]) -> Map:
        source = self.single(maps)
        return Map(source.channels, 2 * source.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return nn.MaxPool2d(2, 2)


@dataclass(frozen=True)
class Down(ConvBlock):
    """Base of the learnt down-samplings: the first map halved, further maps of that size (lateral) appended to it."""

    def width(self) -> int:
        """Channels of the halved map alone."""
        raise ModelError(f"{type(self).__name__} does not say how wide its halved map is")

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(Map(self.width(), 2 * maps[0].stride), maps[1:])

    def merges(self, position: int) -> bool:
        return position > 0


@dataclass(frozen=True)
class StridedConv(Down):
    """C(3, 2, o)."""

    out: int

    def width(self) -> int:
        return self.out

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return StridedConvModule(channels[0], self.out, act=self.act or act)


class StridedConvModule(nn.Module):
    """[strided 3x3, *lateral]."""

    def __init__(self, in_channels: int, out_channels: int, *, act: str = "silu"):
        super().__init__()
        self.down = ConvUnit(in_channels, out_channels, 3, 2, act=act)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        y: Tensor = self.down(x)
        return torch.cat((y, *lateral), 1) if lateral else y


@dataclass(frozen=True)
class MpConv(Down):
    """MPConv of YOLOv7 and X: two branches `branch` wide, so 2 * branch out."""

    transitions: ClassVar[tuple[str, ...]] = ("branch",)

    branch: int

    def width(self) -> int:
        return 2 * self.branch

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return MpConvModule(channels[0], self.branch, act=self.act or act)


class MpConvModule(nn.Module):
    """Max-pool + 1x1 beside 1x1 + strided 3x3; [strided, pooled, *lateral]."""

    def __init__(self, in_channels: int, branch: int, *, act: str = "silu"):
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2)
        self.pooled = ConvUnit(in_channels, branch, act=act)
        self.reduce = ConvUnit(in_channels, branch, act=act)
        self.strided = ConvUnit(branch, branch, 3, 2, act=act)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        return torch.cat((self.strided(self.reduce(x)), self.pooled(self.pool(x)), *lateral), 1)


@dataclass(frozen=True)
class DownC(Down):
    """DownC of E6, D6 and E6E, `out` wide."""

    out: int

    def width(self) -> int:
        return self.out

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return DownCModule(channels[0], self.out, act=self.act or act)


class DownCModule(nn.Module):
    """1x1 + strided 3x3 beside max-pool + 1x1; [strided, pooled, *lateral]."""

    def __init__(self, in_channels: int, out_channels: int, *, act: str = "silu"):
        super().__init__()
        self.cv1 = ConvUnit(in_channels, in_channels, act=act)
        self.cv2 = ConvUnit(in_channels, out_channels // 2, 3, 2, act=act)
        self.cv3 = ConvUnit(in_channels, out_channels // 2, act=act)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.pool(x)), *lateral), 1)


@dataclass(frozen=True)
class AvgConv(Down):
    """AConv of YOLOv9: average pool 2x2 with stride 1, then a strided 3x3."""

    out: int

    def width(self) -> int:
        return self.out

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return AvgConvModule(channels[0], self.out, act=self.act or act)


class AvgConvModule(nn.Module):
    """[strided 3x3 of the averages of 2x2 neighbours, *lateral]."""

    def __init__(self, in_channels: int, out_channels: int, *, act: str = "silu"):
        super().__init__()
        self.average = nn.AvgPool2d(2, 1)
        self.conv = ConvUnit(in_channels, out_channels, 3, 2, act=act)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        y: Tensor = self.conv(self.average(x))
        return torch.cat((y, *lateral), 1) if lateral else y


@dataclass(frozen=True)
class AvgDown(Down):
    """ADown of YOLOv9, `out` wide: average pool 2x2 with stride 1, then a strided 3x3 and a max-pool on half each."""

    out: int

    def width(self) -> int:
        return self.out

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return AvgDownModule(channels[0], self.out, act=self.act or act)


class AvgDownModule(nn.Module):
    """Averages of 2x2 neighbours, halved; [strided 3x3 of the first, max-pool 3x3 + 1x1 of the second, *lateral]."""

    def __init__(self, in_channels: int, out_channels: int, *, act: str = "silu"):
        super().__init__()
        self.average = nn.AvgPool2d(2, 1)
        self.strided = ConvUnit(in_channels // 2, out_channels // 2, 3, 2, act=act)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.pooled = ConvUnit(in_channels // 2, out_channels // 2, act=act)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        first, second = self.average(x).chunk(2, 1)
        return torch.cat((self.strided(first), self.pooled(self.pool(second)), *lateral), 1)
