"""A single convolution as a block."""

# ruff: noqa: D102 - the methods are documented in `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.implicit import Implicit, ImplicitConvUnit
from yolov7.model.blocks.unit import ConvUnit
from yolov7.model.spec import ADDED, Map


@dataclass(frozen=True)
class Conv(ConvBlock):
    """C(k, s, o): a conv unit. A plain biased 1x1 is `Conv(out, 1, norm=False, act="none")`.

    `before` and `after` name implicit vectors around the convolution, in the order they act.
    """

    out: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    before: tuple[Implicit, ...] = ()
    after: tuple[Implicit, ...] = ()
    norm: bool = field(default=True, kw_only=True, metadata=ADDED)
    bias: bool | None = field(default=None, kw_only=True, metadata=ADDED)
    """Give the convolution a bias; None: only without `norm`."""

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride * self.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        shape = (channels[0], self.out, self.kernel, self.stride)
        act = self.act or act
        if self.before or self.after:
            return ImplicitConvUnit(
                *shape,
                groups=self.groups,
                act=act,
                norm=self.norm,
                bias=self.bias,
                before=self.before,
                after=self.after,
            )
        return ConvUnit(*shape, groups=self.groups, act=act, norm=self.norm, bias=self.bias)
