"""The loss of an aligned head with objectness (YOLOv6 paper, sections 2.3.3 and 3.3.3, equation 3 and table 11).

The paper adds mu * L_obj to the loss, finds that it loses AP, and does not define it. This is our reading. The object
logit of a cell learns, by binary cross-entropy, the IoU that its box has with its target, and 0 in all other cells; the
sum is divided as the class loss is. The score in the alignment is objectness x class probability, as it is in
detection: the three tasks which the paper says are hard to align.

Legend: B images, h w cells of a level, R box channels, C classes, P matches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.assign import Matches, Targets
from yolov7.boxes import EPS, paired_iou
from yolov7.config import AlignedLoss
from yolov7.loss.aligned import AlignedCriterion
from yolov7.loss.criterion import LossResult, Totals


class ObjectnessCriterion(AlignedCriterion):
    """The loss of lead maps (B, R + 1 + C, h, w): box channels, the object logit, class logits."""

    parts = (*AlignedCriterion.parts, "objectness")

    def __init__(
        self,
        options: AlignedLoss,
        *,
        strides: tuple[int, ...],
        num_classes: int,
        bins: int,
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
        self.columns = (self.channels, 1, num_classes)

    def with_matches(self, raw: Sequence[Tensor], targets: Tensor) -> tuple[LossResult, Matches]:
        """See :meth:`AlignedCriterion.with_matches`."""
        result, matches = super().with_matches(raw, targets)
        assert matches.weight is not None
        head = torch.zeros_like(matches.lines[0])
        batch, share = self._shares(len(raw[0]), 1, head, matches.weight.to(result.total.dtype))
        overlaps = self._overlaps(raw, matches, Targets.of(targets, raw[0].device)).split(matches.counts)
        sums = []
        for maps, (image, _, row, column), overlap in zip(raw, matches.places(), overlaps, strict=True):
            logits = _full(maps[:, self.channels])  # (B, h, w)
            wanted = torch.zeros_like(logits).index_put_((image, row, column), overlap)
            sums.append(F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum"))
        objectness = self.options.objectness * (torch.stack(sums).sum() * share[0])
        total = result.total + (objectness * batch if self.options.times_images else objectness)
        return LossResult(total, {**result.parts, "objectness": objectness.detach()}), matches

    @torch.no_grad()
    def _overlaps(self, raw: Sequence[Tensor], matches: Matches, targets: Targets) -> Tensor:
        """(P,) IoU of the matched boxes with their targets, whatever overlap the other losses take."""
        places = zip(raw, matches.places(), strict=True)
        rows = [maps[:, : self.channels].movedim(1, 3)[image, y, x] for maps, (image, _, y, x) in places]
        maps, _, _, row, column, target = matches.lines
        cells = self._cells(raw)
        cell = cells.numbers(maps, row, column)
        box = _full(torch.cat(rows))
        sides = self._sides(box.T[None])[0].T  # (P, 4)
        boxes = torch.addcmul(cells.corners[cell], sides, cells.reach[cell])
        return paired_iou(boxes, targets.boxes[target], EPS).clamp(0, 1).to(box.dtype)


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
