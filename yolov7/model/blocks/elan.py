"""ELAN: efficient layer aggregation (YOLOv7 paper, section 3.1)."""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.blocks.base import ConvBlock
from yolov7.model.blocks.rep import RepConvModule
from yolov7.model.blocks.unit import ConvUnit
from yolov7.model.spec import Map, Scaling, widened


@dataclass(frozen=True)
class Elan(ConvBlock):
    """ELAN: out width, hidden width of the two 1x1, number of 3x3 convolutions and their width (None: hidden).

    `taps`: "alternate" concatenates every second 3x3, counted from the last; "all" concatenates each.
    `rep`: numbers of the 3x3 convolutions (from 1) that are RepConv.
    """

    out: int
    hidden: int
    depth: int
    width: int | None = None
    taps: Literal["alternate", "all"] = "alternate"
    rep: tuple[int, ...] = ()

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def tapped(self) -> frozenset[int]:
        """Positions (from 0) in the chain that are concatenated."""
        if self.taps not in ("alternate", "all"):
            raise ModelError(f"Elan.taps: {self.taps!r} is neither 'alternate' nor 'all'")
        step = 1 if self.taps == "all" else 2
        return frozenset(range(self.depth - 1, -1, -step))

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        wrong = [number for number in self.rep if not 1 <= number <= self.depth]
        if wrong:
            raise ModelError(f"Elan.rep: there is no convolution {wrong[0]} among {self.depth}")
        rep = frozenset(number - 1 for number in self.rep)
        width = self.hidden if self.width is None else self.width
        return ElanModule(
            channels[0], self.out, self.hidden, width, self.depth, self.tapped(), rep=rep, act=self.act or act
        )

    def scaled(self, scaling: Scaling) -> Elan:
        return replace(
            self,
            out=widened(self.out, scaling.transition),
            hidden=widened(self.hidden, scaling.inside),
            width=None if self.width is None else widened(self.width, scaling.inside),
            depth=scaling.layers(self.depth, step=2 if self.taps == "alternate" else 1),
        )


class ElanModule(nn.Module):
    """Efficient layer aggregation: two 1x1 branches, a chain of 3x3 on the second, taps concatenated, a last 1x1.

    `tapped` are the positions in the chain (from 0) that are concatenated: [last tap, ..., first tap, b, a].
    `rep` are the positions that are RepConv; where such a layer is tapped it feeds the concatenation, so the builder
    leaves its identity branch out (planned re-parameterisation, paper section 4.1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        width: int,
        depth: int,
        tapped: frozenset[int],
        *,
        rep: frozenset[int] = frozenset(),
        act: str = "silu",
    ):
        super().__init__()
        self.tapped = tapped
        self.a = ConvUnit(in_channels, hidden, act=act)
        self.b = ConvUnit(in_channels, hidden, act=act)
        self.chain = nn.ModuleList()
        for position in range(depth):
            before = hidden if position == 0 else width
            if position in rep:
                self.chain.append(RepConvModule(before, width, act=act, identity=position not in tapped))
            else:
                self.chain.append(ConvUnit(before, width, 3, act=act))
        self.out = ConvUnit(2 * hidden + len(tapped) * width, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        a, y = self.a(x), self.b(x)
        taps = [a, y]
        for position, conv in enumerate(self.chain):
            y = conv(y)
            if position in self.tapped:
                taps.append(y)
        out: Tensor = self.out(torch.cat(taps[::-1], 1))
        return out
