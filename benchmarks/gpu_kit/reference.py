"""Assignment image by image on dense tables, as the papers write it and as it is usually programmed.

The plain side of the comparison of training speeds: same matches as :mod:`yolov7.assign` (rounding apart), but a loop
over the images, a table of all pairs in each, and a wait for the device wherever a size decides what comes next.

Legend: L levels, G targets of an image, M its candidates, N its cells, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.assign import AlignedAssigner, Matches, OtaAssigner, Predicted, Targets, decode_boxes
from yolov7.boxes import ciou, paired_iou, pairwise_iou

PLACES = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
"""Own cell, left, upper, right, lower neighbour: what is subtracted from a centre, in units of the bias."""


@dataclass(frozen=True)
class PerImageOta:
    """SimOTA of YOLOv7 (its paper, section 4; reference sheet: training, sections 6 and 7)."""

    rule: OtaAssigner

    @torch.no_grad()
    def __call__(self, raw: Sequence[Tensor], targets: Targets) -> Matches:
        """As :class:`yolov7.assign.OtaAssigner`."""
        maps: list[list[Tensor]] = [[] for _ in range(len(raw) * len(self.rule.regions))]
        for region, bias in enumerate(self.rule.regions):
            for image in range(len(raw[0])):
                mine = ((targets.index[:, 0] == image) & ~targets.unusable).nonzero()[:, 0]
                if len(mine):
                    cells = self._candidates(raw, targets, mine, image, bias)  # (6, M)
                    if cells.shape[1]:
                        chosen = self._chosen(raw, targets, mine, cells)
                        for level in range(len(raw)):
                            maps[region * len(raw) + level].append(chosen[:, chosen[0] == level])
        empty = targets.index.new_zeros(6, 0)
        tables = [torch.cat([empty, *found], 1) for found in maps]
        for number, table in enumerate(tables):
            table[0] = number
        return Matches(torch.cat(tables, 1), tuple(table.shape[1] for table in tables))

    def _candidates(self, raw: Sequence[Tensor], targets: Targets, mine: Tensor, image: int, bias: float) -> Tensor:
        found = []
        anchors = self.rule.geometry.anchors.to(targets.boxes)
        for level, stride in enumerate(self.rule.geometry.strides):
            rows, columns = raw[level].shape[2:4]
            size, centre = targets.size[:, mine].T, targets.twice_centre[:, mine].T / (2 * stride)  # (G, 2)
            ratio = size[None] / anchors[level][:, None]
            fits = torch.maximum(ratio, 1 / ratio).amax(2) < self.rule.threshold  # (A, G)
            sides = centre.new_tensor([columns, rows])
            low, high = centre, sides - centre
            near = torch.cat(((low % 1 < bias) & (low > 1), (high % 1 < bias) & (high > 1)), 1)  # left up right down
            places = torch.cat((torch.ones_like(near[:, :1]), near), 1).T  # (5, G)
            place, anchor, target = (places[:, None] & fits[None]).nonzero().unbind(1)
            corner = (centre[target] - bias * centre.new_tensor(PLACES)[place]).long()
            column, row = corner[:, 0].clamp(0, columns - 1), corner[:, 1].clamp(0, rows - 1)
            where = torch.full_like(row, level), torch.full_like(row, image)
            found.append(torch.stack((*where, anchor, row, column, mine[target])))
        return torch.cat(found, 1)

    def _chosen(self, raw: Sequence[Tensor], targets: Targets, mine: Tensor, cells: Tensor) -> Tensor:
        """The matches (6, P) of an image; their last row is the target that gets the prediction."""
        level, image, anchor, row, column, maker = cells.unbind()
        values = torch.cat(
            [raw[i][image[at], anchor[at], row[at], column[at]].float() for i, at in _by_level(level, len(raw))]
        )  # candidates are ordered by level
        anchors = self.rule.geometry.anchors.to(values)[level, anchor]
        strides = values.new_tensor(self.rule.geometry.strides)[level, None]
        centre, size = decode_boxes(values[:, :4], anchors, self.rule.spread)
        centre = (centre + torch.stack((column, row), 1)) * strides
        overlap = pairwise_iou(targets.boxes[mine], torch.cat((centre - size / 2, centre + size / 2), 1))  # (G, M)
        probability = (values[:, 5:].sigmoid() * values[:, 4:5].sigmoid()).sqrt()[None].expand(len(mine), -1, -1)
        wanted = F.one_hot(targets.label[mine, 0], probability.shape[2])[:, None].expand_as(probability).float()
        entropy = F.binary_cross_entropy(probability.clamp(1e-15, 1 - 1e-7), wanted, reduction="none").sum(2)
        cost = entropy - 3 * (overlap + 1e-8).log()
        top = min(self.rule.top, cost.shape[1])
        counts = overlap.topk(top, dim=1).values.sum(1).int().clamp(1, cost.shape[1])
        own_first = (maker[None] != mine[:, None]).sort(dim=1, stable=True).indices
        order = own_first.gather(1, cost.gather(1, own_first).sort(dim=1, stable=True).indices)
        wants = torch.zeros_like(cost, dtype=torch.bool)
        for number, count in enumerate(counts.tolist()):
            wants[number, order[number, :count]] = True
        contested = wants.sum(0) > 1
        owner = torch.where(contested, cost.argmin(0), wants.int().argmax(0))
        taken = wants.any(0).nonzero()[:, 0]
        return torch.cat((cells[:5, taken], mine[owner[taken]][None]))


def _by_level(level: Tensor, levels: int) -> list[tuple[int, Tensor]]:
    return [(number, (level == number).nonzero()[:, 0]) for number in range(levels)]


@dataclass(frozen=True)
class PerImageAligned:
    """Task-aligned assignment (TOOD paper, section 3.2) of YOLOv9 and YOLOv6."""

    rule: AlignedAssigner

    @torch.no_grad()
    def __call__(self, predictions: Predicted, targets: Targets) -> Matches:
        """As :class:`yolov7.assign.AlignedAssigner`; the weights are the target scores."""
        own = len(predictions.cells) // predictions.heads
        levels = len(predictions.logits) // predictions.heads
        tables, scores = [], []
        for head in range(predictions.heads):
            mine = slice(head * own, head * own + own)
            logits = torch.cat(list(predictions.logits[head * levels : (head + 1) * levels]), 2)  # (B, C, N)
            facts = predictions.cells.facts[:3, mine]
            for image in range(len(predictions.boxes)):
                rows = ((targets.index[:, 0] == image) & ~targets.unusable).nonzero()[:, 0]
                if len(rows):
                    centres, boxes = predictions.cells.centres[mine], predictions.boxes[image, mine]
                    cell, target, score = self._one_image(boxes, logits[image].float(), centres, targets, rows)
                    level, row, column = facts[:, cell]
                    zero = torch.zeros_like(cell)
                    tables.append(torch.stack((level, zero + image, zero, row, column, target)))
                    scores.append(score)
        table = torch.cat([targets.index.new_zeros(6, 0), *tables], 1)
        weight = torch.cat([targets.boxes.new_zeros(0), *scores])
        order = table[0].sort(stable=True).indices
        counts = torch.bincount(table[0], minlength=len(predictions.logits)).tolist()
        return Matches(table[:, order], tuple(counts), weight=weight[order])

    def _one_image(
        self, boxes: Tensor, logits: Tensor, centres: Tensor, targets: Targets, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cells, targets and target scores (P,) of one image with boxes (N, 4) and logits (C, N)."""
        wanted = targets.boxes[rows]
        G, N = len(rows), len(boxes)
        pairs = boxes.expand(G, N, 4).reshape(-1, 4), wanted[:, None].expand(G, N, 4).reshape(-1, 4)
        overlap = (ciou(*pairs) if self.rule.overlap == "ciou" else paired_iou(*pairs, 1e-9)).view(G, N).clamp(min=0)
        alignment = logits[targets.label[rows, 0]].sigmoid() ** self.rule.alpha * overlap**self.rule.beta  # (G, N)
        low, high = wanted[:, None, :2], wanted[:, None, 2:]
        inside = torch.cat((centres - low, high - centres), 2).amin(2) > 1e-9
        masked = alignment * inside
        best = masked.topk(min(self.rule.top_k, N), dim=1)
        chosen = torch.zeros_like(inside).scatter_(1, best.indices, best.values > 0)
        owner = torch.where(chosen.sum(0) > 1, overlap.argmax(0), chosen.int().argmax(0))
        cell = chosen.any(0).nonzero()[:, 0]
        final = torch.zeros_like(chosen)
        final[owner[cell], cell] = True
        most_aligned, most_overlap = (alignment * final).amax(1), (overlap * final).amax(1)
        score = alignment * (most_overlap / (most_aligned + 1e-9))[:, None]
        return cell, rows[owner[cell]], score[owner[cell], cell]


def per_image(assigner: object) -> object:
    """The plain counterpart of an assigner; itself where there is none."""
    if isinstance(assigner, OtaAssigner):
        return PerImageOta(assigner)
    return PerImageAligned(assigner) if isinstance(assigner, AlignedAssigner) else assigner
