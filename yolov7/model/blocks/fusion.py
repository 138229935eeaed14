"""BiFusion of YOLOv6 3.0 (reference sheet: yolov6, section 5)."""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.unit import ConvUnit
from yolov7.model.spec import Map


@dataclass(frozen=True)
class BiFusion(ConvBlock):
    """Top-down step on (map above, backbone map of this level, backbone map of the level below), all `out` wide."""

    out: int

    def output(self, maps: Sequence[Map]) -> Map:
        if len(maps) != 3:
            raise ModelError(f"BiFusion takes the map above, that of its level and that below, got {len(maps)} maps")
        top, level, below = (item.stride for item in maps)
        if top != 2 * level or level != 2 * below:
            raise ModelError(f"BiFusion cannot join strides {top}, {level} and {below}: each must be twice the next")
        return Map(self.out, level)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return BiFusionModule(channels[0], channels[1], channels[2], self.out, act=self.act or act)


class BiFusionModule(nn.Module):
    """[up-sampled map above, 1x1 of this level, strided 3x3 on a 1x1 of the level below] concatenated, 1x1."""

    def __init__(self, top_channels: int, level_channels: int, below_channels: int, out: int, *, act: str = "relu"):
        super().__init__()
        self.top = nn.ConvTranspose2d(top_channels, out, 2, 2)
        self.level = ConvUnit(level_channels, out, act=act)
        self.below = ConvUnit(below_channels, out, act=act)
        self.down = ConvUnit(out, out, 3, 2, act=act)
        self.out = ConvUnit(3 * out, out, act=act)

    def forward(self, top: Tensor, level: Tensor, below: Tensor) -> Tensor:
        joined = torch.cat((self.top(top), self.level(level), self.down(self.below(below))), 1)  # (B, 3 * out, h, w)
        out: Tensor = self.out(joined)
        return out
