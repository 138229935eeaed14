"""Task-aligned assignment and its losses on dense tables: what `benchmarks/loss.py` compares the loss of YOLOv9 with.

The formulas of the reference sheet (yolov9-training, sections 5 and 6) for a whole batch: targets padded to those of
the fullest image, and a value for each target and cell.

Legend: B images, G padded targets, N cells, C classes, K bins, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.boxes import ciou

BINS = 16
BOX, DFL, CLASSES, AUXILIARY = 7.5, 1.5, 0.5, 0.25


def padded(targets: Tensor, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row of `targets` (T, 6), class and box of each target (B, G); the row is -1 where an image has fewer."""
    image = targets[:, 0].long()
    own = [(image == number).nonzero()[:, 0] for number in range(images)]
    rows = torch.nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=-1)  # (B, G)
    return rows, targets[rows, 1].long(), targets[rows, 2:]


@torch.no_grad()
def assigned(
    boxes: Tensor, scores: Tensor, centres: Tensor, labels: Tensor, targets: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Which cells are positive (B, N), their target among the G (B, N), and the target scores (B, N, C)."""
    (images, most), cells = labels.shape, len(centres)
    sides = torch.cat((centres - targets[:, :, None, :2], targets[:, :, None, 2:] - centres), 3)  # (B, G, N, 4)
    inside = (sides.amin(3) > 1e-9) & valid[..., None]
    pairs = boxes[:, None].expand(-1, most, -1, -1), targets[:, :, None].expand(-1, -1, cells, -1)
    overlap = ciou(*(part.reshape(-1, 4) for part in pairs)).clamp(min=0).view(images, most, cells) * valid[..., None]
    score = scores.transpose(1, 2).gather(1, labels[..., None].expand(-1, -1, cells))
    alignment = score**0.5 * overlap**6
    best = (alignment * inside).topk(10, 2)
    chosen = torch.zeros_like(inside).scatter_(2, best.indices, best.values > 0)
    largest = F.one_hot(overlap.masked_fill(~valid[..., None], -1).argmax(1), most).transpose(1, 2).bool()
    chosen = torch.where(chosen.sum(1, keepdim=True) > 1, largest, chosen)
    owner = chosen.int().argmax(1)
    most_aligned, most_overlap = (alignment * chosen).amax(2), (overlap * chosen).amax(2)
    graded = (alignment * chosen * (most_overlap / (most_aligned + 1e-9))[..., None]).amax(1)
    wanted = F.one_hot(labels.gather(1, owner), scores.shape[2]) * graded[..., None]
    return chosen.any(1), owner, wanted


def head_loss(maps: Sequence[Tensor], targets: Tensor, strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Box, dfl and class loss of a head (3,), and the positives (P, 3): image, cell, row of `targets`."""
    rows, labels, boxes = padded(targets, len(maps[0]))
    box, logits = torch.cat([part.flatten(2) for part in maps], 2).transpose(1, 2).split((4 * BINS, 80), 2)
    places, scale = [], []
    for part, stride in zip(maps, strides, strict=True):
        x, y = ((torch.arange(part.shape[dim]) + 0.5) * stride for dim in (3, 2))
        places.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).flatten(0, 1))
        scale.append(torch.full((len(places[-1]), 1), float(stride)))
    centres, stride = torch.cat(places), torch.cat(scale)
    grid = centres / stride
    sides = box.unflatten(2, (4, BINS)).softmax(3) @ torch.arange(float(BINS))  # (B, N, 4)
    found = torch.cat((grid - sides[..., :2], grid + sides[..., 2:]), 2)
    positive, owner, wanted = assigned(
        found.detach() * stride, logits.detach().sigmoid(), centres, labels, boxes, rows >= 0
    )
    whole = wanted.sum().clamp(min=1)
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum()
    goal = boxes.gather(1, owner[..., None].expand(-1, -1, 4)) / stride
    weight = wanted.sum(2)[positive]
    overlap = (weight * (1 - ciou(found[positive], goal[positive]))).sum()
    reach = torch.cat((grid - goal[..., :2], goal[..., 2:] - grid), 2)[positive].clamp(0, BINS - 1.01)
    low, logs = reach.floor().long(), box[positive].unflatten(1, (4, BINS)).log_softmax(2)
    below, above = (logs.gather(2, index[..., None])[..., 0] for index in (low, low + 1))
    distribution = (weight * -((low + 1 - reach) * below + (reach - low) * above).mean(1)).sum()
    image, cell = positive.nonzero().T
    found_rows = rows.gather(1, owner)[positive]
    return torch.stack((overlap, distribution, entropy)) / whole, torch.stack((image, cell, found_rows), 1)


def dense_loss(raw: Sequence[Tensor], targets: Tensor, strides: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Total of all heads, and the positives (P, 3) of each."""
    levels = len(strides)
    total, positives = torch.zeros(3), []
    for head in range(len(raw) // levels):
        parts, found = head_loss(raw[head * levels : head * levels + levels], targets, strides)
        total = total + parts * (AUXILIARY if head else 1.0)
        positives.append(found)
    return (total * torch.tensor([BOX, DFL, CLASSES])).sum() * len(raw[0]), positives
