"""A small detector of RepVGG blocks, in both forms that RepOptimizer trains."""

from __future__ import annotations

from small_detector import SIDE

from yolov7.model.block_specs import Conv, RepVgg, UpConcat
from yolov7.model.heads.anchor import AnchorHead, Level
from yolov7.model.spec import Network, Stage

BLOCKS = ["backbone.stem", "backbone.P2", "backbone.same", "backbone.P3", "neck.T2"]
"""Modules that RepOptimizer replaces."""


def small_rep_network(width: int = 8) -> Network:
    """Strides 4 and 8; RepVGG blocks with and without identity in backbone and neck, and a plain 3x3 among them."""
    return Network(
        name="small-rep",
        backbone=(
            Stage("stem", RepVgg(width, 2)),
            Stage("P2", RepVgg(12, 2)),
            Stage("same", RepVgg(12)),
            Stage("P3", RepVgg(16, 2)),
        ),
        neck=(
            Stage("U2", UpConcat(8), of=("P3", "same")),
            Stage("T2", RepVgg(16), of=("U2",)),
            Stage("N3", Conv(16, 3, 2)),
        ),
        head=AnchorHead(
            anchors=(((12, 14), (18, 26), (30, 20)), ((40, 44), (60, 50), (50, 72))),
            lead=(Level("H2", Conv(12), of="T2"), Level("H3", Conv(16), of="N3")),
            auxiliary=(),
        ),
        activation="relu",
        image_size=SIDE,
    )
