"""Blocks without convolutions that join maps, and the learnt scale of a shortcut."""

# ruff: noqa: D102 - `forward` computes what the class says; specs: see `yolov7.model.spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolov7.errors import ModelError
from yolov7.model.spec import Block, Map


@dataclass(frozen=True)
class Concat(Block):
    """Maps of one stride, concatenated in the order given."""

    def output(self, maps: Sequence[Map]) -> Map:
        return self.joined(maps[0], maps[1:])

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return ConcatModule()

    def merges(self, position: int) -> bool:
        return True


class ConcatModule(nn.Module):
    """(B, C1, h, w), (B, C2, h, w), ... -> (B, C1 + C2 + ..., h, w)."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, 1)


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


class SumModule(nn.Module):
    """Maps of one shape, added from the first to the last."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        total = first
        for other in others:
            total = other + total
        return total


@dataclass(frozen=True)
class SliceSum(Block):
    """CBFuse of YOLOv9: channel slices of coarser maps, up-sampled and added to the last map.

    `slices` holds (first channel, number of channels) for every input but the last. A slice is as wide as the last map.
    """

    slices: tuple[tuple[int, int], ...]

    def output(self, maps: Sequence[Map]) -> Map:
        if len(maps) != len(self.slices) + 1:
            raise ModelError(
                f"SliceSum of {len(self.slices)} slices takes {len(self.slices) + 1} maps, got {len(maps)}"
            )
        *coarse, last = maps
        for (start, width), source in zip(self.slices, coarse, strict=True):
            if width != last.channels or not 0 <= start <= source.channels - width:
                raise ModelError(
                    f"SliceSum cannot add channels {start} to {start + width - 1} of {source.channels} "
                    f"to a map of {last.channels}"
                )
            if source.stride % last.stride:
                raise ModelError(f"SliceSum cannot up-sample stride {source.stride} to {last.stride}")
        return last

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return SliceSumModule(self.slices)

    def merges(self, position: int) -> bool:
        return True


class SliceSumModule(nn.Module):
    """One slice of each coarse map, resized (nearest) to the last map, summed from the first to the last."""

    def __init__(self, slices: Sequence[tuple[int, int]]):
        super().__init__()
        self.slices = tuple(slices)

    def forward(self, *maps: Tensor) -> Tensor:
        *coarse, last = maps
        parts = [
            _enlarged(source[:, start : start + width], last.shape[2] // source.shape[2])
            for (start, width), source in zip(self.slices, coarse, strict=True)
        ]
        total = parts[0] if parts else last
        for part in (*parts[1:], last) if parts else ():
            total = total + part
        return total


def _enlarged(x: Tensor, factor: int) -> Tensor:
    """Every cell as factor x factor cells. By a factor, not to a size: an exported graph must serve other sides."""
    return x if factor == 1 else F.interpolate(x, scale_factor=float(factor), mode="nearest")


@dataclass(frozen=True)
class LearntScale(Block):
    """The map times one learnt number, which starts at 1: the weight of a shortcut (YOLOv6's alpha)."""

    def output(self, maps: Sequence[Map]) -> Map:
        return self.single(maps)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return LearntScaleModule()


class LearntScaleModule(nn.Module):
    """x * scale, with scale (1,). The name is not `weight`, so the optimiser does not decay it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
