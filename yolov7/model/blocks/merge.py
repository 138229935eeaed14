"""Blocks that join maps."""

# ruff: noqa: D102 - `forward` is what the class says it computes; a spec's methods are those of `spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolov7.errors import ModelError
from yolov7.model.blocks.conv import ConvUnit
from yolov7.model.spec import Block, Map, Scaling, widened


class UpConcatModule(nn.Module):
    """Top-down step: [1x1 of the backbone's map, up-sampled 1x1 of the map above], each `each` wide."""

    def __init__(self, top_channels: int, route_channels: int, each: int, *, act: str = "silu"):
        super().__init__()
        self.top = ConvUnit(top_channels, each, act=act)
        self.route = ConvUnit(route_channels, each, act=act)

    def forward(self, top: Tensor, route: Tensor) -> Tensor:
        above = F.interpolate(self.top(top), scale_factor=2.0, mode="nearest")
        return torch.cat((self.route(route), above), 1)


@dataclass(frozen=True)
class UpConcat(Block):
    """Top-down step on (map above, backbone map): both become `each` wide, so 2 * each out."""

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
        return UpConcatModule(channels[0], channels[1], self.each, act=act)

    def scaled(self, scaling: Scaling) -> UpConcat:
        return replace(self, each=widened(self.each, scaling.transition))


class ConcatModule(nn.Module):
    """Maps of one size, one after the other."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, 1)


@dataclass(frozen=True)
class Concat(Block):
    """Maps of one stride, concatenated in the order given."""

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(maps[0], maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return ConcatModule()

    def merges(self, position: int) -> bool:
        return True


class SumModule(nn.Module):
    """Maps of one shape, added: the shortcut of a residual, or the merge of a twin ELAN."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        total = first
        for other in others:
            total = other + total
        return total


@dataclass(frozen=True)
class Sum(Block):
    """Maps of one shape, added: a residual, or the merge of a twin ELAN."""

    def output(self, maps: Sequence[Map]) -> Map:
        if len(set(maps)) != 1:
            raise ModelError(f"Sum needs maps of one shape, got {', '.join(map(str, maps))}")
        return maps[0]

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return SumModule()

    def merges(self, position: int) -> bool:
        return True
