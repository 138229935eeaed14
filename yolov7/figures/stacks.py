"""Four kinds of deep network, made of the library's blocks: PlainNet, ResNet, CSPNet, GELAN (YOLOv9 paper, figure 6).

The paper gives names and depths alone. Our reading: a network is a row of stages of 50 layers. A stage is two 3x3
convolutions, as between the stages of a backbone, and 48 layers of its kind: one cross-stage block, since CSPNet and
GELAN part and join the channels once per stage. A layer is a convolution on the longest path. All are equally wide, and
the first convolution halves the sides, so that what gets lost is lost along the depth and not to coarser grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from yolov7.errors import ConfigError
from yolov7.model.blocks import ConvUnit, GelanModule
from yolov7.model.blocks.gelan import CspModule, ResidualModule

STAGE = 50
"""Layers of a stage."""
TRANSITION = 2
"""Of these the 3x3 convolutions before the blocks."""
BLOCKS = (1, 2, 4)
"""How many blocks may share the other 48 layers of a stage."""
STRIDE = 2
_ACT = "silu"


class Stack(nn.Module):
    """A row of stages in training mode: batch norms take the statistics of the image itself.

    With the running statistics of a fresh network each layer would shrink the signal to a third, until float32 holds
    nothing of it.
    """

    def __init__(self, kind: str, *, depth: int, channels: int, blocks: int):
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"kind: {kind!r} is none of {', '.join(KINDS)}")
        if depth < STAGE or depth % STAGE:
            raise ConfigError(f"depth: {depth} is not a multiple of {STAGE}")
        if channels < 8 or channels % 4:
            raise ConfigError(f"channels: {channels} is not a multiple of 4 of at least 8")
        if blocks not in BLOCKS:
            raise ConfigError(f"blocks: {blocks} is none of {', '.join(map(str, BLOCKS))}")
        layers = (STAGE - TRANSITION) // blocks
        self.parts = nn.ModuleList()
        depths = [0]
        for stage in range(depth // STAGE):
            first = ConvUnit(channels, channels, 3, act=_ACT) if stage else ConvUnit(3, channels, 3, STRIDE, act=_ACT)
            self.parts.append(nn.Sequential(first, ConvUnit(channels, channels, 3, act=_ACT)))
            depths.append(depths[-1] + TRANSITION)
            for _ in range(blocks):
                self.parts.append(KINDS[kind](channels, layers))
                depths.append(depths[-1] + layers)
        self.depths = tuple(depths[1:])
        """Layers up to the end of each part."""

    def maps(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Depth and map (B, C, h, w) after each part, for images (B, 3, 2h, 2w)."""
        y = images
        for depth, part in zip(self.depths, self.parts, strict=True):
            y = part(y)
            yield depth, y


def random_stack(kind: str, *, seed: int, depth: int = 200, channels: int = 48, blocks: int = 1) -> Stack:
    """A network with random weights; the same seed gives the same ones, and no global generator is moved.

    Raises :class:`ConfigError` for an unknown kind, or numbers that make no network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Stack(kind, depth=depth, channels=channels, blocks=blocks).train()


def _plain(channels: int, layers: int) -> nn.Module:
    """3x3 convolutions."""
    return nn.Sequential(*(ConvUnit(channels, channels, 3, act=_ACT) for _ in range(layers)))


def _residual(channels: int, layers: int) -> nn.Module:
    """Bottlenecks of 1x1, 3x3 and 1x1, without an activation after the sum: the Res block of GELAN."""
    half = channels // 2
    chains = (
        (ConvUnit(channels, half, act=_ACT), ConvUnit(half, half, 3, act=_ACT), ConvUnit(half, channels, act=_ACT))
        for _ in range(layers // 3)
    )
    return nn.Sequential(*(ResidualModule(channels, channels, nn.Sequential(*chain)) for chain in chains))


def _cross_stage(channels: int, layers: int) -> nn.Module:
    """1x1, bottlenecks of two layers, 1x1."""
    return CspModule(channels, channels, (layers - 2) // 2, _ACT)


def _gelan(channels: int, layers: int) -> nn.Module:
    """1x1, two steps of a CSP block and a 3x3, 1x1: D_ELAN is 2, as released, and D_CSP makes up the depth."""
    inner = (layers - 8) // 4
    return GelanModule(channels, channels, channels, channels // 2, block="csp", depth=2, inner=inner, act=_ACT)


KINDS: Mapping[str, Callable[[int, int], nn.Module]] = MappingProxyType(
    {"PlainNet": _plain, "ResNet": _residual, "CSPNet": _cross_stage, "GELAN": _gelan}
)
"""Builders of a block: channels, layers (48, 24 or 12)."""
