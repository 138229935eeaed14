"""The mode of a network's 3x3 blocks: RepVGG blocks, plain convolutions, or those that RepOptimizer searches with."""

from __future__ import annotations

from dataclasses import replace

from yolov7.model.blocks import ConvBlock, CspStack, Mode, RepStack, block_of, mode_of
from yolov7.model.spec import Network, Stage


def modes_of(network: Network) -> set[Mode]:
    """Modes of the 3x3 blocks of the backbone and of all stacks."""
    return {mode for stage in (*network.backbone, *network.neck) if (mode := _mode(stage, network)) is not None}


def with_mode(network: Network, mode: Mode) -> Network:
    """The network with the 3x3 blocks of its backbone and of all stacks in this mode, plain ones without a bias.

    Convolutions of the neck beside the stacks and those of the head stay, as in the published networks.
    """

    def changed(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(
            stage if _mode(stage, network) in (None, mode) else replace(stage, block=_in_mode(stage, mode))
            for stage in stages
        )

    return replace(network, backbone=changed(network.backbone), neck=changed(network.neck))


def _mode(stage: Stage, network: Network) -> Mode | None:
    stacked = isinstance(stage.block, RepStack | CspStack)
    return mode_of(stage.block) if stacked or stage in network.backbone else None


def _in_mode(stage: Stage, mode: Mode) -> ConvBlock:
    block = stage.block
    if isinstance(block, RepStack | CspStack):
        return replace(block, mode=mode, bias=None)
    out, stride = getattr(block, "out", 0), getattr(block, "stride", 1)
    return replace(block_of(mode, out, stride), act=getattr(block, "act", None))
