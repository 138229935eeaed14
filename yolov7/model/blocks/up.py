"""Up-sampling."""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolov7.errors import ModelError
from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.unit import ConvUnit
from yolov7.model.spec import Block, Map


@dataclass(frozen=True)
class Upsample(Block):
    """Nearest-neighbour up-sampling: every cell becomes factor x factor cells."""

    factor: int = 2

    def output(self, maps: Sequence[Map]) -> Map:
        source = self.single(maps)
        return Map(source.channels, _finer(self, source, self.factor))

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return nn.Upsample(scale_factor=float(self.factor), mode="nearest")


@dataclass(frozen=True)
class TransposedConv(ConvBlock):
    """Learnt up-sampling: transposed convolution with kernel = stride = factor and bias; no norm, no activation."""

    out: int
    factor: int = 2

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, _finer(self, self.single(maps), self.factor))

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return nn.ConvTranspose2d(channels[0], self.out, self.factor, self.factor)


def _finer(block: Block, source: Map, factor: int) -> int:
    """Stride of `source` up-sampled by `factor`."""
    if factor < 1 or source.stride % factor:
        raise ModelError(f"{type(block).__name__} cannot up-sample stride {source.stride} by {factor}")
    return source.stride // factor


@dataclass(frozen=True)
class UpConcat(ConvBlock):
    """Top-down step on (map above, backbone map): both become `each` wide, so 2 * each out."""

    transitions: ClassVar[tuple[str, ...]] = ("each",)

    each: int

    def output(self, maps: Sequence[Map]) -> Map:
        if len(maps) != 2:
            raise ModelError(f"UpConcat takes the map above and the backbone's map, got {len(maps)} maps")
        top, route = maps
        if top.stride != 2 * route.stride:
            raise ModelError(
                f"UpConcat cannot join strides {top.stride} and {route.stride}: one must be twice the other"
            )
        return Map(2 * self.each, route.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return UpConcatModule(channels[0], channels[1], self.each, act=self.act or act)


class UpConcatModule(nn.Module):
    """[1x1 of the backbone's map, up-sampled 1x1 of the map above]."""

    def __init__(self, top_channels: int, route_channels: int, each: int, *, act: str = "silu"):
        super().__init__()
        self.top = ConvUnit(top_channels, each, act=act)
        self.route = ConvUnit(route_channels, each, act=act)

    def forward(self, top: Tensor, route: Tensor) -> Tensor:
        above = F.interpolate(self.top(top), scale_factor=2.0, mode="nearest")
        return torch.cat((self.route(route), above), 1)
