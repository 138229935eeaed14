"""What YOLOv6 adds to the aligned loss: ATSS by epoch, its divisor, and the anchor-aided branch."""

from types import SimpleNamespace

import pytest
import torch
from aligned_cases import STRIDES, random_batch, sizes_of
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.assign import AlignedAssigner, AtssAssigner
from yolov7.config import AlignedLoss
from yolov7.errors import ModelError
from yolov7.loss import AlignedCriterion, AnchorAidedCriterion, aligned_criterion

CLASSES, SLOTS = 4, (1, 3, 2)
ANCHORS = (((10.0, 13.0),), ((30.0, 61.0), (59.0, 59.0), (20.0, 30.0)), ((116.0, 90.0), (85.0, 60.0)))
YOLOV6 = {
    "top_k": 13,
    "alpha": 1.0,
    "overlap": "iou",
    "box_loss": "siou",
    "box_epsilon": 1e-10,
    "box": 2.5,
    "dfl": 0.5,
    "classification_loss": "varifocal",
    "classification": 1.0,
    "least_score_sum": 0.0,
    "times_images": False,
}


def criterion(*, aided=True, totals=None, class_weights=None, bins=0, **fields):
    head = SimpleNamespace(bins=bins, anchor_aided=aided, anchors=ANCHORS)
    model = SimpleNamespace(spec=SimpleNamespace(head=head), strides=STRIDES, num_classes=CLASSES, has_auxiliary=aided)
    options = AlignedLoss(**{**YOLOV6, **fields})
    return aligned_criterion(model, options, image_size=64, totals=totals, class_weights=class_weights)


def case(seed, images=3, bins=0):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(images, 4 * max(bins, 1) + CLASSES, h, w, generator=generator) + 1 for h, w in sizes_of(64, 64)]
    for (h, w), slots in zip(sizes_of(64, 64), SLOTS, strict=True):
        maps.append(torch.randn(images, slots * (4 + CLASSES), h, w, generator=generator))
    _, targets = random_batch(seed, images=images, height=64, width=64)
    return [item.double().requires_grad_() for item in maps], targets


def test_the_first_epochs_assign_by_atss_and_no_call_changes_the_criterion():
    made = criterion(aided=False, atss_epochs=4)
    rules = [made.at(epoch, 300).assigner for epoch in (0, 3, 4, 299)]
    assert [type(rule) for rule in rules] == [AtssAssigner, AtssAssigner, AlignedAssigner, AlignedAssigner]
    assert rules[2] == made.assigner == AlignedAssigner(13, 1.0, 6.0, "iou")
    assert made.at(0, 300).at(4, 300).assigner == rules[2] and made.at(5, 300).at(0, 300).assigner == rules[0]
    assert isinstance(criterion(aided=False, assigner="atss").at(200, 300).assigner, AtssAssigner)
    maps, targets = case(0)
    early, late = (made.at(epoch, 300)(maps[:3], targets).total for epoch in (0, 4))
    assert early != late and made(maps[:3], targets).total == late
    branch = criterion(atss_epochs=4).at(0, 300).branch
    assert branch.assigner == AlignedAssigner(26, 1.0, 6.0, "iou")


def test_the_divisor_and_the_number_of_images():
    maps, _ = case(0)
    one = torch.tensor([[0.0, 1, 10, 10, 40, 40]])
    free, bound = (criterion(aided=False, top_k=1, least_score_sum=least) for least in (0.0, 1.0))
    _, matches = free.with_matches(maps[:3], one)
    score = matches.weight.sum().item()
    assert 0 < score < 1 and len(matches) == 1
    assert free(maps[:3], one).total.item() * score == pytest.approx(bound(maps[:3], one).total.item(), rel=1e-6)
    for rows in (one, torch.zeros(0, 6)):
        times = criterion(aided=False, top_k=1, times_images=True)(maps[:3], rows)
        assert times.total.item() == pytest.approx(3 * free(maps[:3], rows).total.item(), rel=1e-9)
        assert times.parts == free(maps[:3], rows).parts
    nothing = free(maps[:3], torch.zeros(0, 6))
    assert nothing.total == bound(maps[:3], torch.zeros(0, 6)).total > 0 == nothing.parts["box"]


@pytest.mark.parametrize("bins", [0, 17])
def test_the_branch_is_added_to_the_loss_of_the_lead_maps(bins):
    maps, targets = case(1, bins=bins)
    made, alone = criterion(bins=bins), criterion(bins=bins, aided=False)
    assert type(made) is AnchorAidedCriterion and type(alone) is AlignedCriterion
    loss, lead, branch = made(maps, targets), alone(maps[:3], targets), made.branch(maps[3:], targets)
    assert tuple(loss.parts) == made.parts == ("box", "dfl", "classification", "anchor_box", "anchor_classification")
    assert loss.total == lead.total + branch.total
    assert loss.total.item() == pytest.approx(sum(part.item() for part in loss.parts.values()), rel=1e-6)
    assert all(loss.parts[part] == lead.parts[part] for part in lead.parts)
    assert loss.parts["anchor_box"] == branch.parts["box"] > 0 == branch.parts["dfl"]
    with torch.no_grad():  # validation reads the lead maps
        validated = made(maps[:3], targets)
    assert validated.total == lead.total and tuple(validated.parts) == made.parts
    assert validated.parts["anchor_box"] == validated.parts["anchor_classification"] == 0
    for found, expected in zip(made.assign(maps, targets), alone.assign(maps[:3], targets), strict=True):
        assert torch.equal(found, expected)
    gradients = torch.autograd.grad(loss.total, maps)
    assert all(torch.isfinite(item).all() and item.abs().sum() > 0 for item in gradients)


def test_boxes_of_a_slot():
    """Centre moved by x, y strides; sides of the anchor times (2 sigmoid)^2; the classes of the slot."""
    made = criterion().branch
    target = torch.tensor([[0.0, 2.0, 20.0, 12.0, 50.0, 42.0]])
    maps = [torch.zeros(1, slots * (4 + CLASSES), h, w) for (h, w), slots in zip(sizes_of(64, 64), SLOTS, strict=True)]
    slot = maps[1].unflatten(1, (3, -1))[0, 1, :, 1, 2]  # centre 40, 24; anchor 59, 59
    side = (30 / 59) ** 0.5 / 2
    slot[:4] = torch.tensor([(35 - 40) / 16, (27 - 24) / 16, *[torch.logit(torch.tensor(side)).item()] * 2])
    slot[4 + 2] = 5.0
    loss, matches = made.with_matches(maps, target)
    best = int(matches.weight.argmax())
    assert matches.cells[:, best].tolist() == [1 + 1, 0, 0, 1, 2, 0]  # map of slot 1 of the second level
    assert matches.weight[best].item() == pytest.approx(1.0, abs=1e-4)
    assert torch.isfinite(loss.total)


def test_shares_of_a_batch_add_up_to_its_loss_and_gradient():
    maps, targets = case(4, images=4)
    targets = targets[targets[:, 0] > 0]  # the first share has no target
    whole = criterion()(maps, targets)
    pieces = []
    for start, stop in ((0, 1), (1, 4)):
        own = targets[(targets[:, 0] >= start) & (targets[:, 0] < stop)]
        pieces.append(([item[start:stop] for item in maps], own - torch.tensor([start, 0, 0, 0, 0, 0])))
    figures: list[list[torch.Tensor]] = []
    for piece in pieces:
        told: list[torch.Tensor] = []
        criterion(totals=lambda own, told=told: told.append(own) or own)(*piece)
        figures.append(told)
    sums = [sum(pair) for pair in zip(*figures, strict=True)]  # of the lead maps, then of the branch
    assert len(sums) == 2
    losses = []
    for piece in pieces:
        answers = iter(sums)
        losses.append(criterion(totals=lambda own, answers=answers: next(answers))(*piece))
    assert sum(loss.total.item() for loss in losses) == pytest.approx(whole.total.item(), rel=1e-6)
    ours = torch.autograd.grad(sum(loss.total for loss in losses), maps)
    for a, b in zip(ours, torch.autograd.grad(whole.total, maps), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


def test_batches_without_positives_are_finite():
    maps, _ = case(1)
    for rows in (torch.zeros(0, 6), torch.tensor([[0.0, 1, 5, 5, 7, 7], [1.0, 2, 20, 20, 20, 40]])):
        for epoch in (0, 4):
            loss = criterion(atss_epochs=4).at(epoch, 10)(maps, rows)
            assert loss.parts["box"] == loss.parts["anchor_box"] == 0 < loss.parts["anchor_classification"]
            assert all(torch.isfinite(item).all() for item in torch.autograd.grad(loss.total, maps))


def test_wrong_maps_are_refused():
    maps, targets = case(1)
    with pytest.raises(ModelError, match="2 anchor-based maps given; 3 are expected"):
        criterion()(maps[:5], targets)
    with pytest.raises(ModelError, match=r"an anchor-based map \(B, 8, h, w\) is expected, got \(3, 24, 4, 4\)"):
        criterion()([*maps[:3], maps[4], maps[3], maps[5]], targets)
    with pytest.raises(ModelError, match="2 raw maps given; 3 are expected"):
        criterion()(maps[:2], targets)
    with pytest.raises(ModelError, match="3 class weights given for 4 classes"):
        criterion(class_weights=[1.0, 2.0, 3.0])


class NoFloat64(TorchDispatchMode):
    """Refuses float64, as MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        assert not (isinstance(result, torch.Tensor) and result.dtype == torch.float64), function
        return result


@pytest.mark.parametrize("box_loss", ["siou", "giou", "ciou", "diou", "iou"])
@pytest.mark.parametrize("assigner", ["aligned", "atss"])
def test_float32_alone_and_the_same_under_autocast(assigner, box_loss):
    maps, targets = case(2)
    maps = [item.detach().float().requires_grad_() for item in maps]
    made = criterion(assigner=assigner, box_loss=box_loss)
    with NoFloat64():
        plain = made(maps, targets)
        plain.total.backward()
    assert all(item.grad.abs().sum() > 0 for item in maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = made(maps, targets)
    assert torch.equal(cast.total, plain.total) and cast.parts == plain.parts
    half = [item.detach().bfloat16().requires_grad_() for item in maps]
    loss = made(half, targets)
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    assert all(item.grad.dtype == torch.bfloat16 and torch.isfinite(item.grad).all() for item in half)
