"""The loss of anchor-based predictions beside the anchor-free ones, for training alone (reference sheet:
yolov6-training, section 7.6).

A level's map has S slots of 4 box channels and C class logits. A box has its centre at the cell's centre moved by x and
y strides, and the sides (2 sigmoid(w, h))^2 times the anchor of its slot. Assignment and losses are those of the
anchor-free predictions, with more choices for each target, always task-aligned and without distributions.

Legend: L levels, S slots of a level, N predictions of an image in the order level, slot, row, column, P matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from yolov7.assign import Cells, Matches
from yolov7.config import AlignedLoss
from yolov7.device import cached_constant
from yolov7.errors import ModelError
from yolov7.loss.aligned import AlignedCriterion
from yolov7.loss.criterion import LossResult, Totals

Anchors = tuple[tuple[tuple[float, float], ...], ...]
"""Width and height in pixels, of each slot of each level."""


class AnchorAidedCriterion(AlignedCriterion):
    """The loss of the lead maps, plus that of as many maps (B, S * (4 + C), h, w) that follow them in training.

    Its matches and pictures are those of the lead maps. Without the other maps, as in validation, their parts are 0.
    """

    parts = (*AlignedCriterion.parts, "anchor_box", "anchor_classification")

    def __init__(
        self,
        options: AlignedLoss,
        *,
        strides: tuple[int, ...],
        num_classes: int,
        bins: int,
        anchors: Anchors,
        totals: Totals | None = None,
        class_weights: Tensor | None = None,
    ):
        super().__init__(
            options,
            strides=strides,
            num_classes=num_classes,
            bins=bins,
            totals=totals,
            class_weights=class_weights,
        )
        self.branch = AnchorBranch(
            options,
            strides=strides,
            num_classes=num_classes,
            anchors=anchors,
            totals=totals,
            class_weights=class_weights,
        )

    def with_matches(self, raw: Sequence[Tensor], targets: Tensor) -> tuple[LossResult, Matches]:
        """See :meth:`AlignedCriterion.with_matches`."""
        levels = len(self.strides)
        lead, matches = super().with_matches(raw[:levels], targets)
        if len(raw) == levels:
            zero = torch.zeros_like(lead.total.detach())
            return LossResult(lead.total, {**lead.parts, "anchor_box": zero, "anchor_classification": zero}), matches
        other = self.branch(raw[levels:], targets)
        parts = {f"anchor_{part}": other.parts[part] for part in ("box", "classification")}
        return LossResult(lead.total + other.total, {**lead.parts, **parts}), matches

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """See :class:`Criterion`."""
        return super().assign(raw[: len(self.strides)], targets)


class AnchorBranch(AlignedCriterion):
    """Assignment and loss of the maps (B, S * (4 + C), h, w); inside, each slot of a level is a map of its own."""

    def __init__(
        self,
        options: AlignedLoss,
        *,
        strides: tuple[int, ...],
        num_classes: int,
        anchors: Anchors,
        totals: Totals | None = None,
        class_weights: Tensor | None = None,
    ):
        if len(anchors) != len(strides):
            raise ModelError(f"anchors of {len(anchors)} levels given for {len(strides)}")
        self.slots = tuple(len(level) for level in anchors)
        self.anchors = tuple(chain.from_iterable(anchors))
        own = {"assigner": "aligned", "atss_epochs": 0, "top_k": options.anchor_aided_top_k, "least_score_sum": 0.0}
        super().__init__(
            options.model_copy(update=own),
            strides=tuple(stride for stride, count in zip(strides, self.slots, strict=True) for _ in range(count)),
            num_classes=num_classes,
            bins=0,
            totals=totals,
            class_weights=class_weights,
        )

    def with_matches(self, raw: Sequence[Tensor], targets: Tensor) -> tuple[LossResult, Matches]:
        """See :meth:`AlignedCriterion.with_matches`; the maps of the matches are the slots."""
        if len(raw) != len(self.slots):
            raise ModelError(f"{len(raw)} anchor-based maps given; {len(self.slots)} are expected")
        return super().with_matches(self._split(raw), targets)

    def _split(self, raw: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, 4 + C, h, w) of all slots."""
        each = 4 + self.num_classes
        for maps, count in zip(raw, self.slots, strict=True):
            if maps.ndim != 4 or maps.shape[1] != count * each:
                raise ModelError(f"an anchor-based map (B, {count * each}, h, w) is expected, got {tuple(maps.shape)}")
        return [slot for maps in raw for slot in maps.unflatten(1, (-1, each)).unbind(1)]

    def _decoded(self, box: Tensor, cells: Cells) -> Tensor:
        """Boxes (B, N, 4) in pixels, from box channels (B, 4, N)."""
        return _decode(box.transpose(1, 2), cells.centres, cells.stride, self._anchors(cells)[cells.facts[0]])

    def _boxes(self, raw: Tensor, cells: Cells, cell: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """1 - overlap (P,) of the box channels (P, 4) of these cells, in strides, and zeros (P,)."""
        stride = cells.stride[cell]
        anchors = self._anchors(cells)[cells.facts[0][cell]]
        boxes = _decode(raw, cells.centres[cell] / stride, torch.ones_like(stride), anchors / stride)
        overlap = 1 - self.overlap(boxes, targets / stride)
        return overlap, torch.zeros_like(overlap)

    def _anchors(self, cells: Cells) -> Tensor:
        """(slots of all levels, 2) in pixels."""
        return cached_constant(self.anchors, np.float32, cells.corners.device)


def _decode(box: Tensor, centres: Tensor, stride: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy from box channels (..., 4); centres and anchors (..., 2), in the unit of `stride`."""
    shift, size = box.split(2, -1)
    centre = centres + shift * stride
    half = (2 * size.sigmoid()).square() * anchors / 2
    return torch.cat((centre - half, centre + half), -1)
