"""YOLOv9's head (DDetect and DualDDetect; reference sheet: yolov9, section 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.blocks import ConvUnit
from yolov7.model.heads.aligned import AlignedHead
from yolov7.model.spec import Map

SIDES = 4  # a group of the box branch's convolutions for each side of a box
BOX_PRIOR = 1.0  # bias of every bin
PRIOR_IMAGE_SIDE, PRIOR_OBJECTS = 640, 5  # image and objects for which the class prior is computed


@dataclass(frozen=True, kw_only=True)
class GelanHead(AlignedHead):
    """DDetect (with `auxiliary`: DualDDetect): a box branch in four groups and a class branch for each level."""

    groups: int = SIDES
    """Groups of the box branch's convolutions; 1: a plain branch."""
    class_width: int | None = None
    """Width of the class branches; None: as released, see :func:`widths`. The published 2.0M of T are those of 80."""

    def branches(self, names: Sequence[str], maps: Mapping[str, Map], act: str, num_classes: int) -> list[nn.Module]:
        """Branches of these maps. The first map's width decides that of all."""
        if not self.bins:
            raise ModelError("bins: the box branch of this head predicts distributions, so at least 2 are needed")
        box_width, class_width = widths(maps[names[0]].channels, num_classes, self.bins)
        if self.class_width is not None:
            if self.class_width < 1:
                raise ModelError(f"class_width: at least 1, got {self.class_width}")
            class_width = self.class_width
        return [
            GelanBranch(maps[name].channels, box_width, class_width, self, num_classes, name, act) for name in names
        ]


def widths(channels: int, num_classes: int, bins: int = 16) -> tuple[int, int]:
    """Widths of box and class branches for a first level with this many channels, as released."""
    box = max(channels // 4, 4 * bins, 16)
    return math.ceil(box / SIDES) * SIDES, max(channels, min(2 * num_classes, 128))


class GelanBranch(nn.Module):
    """One level: (B, C_in, h, w) -> (B, 4 K + C, h, w)."""

    def __init__(
        self, channels: int, box_width: int, class_width: int, head: GelanHead, num_classes: int, reads: str, act: str
    ):
        super().__init__()
        self.reads = reads
        self.box = nn.Sequential(
            ConvUnit(channels, box_width, 3, act=act),
            ConvUnit(box_width, box_width, 3, groups=head.groups, act=act),
            ConvUnit(box_width, head.box_channels, groups=head.groups, act="none", norm=False),
        )
        self.classes = nn.Sequential(
            ConvUnit(channels, class_width, 3, act=act),
            ConvUnit(class_width, class_width, 3, act=act),
            ConvUnit(class_width, num_classes, act="none", norm=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat((self.box(x), self.classes(x)), 1)

    def outputs(self) -> list[nn.Module]:
        """See :class:`yolov7.model.heads.aligned.Branch`."""
        return [self.box[-1], self.classes[-1]]

    @torch.no_grad()
    def set_prior(self, stride: int) -> None:
        """Set the output biases of a fresh network."""
        for branch, value in ((self.box, BOX_PRIOR), (self.classes, self._class_prior(stride))):
            output = branch[-1]
            assert isinstance(output, ConvUnit) and output.conv.bias is not None
            if not output.conv.bias.is_meta:
                output.conv.bias.fill_(value)

    def _class_prior(self, stride: int) -> float:
        output = self.classes[-1]
        assert isinstance(output, ConvUnit)
        return math.log(PRIOR_OBJECTS / output.conv.out_channels / (PRIOR_IMAGE_SIDE / stride) ** 2)
