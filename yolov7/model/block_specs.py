"""The blocks of the family as data (reference sheet: architecture, section 2); their modules are in `blocks`."""

# ruff: noqa: D102 - the methods are documented in `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from yolov7.errors import ModelError
from yolov7.model import blocks
from yolov7.model.blocks import Implicit
from yolov7.model.spec import Block, Map, Scaling, widened


@dataclass(frozen=True)
class Conv(Block):
    """C(k, s, o). `before` and `after` name implicit vectors around the convolution, in the order they act."""

    out: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    before: tuple[Implicit, ...] = ()
    after: tuple[Implicit, ...] = ()

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride * self.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.ConvUnit(
            channels[0],
            self.out,
            self.kernel,
            self.stride,
            groups=self.groups,
            act=act,
            before=self.before,
            after=self.after,
        )

    def scaled(self, scaling: Scaling) -> Conv:
        return replace(self, out=widened(self.out, scaling.transition))


@dataclass(frozen=True)
class RepConv(Block):
    """3x3 and 1x1 in parallel, with an identity where widths agree and the output is not merged (planned)."""

    out: int
    stride: int = 1
    groups: int = 1

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride * self.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.RepConv(channels[0], self.out, self.stride, groups=self.groups, act=act, identity=not merged)

    def scaled(self, scaling: Scaling) -> RepConv:
        return replace(self, out=widened(self.out, scaling.transition))


@dataclass(frozen=True)
class SpaceToDepth(Block):
    """ReOrg: 2x2 neighbours become channels."""

    def output(self, maps: Sequence[Map]) -> Map:
        source = self.single(maps)
        return Map(4 * source.channels, 2 * source.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.SpaceToDepth()


@dataclass(frozen=True)
class MaxPool(Block):
    """Max-pool 2x2, stride 2."""

    def output(self, maps: Sequence[Map]) -> Map:
        source = self.single(maps)
        return Map(source.channels, 2 * source.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return nn.MaxPool2d(2, 2)


@dataclass(frozen=True)
class Elan(Block):
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
        return blocks.Elan(channels[0], self.out, self.hidden, width, self.depth, self.tapped(), rep=rep, act=act)

    def scaled(self, scaling: Scaling) -> Elan:
        return replace(
            self,
            out=widened(self.out, scaling.transition),
            hidden=widened(self.hidden, scaling.inside),
            width=None if self.width is None else widened(self.width, scaling.inside),
            depth=scaling.layers(self.depth, step=2 if self.taps == "alternate" else 1),
        )


@dataclass(frozen=True)
class StridedConv(Block):
    """C(3,2,o); further maps (lateral) are appended."""

    out: int

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(Map(self.out, 2 * maps[0].stride), maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.StridedConv(channels[0], self.out, act=act)

    def scaled(self, scaling: Scaling) -> StridedConv:
        return replace(self, out=widened(self.out, scaling.transition))

    def merges(self, position: int) -> bool:
        return position > 0


@dataclass(frozen=True)
class MpConv(Block):
    """MPConv with branches `branch` wide, so 2 * branch out; further maps (lateral) are appended."""

    branch: int

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(Map(2 * self.branch, 2 * maps[0].stride), maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.MpConv(channels[0], self.branch, act=act)

    def scaled(self, scaling: Scaling) -> MpConv:
        return replace(self, branch=widened(self.branch, scaling.transition))

    def merges(self, position: int) -> bool:
        return position > 0


@dataclass(frozen=True)
class DownC(Block):
    """DownC, `out` wide; further maps (lateral) are appended."""

    out: int

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(Map(self.out, 2 * maps[0].stride), maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.DownC(channels[0], self.out, act=act)

    def scaled(self, scaling: Scaling) -> DownC:
        return replace(self, out=widened(self.out, scaling.transition))

    def merges(self, position: int) -> bool:
        return position > 0


@dataclass(frozen=True)
class SppCspc(Block):
    """SPPCSPC, `out` wide inside and outside."""

    out: int
    pools: tuple[int, ...] = (5, 9, 13)

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.SppCspc(channels[0], self.out, self.pools, act=act)

    def scaled(self, scaling: Scaling) -> SppCspc:
        return replace(self, out=widened(self.out, scaling.transition))


@dataclass(frozen=True)
class TinySpp(Block):
    """The pyramid pooling of yolov7-tiny."""

    out: int
    hidden: int
    pools: tuple[int, ...] = (5, 9, 13)

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.TinySpp(channels[0], self.out, self.hidden, self.pools, act=act)

    def scaled(self, scaling: Scaling) -> TinySpp:
        # Its hidden width is its output's, as in SPPCSPC: a transition width.
        return replace(self, out=widened(self.out, scaling.transition), hidden=widened(self.hidden, scaling.transition))


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
        return blocks.UpConcat(channels[0], channels[1], self.each, act=act)

    def scaled(self, scaling: Scaling) -> UpConcat:
        return replace(self, each=widened(self.each, scaling.transition))


@dataclass(frozen=True)
class Concat(Block):
    """Maps of one stride, concatenated in the order given."""

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(maps[0], maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.Concat()

    def merges(self, position: int) -> bool:
        return True


@dataclass(frozen=True)
class Sum(Block):
    """Maps of one shape, added: a residual, or the merge of a twin ELAN."""

    def output(self, maps: Sequence[Map]) -> Map:
        if len(set(maps)) != 1:
            raise ModelError(f"Sum needs maps of one shape, got {', '.join(map(str, maps))}")
        return maps[0]

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return blocks.Sum()

    def merges(self, position: int) -> bool:
        return True
