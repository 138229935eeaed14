"""Compound scaling, and the steps from W6 to its larger relatives, as functions from networks to networks.

Sources: paper, sections 3.1 (extended ELAN) and 3.3 (compound scaling); reference sheet: architecture, section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from yolov7.errors import ModelError
from yolov7.model.blocks import Elan, StridedConv, Sum
from yolov7.model.spec import Block, Network, Scaling, Stage


def scale(base: Network, *, depth: float = 1.0, width: float = 1.0, inside: float | None = None) -> Network:
    """A deeper and wider network.

    `depth` multiplies the number of 3x3 convolutions in every ELAN. `width` multiplies the transitions: every width but
    those inside the ELANs. `inside` multiplies the widths inside the ELANs; None follows the paper: nothing in
    compound scaling, where depth has already made the concatenations wider and the transitions follow, and `width`
    where depth stays as it is (width scaling alone widens everything).
    """
    if inside is None:
        inside = width if depth == 1.0 else 1.0
    for name, factor in (("depth", depth), ("width", width), ("inside", inside)):
        if not 0.0 < factor < 100.0:
            raise ModelError(f"scale: {name} must be a positive factor, got {factor}")
    scaling = Scaling(depth=depth, inside=inside, transition=width)
    scaled = _each_part(
        base, lambda stages: tuple(replace(stage, block=stage.block.scaled(scaling)) for stage in stages)
    )
    return replace(scaled, name=f"{base.name}-depth{depth:g}-width{width:g}", head=base.head.scaled(scaling))


def with_down_sampling(base: Network, kind: Callable[[int], Block]) -> Network:
    """The network with every strided 3x3 down-sampling replaced by `kind(out)`, for example DownC."""

    def changed(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(
            replace(stage, block=kind(stage.block.out)) if isinstance(stage.block, StridedConv) else stage
            for stage in stages
        )

    return _each_part(base, changed)


def extended(base: Network) -> Network:
    """E-ELAN: every ELAN X becomes two independent ones on the same input, `Xa` and `Xb`, and their sum `X`.

    Readers of X get the sum; `Xb` can be read by name, as the partial auxiliary head of E6E does.
    """

    def changed(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        result: list[Stage] = []
        for stage in stages:
            if not isinstance(stage.block, Elan):
                result.append(stage)
                continue
            first, second, source = f"{stage.name}a", f"{stage.name}b", inputs[stage.name]
            result.append(Stage(first, stage.block, source))
            result.append(Stage(second, stage.block, source))
            result.append(Stage(stage.name, Sum(), (first, second)))
        return tuple(result)

    inputs = {wire.stage.name: wire.inputs for wire in base.wires()}
    return replace(_each_part(base, changed), name=f"{base.name}-extended")


def _each_part(base: Network, change: Callable[[tuple[Stage, ...]], tuple[Stage, ...]]) -> Network:
    """The network with `change` applied to backbone, neck and auxiliary stages."""
    return replace(base, backbone=change(base.backbone), neck=change(base.neck), auxiliary=change(base.auxiliary))
