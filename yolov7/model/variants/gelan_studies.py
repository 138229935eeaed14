"""Networks of the YOLOv9 paper's studies: tables 2, 3 and 6 and the appendix (reference sheet: yolov9-training,
section 11). They are named `MODULE:FUNCTION`, as networks of the user's own, or made of a GELAN by :func:`with_blocks`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from yolov7.model.blocks import Gelan
from yolov7.model.blocks.gelan import Computational
from yolov7.model.heads.anchor import AnchorHead
from yolov7.model.heads.gelan import GelanHead
from yolov7.model.spec import Network, Stage
from yolov7.model.variants.yolov7 import yolov7
from yolov7.model.variants.yolov9 import C, E, gelan, linked


def with_blocks(
    network: Network, *, block: Computational | None = None, depth: int | None = None, inner: int | None = None
) -> Network:
    """The network with another computational block, ELAN depth (D_ELAN) or CSP depth (D_CSP) in every GELAN block.

    Blocks of plain ELAN, as at P2 of T and S, stay as they are (tables 2 and 3).
    """
    given: dict[str, Any] = {
        name: value for name, value in (("block", block), ("depth", depth), ("inner", inner)) if value is not None
    }

    def change(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(
            replace(stage, block=replace(stage.block, **given))
            if isinstance(stage.block, Gelan) and stage.block.block != "plain"
            else stage
            for stage in stages
        )

    return replace(
        network, backbone=change(network.backbone), neck=change(network.neck), auxiliary=change(network.auxiliary)
    )


def gelan_e_single() -> Network:
    """Table 6, "+ GELAN": E with its first backbone alone."""
    return gelan(E, "gelan-e-single")


def gelan_c_linked() -> Network:
    """Appendix, 34.7M: the two linked backbones of YOLOv9-C in use, not for training alone."""
    return linked(C, "gelan-c-linked", taps=("B3", "B4", "B5"))


def gelan_c_linked_deep() -> Network:
    """Appendix, 44.0M: the same with three layers in every CSP."""
    return replace(with_blocks(gelan_c_linked(), inner=3), name="gelan-c-linked-deep")


def yolov7_af() -> Network:
    """Table 6, "+ AF": YOLOv7 with an anchor-free head after its RepConv, the box branches in one group."""
    base = yolov7()
    assert isinstance(base.head, AnchorHead)
    towers = tuple(Stage(level.name, level.conv, (level.of,)) for level in base.head.lead)
    return replace(
        base,
        name="yolov7-af",
        neck=(*base.neck, *towers),
        head=GelanHead(lead=tuple(tower.name for tower in towers), groups=1),
    )
