"""The loss of a head of YOLOv6 with objectness, against its definition on dense tables in float64."""

from types import SimpleNamespace

import pytest
import torch
from aligned_cases import STRIDES, random_batch, sizes_of
from small_efficient import small_efficient
from torch.nn import functional as F

from tests.unit.yolov7.loss.test_anchor_aided import YOLOV6, NoFloat64
from yolov7.assign import AtssAssigner
from yolov7.assign.matches import product_logit
from yolov7.boxes import pairwise_iou
from yolov7.config import AlignedLoss, Distillation
from yolov7.errors import ConfigError, ModelError
from yolov7.loss import AlignedCriterion, ObjectnessCriterion, aligned_criterion, create_criterion, require_fit
from yolov7.model import create_model

CLASSES, SIZES = 4, sizes_of(64, 64)
FIRST = (0, 64, 80)
"""Number of each level's first cell."""


def criterion(*, objectness_branch=True, bins=0, totals=None, **fields):
    head = SimpleNamespace(bins=bins, objectness=objectness_branch)
    model = SimpleNamespace(spec=SimpleNamespace(head=head), strides=STRIDES, num_classes=CLASSES, has_auxiliary=False)
    return aligned_criterion(model, AlignedLoss(**{**YOLOV6, **fields}), image_size=64, totals=totals)


def case(seed, images=3, bins=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(images, 4 * max(bins, 1) + 1 + CLASSES, *size) for size in SIZES]
    maps = [torch.randn(shape, generator=generator) + 1 for shape in shapes]
    _, targets = random_batch(seed, images=images, height=64, width=64)
    return [item.double().requires_grad_() for item in maps], targets


def parts(maps, bins=0):
    """Maps of the box channels, the object logit and the class logits, for each level."""
    return zip(*(level.split((4 * max(bins, 1), 1, CLASSES), 1) for level in maps), strict=True)


def boxes_of(maps, bins):
    """Boxes (B, N, 4) in pixels."""
    found = []
    for level, stride in zip(next(iter(parts(maps, bins))), STRIDES, strict=True):
        sides = level.detach()
        if bins:
            probabilities = sides.unflatten(1, (4, bins)).softmax(2)
            sides = (probabilities * torch.arange(bins)[:, None, None].double()).sum(2)
        rows, columns = ((torch.arange(side) + 0.5) * stride for side in sides.shape[2:])
        left, top, right, bottom = (sides * stride).unbind(1)
        x, y = columns, rows[:, None]
        found.append(torch.stack((x - left, y - top, x + right, y + bottom), 3).flatten(1, 2))
    return torch.cat(found, 1)


@pytest.mark.parametrize(
    "fields", [{}, {"atss_epochs": 5}, {"times_images": True, "overlap": "ciou", "objectness": 2.5}]
)
@pytest.mark.parametrize("bins", [0, 17])
def test_value_and_gradient_are_those_of_the_definition(bins, fields):
    maps, targets = case(1, bins=bins)
    made = criterion(bins=bins, **fields).at(4, 10)
    assert type(made) is ObjectnessCriterion and isinstance(made.assigner, AtssAssigner) is ("atss_epochs" in fields)
    loss, matches = made.with_matches(maps, targets)
    assert made.parts == tuple(loss.parts) == ("box", "dfl", "classification", "objectness")
    boxes = boxes_of(maps, bins)
    objects = torch.cat([item.flatten(1) for item in list(parts(maps, bins))[1]], 1)  # (B, N)
    wanted = torch.zeros_like(objects)
    for level, image, _, row, column, target in matches.cells.T.tolist():
        cell = FIRST[level] + row * SIZES[level][1] + column
        wanted[image, cell] = pairwise_iou(boxes[image, cell][None], targets[target, 2:][None].double()).item()
    assert len(matches) > 10 and wanted.unique().numel() > 8 and (wanted == 0).sum() > 30
    cross_entropy = -(wanted * F.logsigmoid(objects) + (1 - wanted) * F.logsigmoid(-objects)).sum()
    expected = made.options.objectness * cross_entropy / matches.weight.double().sum()
    assert loss.parts["objectness"].item() == pytest.approx(expected.item(), rel=1e-6)
    times = 3 if made.options.times_images else 1
    assert loss.total.item() == pytest.approx(times * sum(part.item() for part in loss.parts.values()), rel=1e-6)
    # Nothing but this part has a gradient in the object logit, and this part none anywhere else.
    channel = 4 * max(bins, 1)
    whole = torch.autograd.grad(loss.total, maps, retain_graph=True)
    for found, own in zip(whole, torch.autograd.grad(times * expected, maps), strict=True):
        assert torch.allclose(found[:, channel], own[:, channel], rtol=1e-5, atol=1e-9)
        assert found[:, channel].abs().sum() > 0 and found[:, channel + 1 :].abs().sum() > 0
    other = criterion(bins=bins, **{**fields, "objectness": 0.0}).at(4, 10)(maps, targets)
    for found, own in zip(whole, torch.autograd.grad(other.total, maps), strict=True):
        rest = [index for index in range(found.shape[1]) if index != channel]
        assert torch.equal(found[:, rest], own[:, rest]) and not own[:, channel].any()


@pytest.mark.parametrize("bins", [0, 17])
def test_the_alignment_takes_the_product(bins):
    maps, targets = case(2, bins=bins)
    box, objects, classes = parts(maps, bins)
    plain = criterion(bins=bins, objectness_branch=False, top_k=3)
    assert type(plain) is AlignedCriterion and plain.parts == ("box", "dfl", "classification")
    products = [torch.logit(thing.sigmoid() * label.sigmoid()) for thing, label in zip(objects, classes, strict=True)]
    made = criterion(bins=bins, top_k=3)
    _, matches = made.with_matches(maps, targets)
    _, same = plain.with_matches([torch.cat(pair, 1) for pair in zip(box, products, strict=True)], targets)
    _, other = plain.with_matches([torch.cat(pair, 1) for pair in zip(box, classes, strict=True)], targets)
    assert torch.equal(matches.cells, same.cells) and not torch.equal(matches.cells, other.cells)
    assert torch.allclose(matches.weight, same.weight, rtol=1e-4)
    assert torch.equal(torch.cat(made.assign(maps, targets), 1), matches.cells)


def test_certain_objects_leave_the_other_parts_as_they_are():
    maps, targets = case(3)
    box, _, classes = parts(maps)
    sure = [torch.cat((a, torch.full_like(a[:, :1], 90.0), b), 1) for a, b in zip(box, classes, strict=True)]
    found = criterion()(sure, targets).parts
    expected = criterion(objectness_branch=False)(
        [torch.cat(pair, 1) for pair in zip(box, classes, strict=True)], targets
    )
    assert {name: found[name] for name in expected.parts} == expected.parts


def test_the_logit_of_a_product():
    a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).double() * 4
    assert torch.allclose(product_logit(a, b).sigmoid(), a.sigmoid() * b.sigmoid(), rtol=1e-12)
    far = torch.tensor([-200.0, -80.0, 0.0, 80.0, 200.0])
    one, other = (item.flatten() for item in torch.meshgrid(far, far, indexing="ij"))
    found = product_logit(one, other)
    assert found.isfinite().all() and torch.equal(found, product_logit(other, one))
    assert torch.allclose(found.sigmoid(), one.sigmoid() * other.sigmoid(), rtol=1e-5, atol=1e-40)


def test_shares_of_a_batch_add_up_to_its_loss_and_gradient():
    maps, targets = case(4, images=4)
    targets = targets[targets[:, 0] > 0]  # the first share has no target
    whole = criterion()(maps, targets)
    pieces, told = [], []
    for start, stop in ((0, 1), (1, 4)):
        own = targets[(targets[:, 0] >= start) & (targets[:, 0] < stop)]
        pieces.append(([item[start:stop] for item in maps], own - torch.tensor([start, 0, 0, 0, 0, 0])))
        told.append([])
        criterion(totals=lambda figures, own=told[-1]: own.append(figures) or figures)(*pieces[-1])
    sums = [sum(pair) for pair in zip(*told, strict=True)]
    losses = []
    for piece in pieces:
        answers = iter(sums)
        losses.append(criterion(totals=lambda figures, answers=answers: next(answers))(*piece))
    for name in whole.parts:
        found = sum(loss.parts[name].item() for loss in losses)
        assert found == pytest.approx(whole.parts[name].item(), rel=1e-6), name
    ours = torch.autograd.grad(sum(loss.total for loss in losses), maps)
    for a, b in zip(ours, torch.autograd.grad(whole.total, maps), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_batches_without_positives_teach_that_there_is_no_object():
    maps, _ = case(1)
    for rows in (torch.zeros(0, 6), torch.tensor([[0.0, 1, 5, 5, 7, 7]])):
        for epoch in (0, 4):
            loss = criterion(atss_epochs=4).at(epoch, 10)(maps, rows)
            negatives = sum(F.softplus(item).sum() for item in list(parts(maps))[1])
            assert loss.parts["box"] == 0 and loss.parts["objectness"].item() == pytest.approx(negatives.item())


def test_float32_alone_and_the_same_under_autocast():
    maps, targets = case(2)
    maps = [item.detach().float().requires_grad_() for item in maps]
    with NoFloat64():
        plain = criterion()(maps, targets)
        plain.total.backward()
    assert all(item.grad.abs().sum() > 0 for item in maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = criterion()(maps, targets)
    assert torch.equal(cast.total, plain.total) and cast.parts == plain.parts
    half = [item.detach().bfloat16().requires_grad_() for item in maps]
    loss = criterion()(half, targets)
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    assert all(item.grad.dtype == torch.bfloat16 and torch.isfinite(item.grad).all() for item in half)


def test_the_criterion_of_a_network_follows_its_head():
    for on, kind in ((True, ObjectnessCriterion), (False, AlignedCriterion)):
        model = create_model(small_efficient(objectness=on), 2, device="meta")
        assert type(create_criterion(model, image_size=64)) is kind
    with pytest.raises(ModelError, match=r"a raw map \(B, 9, h, w\) is expected, got \(3, 8, 8, 8\)"):
        criterion()([item[:, :-1] for item in case(0)[0]], torch.zeros(0, 6))


def test_distillation_is_refused():
    plain, other = small_efficient(), small_efficient(objectness=True)
    for student, teacher in ((plain, other), (other, plain)):
        with pytest.raises(ConfigError, match="objectness cannot be combined with distillation; set it to false"):
            require_fit(student, teacher, Distillation(dfl=0))
    require_fit(plain, plain, Distillation(dfl=0))
