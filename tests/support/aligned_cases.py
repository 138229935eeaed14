"""Task-aligned assignment and ATSS on dense tables, image by image, and batches to try them on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolov7.assign import Cells, Predicted, cells_of
from yolov7.boxes import ciou, pairwise_iou

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
    predicted: Predicted,
    targets: Tensor,
    *,
    top_k: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    overlap: str = "ciou",
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
            rule = top_k, alpha, beta, overlap
            best = _one_image(predicted.boxes[image, mine], logits[image, mine], centres, targets, rows, *rule)
            for cell, (row, score) in best.items():
                found[head, image, cell] = row, score
    return found


def _one_image(boxes, logits, centres, targets, rows, top_k, alpha, beta, kind):  # type: ignore[no-untyped-def]
    if not rows:
        return {}
    overlaps, alignments, wanted = [], [], []
    for row in rows:
        low, high = targets[row, 2:4], targets[row, 4:6]
        if kind == "iou":
            overlap = pairwise_iou(boxes, targets[row, 2:][None])[:, 0]
        else:
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


def plain_atss(predicted: Predicted, targets: Tensor) -> dict[tuple[int, int, int], tuple[int, float]]:
    """(head, image, cell) -> (row of targets, target score), as :func:`plain_aligned`; in float64."""
    own = len(predicted.cells) // predicted.heads
    centres, stride = predicted.cells.centres[:own].double(), predicted.cells.stride[:own].double()
    anchors = torch.cat((centres - 2.5 * stride, centres + 2.5 * stride), 1)
    found = {}
    for image in range(len(predicted.boxes)):
        rows = [row for row in range(len(targets)) if int(targets[row, 0]) == image]
        if not rows:
            continue
        overlap = pairwise_iou(targets[rows, 2:].double(), anchors)  # (G, N)
        wanted = torch.stack([_wanted(targets[row, 2:].double(), centres, stride[:, 0], overlap[n])
                              for n, row in enumerate(rows)])  # fmt: skip
        owner = torch.where(wanted.sum(0) > 1, overlap.argmax(0), wanted.int().argmax(0))
        for cell in wanted.any(0).nonzero()[:, 0].tolist():
            row = rows[int(owner[cell])]
            for head in range(predicted.heads):
                box = predicted.boxes[image, head * own + cell][None].double()
                found[head, image, cell] = row, float(pairwise_iou(box, targets[row, 2:][None].double()))
    return found


def _wanted(box: Tensor, centres: Tensor, stride: Tensor, overlap: Tensor) -> Tensor:
    """(N,) the cells that a target chooses."""
    middle = (box[:2] + box[2:]) / 2
    distance = (centres - middle).square().sum(1)
    considered = torch.zeros_like(distance, dtype=torch.bool)
    for value in stride.unique():
        level = (stride == value).nonzero()[:, 0]
        considered[level[distance[level].sort(stable=True).indices[:9]]] = True
    some = overlap[considered]
    inside = ((centres > box[:2]) & (centres < box[2:])).all(1)
    return considered & inside & (overlap > some.mean() + some.std())


def check_equal(found, expected):
    """Both are answers of a `plain_*` method: the same pairs, and scores equal within float32."""
    assert {key: row for key, (row, _) in found.items()} == {key: row for key, (row, _) in expected.items()}
    for key, (_, score) in found.items():
        assert score == pytest.approx(expected[key][1], rel=1e-5, abs=1e-6)
