"""The loss of distances that are learned twice: as numbers, which are deployed, and as distributions, which only
training has, so that a teacher's distributions can be learned (reference sheet: yolov6-training, section 7.7).

Legend: B images, L levels, N cells of an image, C classes, K bins, P matches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from yolov7.assign import Matches
from yolov7.errors import ModelError
from yolov7.loss.aligned import AlignedCriterion
from yolov7.loss.criterion import LossResult


class DistributionsCriterion(AlignedCriterion):
    """The loss of L lead maps (B, 4 + C, h, w) and as many maps (B, 4 * K, h, w) that follow them.

    The boxes of the distributions are assigned, and lose as usual. Those of the numbers lose at the same matches with
    the same weights; their loss is added to the part `box`.
    """

    def with_matches(self, raw: Sequence[Tensor], targets: Tensor) -> tuple[LossResult, Matches]:
        """See :meth:`AlignedCriterion.with_matches`."""
        result, matches = super().with_matches(self._joined(raw), targets)
        assert matches.weight is not None
        scores = matches.weight.to(result.total.dtype)
        batch, share = self._shares(len(raw[0]), 1, torch.zeros_like(matches.lines[0]), scores)
        lost = self._direct(raw, matches, targets.to(raw[0].device, torch.float32))
        box = self.options.box * (scores * share * lost).sum()
        total = result.total + (box * batch if self.options.times_images else box)
        return LossResult(total, {**result.parts, "box": result.parts["box"] + box.detach()}), matches

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """See :class:`Criterion`."""
        return super().assign(self._joined(raw), targets)

    def largest_side(self) -> float:
        """See :class:`Criterion`: the numbers have no bound."""
        return math.inf

    def _joined(self, raw: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, 4 * K + C, h, w) of the distributions and the class logits."""
        levels = len(self.strides)
        if len(raw) != 2 * levels:
            raise ModelError(f"{len(raw)} raw maps given; {2 * levels} are expected, with those of the distributions")
        for maps in raw[:levels]:
            if maps.ndim != 4 or maps.shape[1] != 4 + self.num_classes:
                raise ModelError(f"a raw map (B, {4 + self.num_classes}, h, w) is expected, got {tuple(maps.shape)}")
        pairs = zip(raw[:levels], raw[levels:], strict=True)
        return [torch.cat((distributions, lead[:, 4:]), 1) for lead, distributions in pairs]

    def _direct(self, raw: Sequence[Tensor], matches: Matches, targets: Tensor) -> Tensor:
        """(P,) 1 - overlap of the boxes of the numbers, in strides."""
        places = zip(raw, matches.places(), strict=False)
        rows = torch.cat([maps[:, :4].movedim(1, 3)[image, y, x] for maps, (image, _, y, x) in places])
        maps, _, _, row, column, target = matches.lines
        cells = self._cells(raw[: len(self.strides)])
        cell = cells.numbers(maps, row, column)
        outwards, stride = cells.reach[cell] / cells.stride[cell], cells.stride[cell]
        boxes = torch.addcmul(
            cells.corners[cell] / stride, rows if rows.dtype == torch.float64 else rows.float(), outwards
        )
        return 1 - self.overlap(boxes, targets[target, 2:] / stride)
