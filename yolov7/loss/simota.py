"""The loss of YOLOv6 1.0: SimOTA, a box decoded by an exponential, and objectness (reference sheet: yolov6-training,
6.4).

No network of this package has its head; how SimOTA was attached to that of 2.0, for the tables 6 and 7 of the paper, is
not published. A head of one's own that puts out such maps gets this loss by naming :class:`SimOtaLoss`.

Legend: B images, L levels, C classes, N cells of an image, P matches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.assign import Cells, Matches, Targets, cells_of
from yolov7.assign.simota import TINY, SimOtaAssigner
from yolov7.config import SimOtaLoss
from yolov7.errors import DataError, ModelError
from yolov7.loss.box_losses import BOX_LOSSES
from yolov7.loss.criterion import Criterion, LevelPicture, LossResult, Totals

EPSILON = 1e-7


class SimOtaCriterion(Criterion):
    """Assignment and loss of maps (B, 5 + C, h, w): x, y, w, h, objectness, classes.

    The centre of a box is at (x, y) strides from the cell's corner, its sides are exp(w, h) strides. Each part is
    divided by the number of matches, at least 1, over all processes (`totals`).
    """

    parts = ("box", "l1", "objectness", "classification")

    def __init__(
        self,
        options: SimOtaLoss,
        *,
        strides: tuple[int, ...],
        num_classes: int,
        totals: Totals | None = None,
    ):
        self.options = options
        self.strides = strides
        self.num_classes = num_classes
        self.overlap = BOX_LOSSES[options.box_loss]
        self.totals = totals
        self.assigner = SimOtaAssigner()

    def __call__(self, raw: Sequence[Tensor], targets: Tensor, images: Tensor | None = None) -> LossResult:
        """See :class:`Criterion`."""
        known = Targets.of(targets, raw[0].device)
        values, cells, matches, overlap = self._assigned(raw, known)
        _, image, _, row, column, target = matches.lines
        cell = cells.numbers(matches.lines[0], row, column)
        rows = values[image, cell]  # (P, 5 + C)
        stride, boxes = cells.stride[cell], known.boxes[target]
        corner = cells.centres[cell] / stride - 0.5
        wanted = torch.cat((boxes[:, :2] + boxes[:, 2:], boxes[:, 2:] - boxes[:, :2]), 1) / stride
        wanted = torch.cat((wanted[:, :2] / 2 - corner, torch.log(wanted[:, 2:] + TINY)), 1)
        objectness = torch.zeros_like(values[..., 4]).index_put_((image, cell), values.new_ones(()))
        classes = torch.zeros_like(rows[:, 5:]).scatter(1, known.label[target], overlap.to(rows.dtype)[:, None])
        sums = {
            "box": (1 - self.overlap(_decoded(rows, corner, stride), boxes, EPSILON)).sum(),
            "l1": (rows[:, :4] - wanted).abs().sum(),
            "objectness": F.binary_cross_entropy_with_logits(values[..., 4], objectness, reduction="sum"),
            "classification": F.binary_cross_entropy_with_logits(rows[:, 5:], classes, reduction="sum"),
        }
        count = torch.tensor([float(len(matches))], dtype=torch.float64)
        count = count if self.totals is None else self.totals(count)
        least = max(count.item(), 1.0)
        parts = {name: getattr(self.options, name) * part / least for name, part in sums.items()}
        total = torch.stack(list(parts.values())).sum()
        return LossResult(total, {name: part.detach() for name, part in parts.items()})

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """See :class:`Criterion`; the slot is 0."""
        return list(self._assigned(raw, Targets.of(targets, raw[0].device))[2].by_map())

    def levels(self) -> tuple[LevelPicture, ...]:
        """See :class:`Criterion`."""
        return tuple(LevelPicture(stride) for stride in self.strides)

    def _assigned(self, raw: Sequence[Tensor], targets: Targets) -> tuple[Tensor, Cells, Matches, Tensor]:
        """The maps as (B, N, 5 + C), their cells, the matches ordered by map, and their IoU (P,)."""
        if len(raw) != len(self.strides) or any(maps.shape[1] != 5 + self.num_classes for maps in raw):
            shapes = ", ".join(str(tuple(maps.shape)) for maps in raw)
            raise ModelError(f"{len(self.strides)} maps (B, {5 + self.num_classes}, h, w) are expected, got {shapes}")
        flat = torch.cat([maps.flatten(2) for maps in raw], 2).transpose(1, 2)
        values = flat if flat.dtype == torch.float64 else flat.float()
        cells = cells_of(tuple((maps.shape[2], maps.shape[3]) for maps in raw), self.strides, values.device)
        if not self._known(targets, len(values)):
            raise DataError(f"a target names an image beyond the {len(values)} of the batch, or an unknown class")
        read = values.detach().float()
        boxes = _decoded(read, cells.centres / cells.stride - 0.5, cells.stride)
        found = [self._image(image, boxes[image], read[image], cells, targets) for image in range(len(values))]
        image, cell, target, overlap = (torch.cat(column) for column in zip(*found, strict=True))
        maps, row, column, _ = cells.facts[:, cell]
        order = maps.sort(stable=True).indices
        table = torch.stack((maps, image, torch.zeros_like(maps), row, column, target))[:, order]
        counts = torch.bincount(maps, minlength=len(raw)).tolist()
        return values, cells, Matches(table, tuple(counts)), overlap[order]

    def _known(self, targets: Targets, images: int) -> bool:
        last = targets.index.new_tensor((images - 1, self.num_classes - 1))
        return bool(((targets.index >= 0) & (targets.index <= last)).all())

    def _image(self, image: int, boxes: Tensor, read: Tensor, cells: Cells, targets: Targets) -> tuple[Tensor, ...]:
        """Image, cell, target and IoU (p,) of the matches of an image."""
        mine = ((targets.index[:, 0] == image) & ~targets.unusable).nonzero()[:, 0]
        rows = torch.cat((targets.label[mine].float(), targets.boxes[mine]), 1)
        scores = (read[:, 5:].sigmoid() * read[:, 4:5].sigmoid()).sqrt()
        cell, own, overlap = self.assigner(boxes, scores, cells, rows)
        return torch.full_like(cell, image), cell, mine[own], overlap


def _decoded(rows: Tensor, corner: Tensor, stride: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy in pixels; `corner` (..., 2) of the cell in strides."""
    centre = (rows[..., :2] + corner) * stride
    half = rows[..., 2:4].exp() * stride / 2
    return torch.cat((centre - half, centre + half), -1)
