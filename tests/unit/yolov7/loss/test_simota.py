"""SimOTA and the loss of YOLOv6 1.0 beyond the golden files: a plain version, and its edges."""

import math
from types import SimpleNamespace

import pytest
import torch
from aligned_cases import STRIDES, random_batch, sizes_of

from yolov7.assign import cells_of
from yolov7.assign.simota import SimOtaAssigner
from yolov7.config import SimOtaLoss
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.loss import create_criterion

CLASSES = 4


def case(seed, images=3):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(images, 5 + CLASSES, h, w, generator=generator) for h, w in sizes_of(96, 128)]
    _, targets = random_batch(seed, images=images)
    return [item.double().requires_grad_() for item in maps], targets


def criterion(totals=None, **fields):
    """Of a head of one's own, which names the group of its loss."""
    spec = SimpleNamespace(head=SimpleNamespace(parameters=SimOtaLoss))
    model = SimpleNamespace(variant="mine", spec=spec, strides=STRIDES, num_classes=CLASSES)
    return create_criterion(model, image_size=128, totals=totals, **fields)


def plain(boxes, scores, cells, targets):
    """{cell: row of targets} of one image, in float64, pair by pair."""

    def overlap(a, b):
        sides = (min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]))
        shared = max(sides[0], 0.0) * max(sides[1], 0.0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    places = [
        (*centre, stride[0]) for centre, stride in zip(cells.centres.tolist(), cells.stride.tolist(), strict=True)
    ]

    def inside(cell, row):
        x, y, _ = places[cell]
        return row[1] < x < row[3] and row[2] < y < row[4]

    def near(cell, row):
        x, y, stride = places[cell]
        return max(abs(x - (row[1] + row[3]) / 2), abs(y - (row[2] + row[4]) / 2)) < 2.5 * stride

    rows = targets.tolist()
    competing = [c for c in range(len(places)) if any(inside(c, row) or near(c, row) for row in rows)]
    costs, takers = [], {}
    for number, row in enumerate(rows):
        overlaps = {c: overlap(row[1:], boxes[c].tolist()) for c in competing}
        cost = {}
        for c in competing:
            p = scores[c].tolist()
            entropy = -sum(math.log(p[k]) if k == int(row[0]) else math.log(1 - p[k]) for k in range(len(p)))
            apart = 0.0 if inside(c, row) and near(c, row) else 1e5
            cost[c] = entropy - 3 * math.log(overlaps[c] + 1e-8) + apart
        count = max(int(sum(sorted(overlaps.values())[-10:])), 1)
        costs.append(cost)
        for c in sorted(competing, key=cost.get)[:count]:
            takers.setdefault(c, []).append(number)
    best = {c: min(range(len(rows)), key=lambda g: costs[g][c]) for c in takers}
    return {c: best[c] if len(numbers) > 1 else numbers[0] for c, numbers in takers.items()}


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_plain_method(seed):
    predicted, rows = random_batch(seed, images=1, objects=8)
    scores = torch.cat(list(predicted.logits), 2)[0].T.sigmoid()
    cell, target, overlap = SimOtaAssigner()(predicted.boxes[0], scores, predicted.cells, rows[:, 1:])
    expected = plain(predicted.boxes[0], scores, predicted.cells, rows[:, 1:])
    assert dict(zip(cell.tolist(), target.tolist(), strict=True)) == expected and len(expected) >= len(rows)
    assert (overlap >= 0).all() and cell.tolist() == sorted(cell.tolist())


def test_batches_without_targets_train_the_objectness_alone():
    maps, _ = case(0)
    for rows in (torch.zeros(0, 6), torch.tensor([[1.0, 2, 20, 20, 20, 40]])):
        loss = criterion()(maps, rows)
        assert loss.parts["box"] == loss.parts["l1"] == loss.parts["classification"] == 0 < loss.parts["objectness"]
        assert all(torch.isfinite(item).all() for item in torch.autograd.grad(loss.total, maps))


def test_parts_gains_and_shares():
    maps, targets = case(1)
    loss = criterion()(maps, targets)
    assert loss.total.item() == pytest.approx(sum(part.item() for part in loss.parts.values()))
    for part in criterion().parts:
        double = criterion(**{part: 2 * getattr(SimOtaLoss(), part)})(maps, targets)
        ratios = [double.parts[name].item() / loss.parts[name].item() for name in loss.parts]
        assert ratios == pytest.approx([2.0 if name == part else 1.0 for name in loss.parts])
    count = sum(cells.shape[1] for cells in criterion().assign(maps, targets))
    shares = [
        criterion(totals=lambda own: own * 0 + count)(
            [item[n : n + 1] for item in maps], targets[targets[:, 0] == n] - torch.tensor([n, 0, 0, 0, 0, 0])
        )
        for n in range(3)
    ]
    assert sum(share.total.item() for share in shares) == pytest.approx(loss.total.item(), rel=1e-6)


def test_cells_that_are_not_finite_are_no_error():
    cells = cells_of(sizes_of(64, 64), STRIDES, torch.device("cpu"))
    boxes, scores = torch.full((len(cells), 4), torch.nan), torch.full((len(cells), CLASSES), torch.nan)
    cell, _, overlap = SimOtaAssigner()(boxes, scores, cells, torch.tensor([[1.0, 5, 5, 60, 60]]))
    assert len(cell) == 1 and not overlap.any()


def test_wrong_maps_and_targets_are_refused():
    maps, targets = case(2)
    with pytest.raises(ModelError, match=r"3 maps \(B, 9, h, w\) are expected, got \(3, 9, 12, 16\)"):
        criterion()(maps[:2], targets)
    for wrong in ([[3.0, 1, 5, 5, 20, 20]], [[0.0, 4, 5, 5, 20, 20]]):
        with pytest.raises(DataError, match="an image beyond the 3 of the batch, or an unknown class"):
            criterion()(maps, torch.tensor(wrong))
    with pytest.raises(ConfigError, match="class_weights: this loss"):
        criterion(class_weights=[1.0] * CLASSES)
