"""Down-sampling by two."""

# ruff: noqa: D102 - `forward` is what the class says it computes; a spec's methods are those of `spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from yolov7.model.blocks.conv import ConvUnit
from yolov7.model.spec import Block, Map, Scaling, widened


class SpaceToDepthModule(nn.Module):
    """ReOrg, the stem of the P6 networks: (B, C, 2h, 2w) -> (B, 4C, h, w), groups by (row, column) offset
    (0, 0), (1, 0), (0, 1), (1, 1).
    """

    def forward(self, x: Tensor) -> Tensor:
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return torch.cat(parts, 1)


@dataclass(frozen=True)
class SpaceToDepth(Block):
    """ReOrg: 2x2 neighbours become channels."""

    def output(self, maps: Sequence[Map]) -> Map:
        source = self.single(maps)
        return Map(4 * source.channels, 2 * source.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return SpaceToDepthModule()


@dataclass(frozen=True)
class MaxPool(Block):
    """Max-pool 2x2, stride 2."""

    def output(self, maps: Sequence[Map]) -> Map:
        source = self.single(maps)
        return Map(source.channels, 2 * source.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return nn.MaxPool2d(2, 2)


class StridedConvModule(nn.Module):
    """Down-sampling by C(3,2,o); further maps of the same size are appended to the output."""

    def __init__(self, in_channels: int, out_channels: int, *, act: str = "silu"):
        super().__init__()
        self.down = ConvUnit(in_channels, out_channels, 3, 2, act=act)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        y: Tensor = self.down(x)
        return torch.cat((y, *lateral), 1) if lateral else y


@dataclass(frozen=True)
class StridedConv(Block):
    """C(3,2,o); further maps (lateral) are appended."""

    out: int

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(Map(self.out, 2 * maps[0].stride), maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return StridedConvModule(channels[0], self.out, act=act)

    def scaled(self, scaling: Scaling) -> StridedConv:
        return replace(self, out=widened(self.out, scaling.transition))

    def merges(self, position: int) -> bool:
        return position > 0


class MpConvModule(nn.Module):
    """Down-sampling of YOLOv7 and X: max-pool + 1x1 beside 1x1 + strided 3x3; [strided, pooled, *lateral]."""

    def __init__(self, in_channels: int, branch: int, *, act: str = "silu"):
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2)
        self.pooled = ConvUnit(in_channels, branch, act=act)
        self.reduce = ConvUnit(in_channels, branch, act=act)
        self.strided = ConvUnit(branch, branch, 3, 2, act=act)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        return torch.cat((self.strided(self.reduce(x)), self.pooled(self.pool(x)), *lateral), 1)


@dataclass(frozen=True)
class MpConv(Block):
    """MPConv with branches `branch` wide, so 2 * branch out; further maps (lateral) are appended."""

    branch: int

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(Map(2 * self.branch, 2 * maps[0].stride), maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return MpConvModule(channels[0], self.branch, act=act)

    def scaled(self, scaling: Scaling) -> MpConv:
        return replace(self, branch=widened(self.branch, scaling.transition))

    def merges(self, position: int) -> bool:
        return position > 0


class DownCModule(nn.Module):
    """Down-sampling of E6, D6 and E6E: 1x1 + strided 3x3 beside max-pool + 1x1; [strided, pooled, *lateral]."""

    def __init__(self, in_channels: int, out_channels: int, *, act: str = "silu"):
        super().__init__()
        self.cv1 = ConvUnit(in_channels, in_channels, act=act)
        self.cv2 = ConvUnit(in_channels, out_channels // 2, 3, 2, act=act)
        self.cv3 = ConvUnit(in_channels, out_channels // 2, act=act)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.pool(x)), *lateral), 1)


@dataclass(frozen=True)
class DownC(Block):
    """DownC, `out` wide; further maps (lateral) are appended."""

    out: int

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(Map(self.out, 2 * maps[0].stride), maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return DownCModule(channels[0], self.out, act=act)

    def scaled(self, scaling: Scaling) -> DownC:
        return replace(self, out=widened(self.out, scaling.transition))

    def merges(self, position: int) -> bool:
        return position > 0
