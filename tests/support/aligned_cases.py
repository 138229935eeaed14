"""Task-aligned assignment on dense tables, image by image, and batches to try it on."""

from __future__ import annotations

import torch
from torch import Tensor

from yolov7.assign import Cells, Predicted, cells_of
from yolov7.boxes import ciou

STRIDES = (8, 16, 32)


def sizes_of(height: int, width: int) -> tuple[tuple[int, int], ...]:
    return tuple((height // stride, width // stride) for stride in STRIDES)


def random_rows(images: int, objects: int, side: int) -> Tensor:
    """Targets (T, 6) with sides of 5 to 35 % of the image."""
    generator = torch.Generator().manual_seed(0)
    count = images * objects
    image = torch.arange(images).repeat_interleave(objects)[:, None].float()
    label = torch.randint(0, 80, (count, 1), generator=generator).float()
    size = (torch.rand(count, 2, generator=generator) * 0.3 + 0.05) * side
    low = torch.rand(count, 2, generator=generator) * (side - size)
    return torch.cat((image, label, low, low + size), 1)


def random_batch(
    seed: int,
    *,
    images: int = 3,
    objects: int = 6,
    height: int = 96,
    width: int = 128,
    classes: int = 4,
    heads: int = 1,
) -> tuple[Predicted, Tensor]:
    """Predictions near the targets, so that cells are contested, and targets (T, 6)."""
    generator = torch.Generator().manual_seed(seed)
    count = images * objects
    image = torch.randint(0, images, (count,), generator=generator)
    label = torch.randint(0, classes, (count,), generator=generator)
    size = (torch.rand(count, 2, generator=generator) * 0.5 + 0.05) * torch.tensor([width, height])
    low = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - size)
    boxes = torch.cat((low, low + size), 1)
    cells = cells_of(sizes_of(height, width) * heads, STRIDES * heads, torch.device("cpu"))
    predicted = torch.rand(images, len(cells), 4, generator=generator) * 40 + 4
    centres = cells.centres
    predicted = torch.cat((centres - predicted[..., :2], centres + predicted[..., 2:]), 2)
    for number in range(count):
        near = torch.rand(len(cells), generator=generator) < 0.3
        noise = torch.randn(int(near.sum()), 4, generator=generator) * 4
        predicted[int(image[number]), near] = boxes[number] + noise
    logits = torch.randn(images, len(cells), classes, generator=generator)
    targets = torch.cat((image[:, None].float(), label[:, None].float(), boxes), 1)
    return predictions_of(predicted, logits, cells, heads), targets


def predictions_of(boxes: Tensor, logits: Tensor, cells: Cells, heads: int = 1) -> Predicted:
    """From boxes (B, N, 4) and logits (B, N, C)."""
    lengths = [rows * columns for rows, columns in cells.sizes]
    return Predicted(boxes, logits.transpose(1, 2).split(lengths, 2), cells, heads)


def plain_aligned(
    predicted: Predicted, targets: Tensor, *, top_k: int = 10, alpha: float = 0.5, beta: float = 6.0
) -> dict[tuple[int, int, int], tuple[int, float]]:
    """(head, image, cell) -> (row of targets, target score); the cells of each head are numbered from 0."""
    found = {}
    own = len(predicted.cells) // predicted.heads
    logits = torch.cat(list(predicted.logits), 2).transpose(1, 2)
    for image in range(len(predicted.boxes)):
        rows = [row for row in range(len(targets)) if int(targets[row, 0]) == image]
        for head in range(predicted.heads):
            mine = slice(head * own, head * own + own)
            centres = predicted.cells.centres[mine]
            best = _one_image(
                predicted.boxes[image, mine], logits[image, mine], centres, targets, rows, top_k, alpha, beta
            )
            for cell, (row, score) in best.items():
                found[head, image, cell] = row, score
    return found


def _one_image(boxes, logits, centres, targets, rows, top_k, alpha, beta):  # type: ignore[no-untyped-def]
    if not rows:
        return {}
    overlaps, alignments, wanted = [], [], []
    for row in rows:
        low, high = targets[row, 2:4], targets[row, 4:6]
        overlap = ciou(boxes, targets[row, 2:].expand_as(boxes)).clamp(min=0)
        alignment = logits[:, int(targets[row, 1])].sigmoid() ** alpha * overlap**beta
        inside = torch.cat((centres - low, high - centres), 1).amin(1) > 1e-9
        masked = alignment * inside
        best = masked.sort(descending=True, stable=True).indices[:top_k]
        chosen = torch.zeros(len(boxes), dtype=torch.bool)
        chosen[best] = masked[best] > 0
        overlaps.append(overlap)
        alignments.append(alignment)
        wanted.append(chosen)
    overlap, alignment, chosen = torch.stack(overlaps), torch.stack(alignments), torch.stack(wanted)  # (G, N)
    owner = torch.where(chosen.sum(0) > 1, overlap.argmax(0), chosen.int().argmax(0))
    final = torch.zeros_like(chosen)
    cells = chosen.any(0).nonzero()[:, 0]
    final[owner[cells], cells] = True
    most_aligned = (alignment * final).amax(1)
    most_overlap = (overlap * final).amax(1)
    score = alignment * (most_overlap / (most_aligned + 1e-9))[:, None]
    return {int(cell): (rows[int(owner[cell])], float(score[owner[cell], cell])) for cell in cells}
