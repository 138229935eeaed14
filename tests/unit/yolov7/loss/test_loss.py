"""The criterion against a plain float64 version, its options, its edges, and what it costs."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import assign_cases
import pytest
import torch
from assign_cases import criterion_of, head, plain_candidates, plain_ota, random_targets, raw_maps
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from yolov7.boxes import ciou
from yolov7.config import AnchorLoss, Loss, LossParameters
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.loss import LossResult, anchor_criterion, create_criterion
from yolov7.loss.anchor_maps import read_predictions
from yolov7.loss.cross_entropy import CrossEntropy
from yolov7.model import create_model

BALANCE = [4.0, 1.0, 0.4]


def plain_head_loss(model, maps, targets, matches, *, spread=2.0, smoothing=0.0):
    """Box, objectness, class losses without gains, from a list of (map, image, anchor, row, column, target)."""
    box = classification = objectness = torch.zeros((), dtype=torch.float64)
    for level, m in enumerate(maps):
        wanted = torch.zeros(m.shape[:4], dtype=torch.float64)
        rows = [c for c in matches if c[0] == level]
        stride = model.strides[level]
        agreements, entropies = [], []
        for _, b, a, y, x, t in rows:
            p = m[b, a, y, x]
            s = p.sigmoid()
            centre = s[:2] * spread - (spread - 1) / 2
            half = (2 * s[2:4]) ** 2 * model.anchors[level, a].double() / stride / 2
            corner = torch.tensor([x, y, x, y], dtype=torch.float64)
            goal = targets[t, 2:].double() / stride - corner
            agreement = ciou(torch.cat((centre - half, centre + half))[None], goal[None])[0]
            agreements.append(1 - agreement)
            wanted[b, a, y, x] = agreement.detach().clamp(min=0)
            hot = torch.full((model.num_classes,), smoothing / 2, dtype=torch.float64)
            hot[int(targets[t, 1])] = 1 - smoothing / 2
            q = p[5:].sigmoid()
            entropies.append(-(hot * q.log() + (1 - hot) * torch.log1p(-q)).mean())
        if rows:
            box = box + torch.stack(agreements).mean()
            if model.num_classes > 1:
                classification = classification + torch.stack(entropies).mean()
        q = m[..., 4].sigmoid()
        objectness = objectness + BALANCE[level] * -(wanted * q.log() + (1 - wanted) * torch.log1p(-q)).mean()
    return box, objectness, classification


def doubled(maps):
    return [m.double().requires_grad_() for m in maps]


def by_target(matches):
    """The published order inside a map, as far as it decides who wins a shared prediction."""
    return sorted(matches, key=lambda c: c[5])


@given(st.integers(0, 10**6), st.sampled_from([1, 5]), st.sampled_from([0.0, 0.1]), st.sampled_from(["ota", "plain"]))
@settings(max_examples=40, deadline=None)
def test_loss_and_gradient_equal_plain_version(seed, classes, smoothing, assigner):
    model = head(classes, shrink=0.5)
    maps = doubled(raw_maps(model, 2, 64, 96, seed=seed))
    targets = random_targets(2, 4, 64, 96, classes, seed=seed)
    matches = (
        plain_ota(model, maps, targets, 0.5, 10) if assigner == "ota" else plain_candidates(model, maps, targets, 0.5)
    )
    assume(matches is not None)
    gains = {"box": 0.4, "objectness": 0.7, "classification": 1.3}
    criterion = criterion_of(
        model, image_size=96, assigner=assigner, scale_gains=False, label_smoothing=smoothing, **gains
    )
    loss = criterion(maps, targets)
    ordered = by_target(matches) if assigner == "ota" else matches
    parts = plain_head_loss(model, maps, targets, ordered, smoothing=smoothing)
    weighted = [gain * part for gain, part in zip(gains.values(), parts, strict=True)]
    found = [loss.box.item(), loss.objectness.item(), loss.classification.item()]
    # Weights are float32 constants even where the maps are float64.
    assert found == pytest.approx([part.item() for part in weighted], rel=1e-6, abs=1e-9)
    assert loss.total.item() == pytest.approx(2 * sum(found), rel=1e-6)
    ours = torch.autograd.grad(loss.total, maps)
    theirs = torch.autograd.grad(2 * sum(weighted), maps)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("constraint", [True, False])
@pytest.mark.parametrize("mode", ["coarse-to-fine", "lead-guided", "independent"])
def test_auxiliary_modes_equal_plain_version(mode, constraint):
    model = head(shrink=0.5, auxiliary=True)
    spread = 2.0 if constraint else 3.0
    tried = 0
    for seed in range(12):
        maps = [m.double() for m in raw_maps(model, 2, 64, 64, seed=seed)]
        targets = random_targets(2, 3, 64, 64, 5, seed=seed)
        lead, auxiliary = maps[:3], maps[3:]
        fine = plain_ota(model, lead, targets, 0.5, 20)
        own = {
            "coarse-to-fine": lambda lead=lead, t=targets: plain_ota(model, lead, t, 1.0, 20),
            "lead-guided": lambda fine=fine: fine,
            "independent": lambda aux=auxiliary, t=targets: plain_ota(model, aux, t, 0.5, 20, spread=spread),
        }[mode]()
        if fine is None or own is None:
            continue
        tried += 1
        first = plain_head_loss(model, lead, targets, by_target(fine))
        second = plain_head_loss(model, auxiliary, targets, by_target(own), spread=spread)
        criterion = criterion_of(
            model,
            image_size=64,
            scale_gains=False,
            auxiliary=mode,
            auxiliary_constraint=constraint,
            auxiliary_weight=0.3,
        )
        loss = criterion(maps, targets)
        for found, gain, a, b in zip(
            (loss.box, loss.objectness, loss.classification), (0.05, 0.7, 0.3), first, second, strict=True
        ):
            assert found.item() == pytest.approx(gain * (a + 0.3 * b).item(), rel=1e-6, abs=1e-9)
    assert tried >= 4


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("cut", [2, 1])
def test_shares_of_a_batch_add_up_to_its_loss_and_gradient(cut, auxiliary):
    # As on two processes. With the cut at 1 the first share is one image, and that has no targets.
    model = head(shrink=0.5, auxiliary=auxiliary)
    maps = doubled(raw_maps(model, 4, 64, 96, seed=3))
    targets = random_targets(4, 6, 64, 96, 5, seed=3)
    if cut == 1:
        targets = targets[targets[:, 0] > 0]
    whole = criterion_of(model, image_size=96)(maps, targets)
    pieces = []
    for start, stop in ((0, cut), (cut, 4)):
        own = targets[(targets[:, 0] >= start) & (targets[:, 0] < stop)]
        own = own - torch.tensor([start, 0, 0, 0, 0, 0])
        pieces.append(([m[start:stop] for m in maps], own))
    counts = []

    def told(own):
        assert own.dtype == torch.float64
        counts.append(own)
        return own

    for piece in pieces:
        criterion_of(model, image_size=96, totals=told)(*piece)
    sums = torch.stack(counts).sum(0)
    assert sums[0] == 4 and not torch.equal(counts[0][1:], counts[1][1:])
    criterion = criterion_of(model, image_size=96, totals=lambda own: sums)
    losses = [criterion(*piece) for piece in pieces]
    for name in ("total", "box", "objectness", "classification"):
        found = sum(getattr(loss, name).item() for loss in losses)
        assert found == pytest.approx(getattr(whole, name).item(), rel=1e-9)
    ours = torch.autograd.grad(sum(loss.total for loss in losses), maps)
    for a, b in zip(ours, torch.autograd.grad(whole.total, maps), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_fractional_totals_are_not_truncated():
    """Denominators of other losses are sums of scores."""
    model = head(shrink=0.5)
    maps, targets = raw_maps(model, 2, 64, 64), random_targets(2, 3, 64, 64, 5, seed=1, exact=True)
    whole = criterion_of(model, image_size=64)(maps, targets)
    part = criterion_of(model, image_size=64, totals=lambda own: own * torch.tensor([1.0, 1.25, 1.25, 1.25]))
    result = part(maps, targets)
    assert result.box.item() == pytest.approx(whole.box.item() / 1.25, rel=1e-6)
    assert result.classification.item() == pytest.approx(whole.classification.item() / 1.25, rel=1e-6)
    assert result.objectness.item() == pytest.approx(whole.objectness.item(), rel=1e-6)


def test_the_parts_are_named_by_the_criterion():
    model = head(shrink=0.5)
    criterion = criterion_of(model, image_size=64)
    result = criterion(raw_maps(model, 2, 64, 64), random_targets(2, 3, 64, 64, 5, seed=1, exact=True))
    assert isinstance(result, LossResult)
    assert tuple(result.parts) == criterion.parts == ("box", "objectness", "classification")
    assert [result.box, result.objectness, result.classification] == list(result.parts.values())
    assert result.total.item() == pytest.approx(2 * sum(result.parts.values()).item(), rel=1e-6)
    assert not any(part.requires_grad for part in result.parts.values())


def test_an_anchor_criterion_is_the_same_in_every_epoch_and_calls_the_model_as_it_is():
    criterion, model = criterion_of(head(), image_size=64), torch.nn.Identity()
    assert criterion.at(0, 300) is criterion.at(299, 300) is criterion
    assert criterion.wrap(model) is model


def test_a_level_is_drawn_with_a_slot_for_each_anchor():
    first, *_ = levels = criterion_of(head(), image_size=64).levels()
    assert [level.stride for level in levels] == [8, 16, 32] and {level.slots for level in levels} == {3}
    assert first.caption == "anchors 12 x 16, 19 x 36, 40 x 28"


def test_the_criterion_of_a_model_takes_the_fields_of_its_head_group():
    model = create_model("yolov7", 3, device="meta")
    model.head.anchors = torch.tensor(assign_cases.ANCHORS, dtype=torch.float32)
    criterion = create_criterion(model, image_size=64, box=0.4, scale_gains=False)
    assert (criterion.gains.box, criterion.gains.objectness) == (0.4, AnchorLoss().objectness)
    with pytest.raises(ConfigError, match=r"loss\.objectnes: unknown key \(did you mean 'objectness'\?\)"):
        create_criterion(model, image_size=64, objectnes=1.0)


def test_fields_not_given_are_those_of_the_published_recipe():
    tiny, p5 = (create_model(name, 80, device="meta") for name in ("yolov7-tiny", "yolov7"))
    for model in (tiny, p5):
        model.head.anchors = torch.tensor(assign_cases.ANCHORS, dtype=torch.float32)
    plain = {"image_size": 640, "scale_gains": False}
    gains = create_criterion(tiny, **plain).gains
    assert (gains.box, gains.objectness, gains.classification) == (0.05, 1.0, 0.5)
    assert create_criterion(tiny, **plain, classification=0.3).gains.classification == 0.3
    gains = create_criterion(p5, **plain).gains
    assert (gains.box, gains.objectness, gains.classification) == (0.05, 0.7, 0.3)


def test_the_defaults_are_those_of_the_group():
    """As published, and as they were written out in the signature before."""
    expected = {
        "assigner": "ota", "box": 0.05, "objectness": 0.7, "classification": 0.3, "scale_gains": True,
        "anchor_threshold": 4.0, "label_smoothing": 0.0, "focal_gamma": 0.0, "objectness_positive_weight": 1.0,
        "classification_positive_weight": 1.0, "auxiliary": "coarse-to-fine", "auxiliary_weight": 0.25,
        "auxiliary_constraint": True,
    }  # fmt: skip
    assert AnchorLoss().model_dump() == expected
    model = head(auxiliary=True)
    plain, written = anchor_criterion(model, image_size=64), criterion_of(model, image_size=64, **expected)
    for name in ("gains", "maps", "objectness", "classification", "label_smoothing", "auxiliary_assigner"):
        assert getattr(plain, name) == getattr(written, name)
    assert (plain.assigner.top, plain.assigner.threshold) == (20, 4.0)


def test_a_head_of_another_group_needs_a_criterion_of_its_own():
    class OtherLoss(LossParameters):
        pass

    other = SimpleNamespace(
        variant="other", spec=SimpleNamespace(name="other", head=SimpleNamespace(parameters=OtherLoss))
    )
    with pytest.raises(ModelError, match="other: no criterion is known for OtherLoss"):
        create_criterion(other, image_size=64)


def test_published_gain_scaling():
    criterion = criterion_of(head(20), image_size=1280, box=0.05, objectness=0.7, classification=0.3)
    assert criterion.gains.box == pytest.approx(0.05)
    assert criterion.gains.objectness == pytest.approx(2.8)
    assert criterion.gains.classification == pytest.approx(0.075)
    p6 = SimpleNamespace(anchors=torch.ones(4, 3, 2), strides=(8, 16, 32, 64), num_classes=80, has_auxiliary=True)
    gains = criterion_of(p6, image_size=1280).gains
    figures = (gains.box, gains.classification, gains.objectness)
    assert figures == pytest.approx((0.0375, 0.225, 2.1))  # the figures of the sheet's section 3


def test_takes_every_field_of_the_parameters():
    criterion_of(head(), image_size=64, **Loss().model_dump())


def test_one_class_has_no_class_loss_and_no_class_gradient():
    model = head(1, shrink=0.5)
    maps = [m.requires_grad_() for m in raw_maps(model, 2, 64, 64)]
    loss = criterion_of(model, image_size=64)(maps, random_targets(2, 4, 64, 64, 1, seed=1, exact=True))
    loss.total.backward()
    assert loss.classification.item() == 0 and loss.box.item() > 0
    assert all(m.grad[..., 5:].abs().sum() == 0 for m in maps)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_batches_without_targets_train_objectness_alone(auxiliary):
    model = head(auxiliary=auxiliary)
    maps = [m.requires_grad_() for m in raw_maps(model, 2, 64, 64)]
    loss = criterion_of(model, image_size=64)(maps, torch.zeros(0, 6))
    loss.total.backward()
    assert loss.box.item() == 0 and loss.classification.item() == 0 and loss.objectness.item() > 0
    for m in maps:
        assert m.grad[..., 4].abs().sum() > 0 and m.grad[..., :4].abs().sum() == 0 and m.grad[..., 5:].abs().sum() == 0


@pytest.mark.parametrize("value", [0.0, 30.0, -30.0, 200.0, -200.0])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_extreme_predictions_give_finite_loss_and_gradient(value, gamma):
    model = head(shrink=0.5)
    maps = [torch.full_like(m, value).requires_grad_() for m in raw_maps(model, 2, 64, 64)]
    targets = torch.tensor([[0, 1, 10, 10, 40, 40], [1, 2, 0, 0, 64, 64], [1, 2, 8, 8, 9, 16]], dtype=torch.float32)
    loss = criterion_of(model, image_size=64, focal_gamma=gamma)(maps, targets)
    loss.total.backward()
    assert torch.isfinite(loss.total) and all(torch.isfinite(m.grad).all() for m in maps)


def test_broken_and_tiny_targets_give_finite_loss():
    model = head(shrink=0.5)
    maps = [m.requires_grad_() for m in raw_maps(model, 1, 64, 64)]
    rows = [
        (10, 10, 10, 30),
        (9, 9, 3, 3),
        (math.nan, 1, 5, 5),
        (1, 1, math.inf, 9),
        (5, 5, 5 + 1e-4, 5 + 1e-4),
        (3, 3, 30, 40),
    ]
    loss = criterion_of(model, image_size=64)(maps, torch.tensor([(0, 1, *row) for row in rows]))
    loss.total.backward()
    assert torch.isfinite(loss.total) and all(torch.isfinite(m.grad).all() for m in maps)


def test_thousands_of_objects_in_one_image():
    model = head(3, shrink=0.5)
    maps = [m.requires_grad_() for m in raw_maps(model, 1, 96, 96)]
    targets = random_targets(1, 2000, 96, 96, 3, exact=True)
    loss = criterion_of(model, image_size=96)(maps, targets)
    loss.total.backward()
    assert torch.isfinite(loss.total) and all(torch.isfinite(m.grad).all() for m in maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps(dtype):
    model = head(shrink=0.5)
    targets = random_targets(2, 4, 64, 64, 5, seed=1, exact=True)
    half = [m.requires_grad_() for m in raw_maps(model, 2, 64, 64, dtype=dtype)]
    full = [m.detach().float().requires_grad_() for m in half]
    criterion = criterion_of(model, image_size=64)
    a, b = criterion(half, targets), criterion(full, targets)
    assert a.total.dtype == torch.float32 and a.total.item() == b.total.item()
    a.total.backward()
    b.total.backward()
    for x, y in zip(half, full, strict=True):
        assert x.grad.dtype == dtype and torch.allclose(x.grad.float(), y.grad, rtol=0.02, atol=1e-5)


def test_shared_prediction_learns_the_objectness_of_the_later_target():
    model = head(shrink=0.5)
    maps = [torch.ones_like(m) for m in raw_maps(model, 1, 64, 64)]
    boxes = torch.tensor([[0, 1, 20, 20, 40, 52], [0, 2, 22, 24, 38, 48]], dtype=torch.float32)
    criterion = criterion_of(model, image_size=64, assigner="plain", scale_gains=False)

    def objectness(rows):
        return criterion(maps, rows).objectness.item()

    assert objectness(boxes) != objectness(boxes.flip(0))
    # The earlier of two equal boxes changes nothing: the later one has overwritten it.
    assert objectness(torch.cat((boxes, boxes[1:]))) == pytest.approx(objectness(boxes), rel=1e-6)


def test_cross_entropy_options():
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    p = x.sigmoid()
    plain = -(t * p.log() + (1 - t) * (1 - p).log())
    assert torch.allclose(CrossEntropy()(x, t), plain)
    assert torch.allclose(CrossEntropy(positive_weight=2.5)(x, t), -(2.5 * t * p.log() + (1 - t) * (1 - p).log()))
    right = t * p + (1 - t) * (1 - p)
    alpha = 0.25 * t + 0.75 * (1 - t)
    assert torch.allclose(CrossEntropy(focal_gamma=1.5)(x, t), plain * alpha * (1 - right) ** 1.5)
    assert torch.allclose(CrossEntropy(focal_gamma=1.5)(x, t, 3 * t), 3 * t * plain * alpha * (1 - right) ** 1.5)


def test_reading_the_maps_has_the_right_gradient():
    model = head(2, shrink=0.5)
    maps = raw_maps(model, 2, 32, 64, dtype=torch.float64)
    maps[0] = maps[0].permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    targets = random_targets(2, 4, 32, 64, 2, seed=3, exact=True)
    criterion = criterion_of(model, image_size=64, assigner="plain")
    cells = [c for part in criterion.assign(maps, targets) for c in part.T.tolist()]
    assert len({tuple(c[:5]) for c in cells}) < len(cells)  # some predictions are read twice
    leaves = [m.requires_grad_() for m in maps]
    matches = criterion._matches(leaves, _targets(targets))
    assert torch.autograd.gradcheck(lambda *m: read_predictions(m, matches), leaves, fast_mode=True)
    rows, _ = read_predictions(leaves, matches)
    rows.sum().backward()
    assert maps[0].grad.stride() == maps[0].stride()


def _targets(rows):
    from yolov7.assign import Targets

    return Targets.of(rows, rows.device)


def test_positives_to_look_at():
    model = head(shrink=0.5, auxiliary=True)
    maps, targets = raw_maps(model, 2, 64, 64), random_targets(2, 3, 64, 64, 5, seed=1, exact=True)
    criterion = criterion_of(model, image_size=64)
    levels = criterion.assign(maps, targets)
    assert len(levels) == 3 and sum(part.shape[1] for part in levels) > 0
    for level, part in enumerate(levels):
        assert part.shape[0] == 6 and (part[0] == level).all()


def test_wrong_maps_are_refused():
    criterion = criterion_of(head(auxiliary=True), image_size=64)
    maps = raw_maps(head(auxiliary=True), 1, 64, 64)
    with pytest.raises(ModelError, match=r"4 raw maps given; 3 levels with an auxiliary head make 3 or 6"):
        criterion(maps[:4], torch.zeros(0, 6))
    plain = criterion_of(head(), image_size=64)
    with pytest.raises(ModelError, match=r"6 raw maps given; 3 levels without an auxiliary head make 3"):
        plain(maps, torch.zeros(0, 6))
    with pytest.raises(ModelError, match=r"\(B, 3, h, w, 5 \+ C\) is expected"):
        plain([m[:, :2] for m in maps[:3]], torch.zeros(0, 6))
    with pytest.raises(DataError, match="class 7"):
        plain(maps[:3], torch.tensor([[0.0, 7, 1, 1, 9, 9]]))


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match="assigner"):
        criterion_of(head(), image_size=64, assigner="sim")
    with pytest.raises(ConfigError, match="auxiliary"):
        criterion_of(head(), image_size=64, auxiliary="none")
    six = SimpleNamespace(
        anchors=torch.ones(6, 3, 2), strides=(4, 8, 16, 32, 64, 128), num_classes=1, has_auxiliary=False
    )
    with pytest.raises(ModelError, match="6"):
        criterion_of(six, image_size=64)


class Count(TorchDispatchMode):
    """Counts what is dispatched, views included, and what makes the host wait for the device."""

    # `tolist` and `item` copy to the host without a dispatch of their own on a CPU: they are counted by wrapping them.
    WAITS = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "bincount", "equal.default")
    VIEWS = ("view", "select", "slice", "split", "unbind", "unsqueeze", "permute", "detach", "lift_fresh", "expand")

    def __init__(self):
        super().__init__()
        self.operations = self.views = self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        self.operations += 1
        self.views += any(f"::{view}" in name for view in self.VIEWS)
        self.waits += any(wait in name for wait in self.WAITS)
        if "aten::index" in name and len(args) > 1 and isinstance(args[1], (list, tuple)):
            self.waits += any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1])
        return function(*args, **(kwargs or {}))


def counted(model, images, objects, monkeypatch, **options):
    side = 160
    maps = [m.requires_grad_() for m in raw_maps(model, images, side, side, spread=1.0)]
    targets = random_targets(images, objects, side, side, model.num_classes, exact=True)
    criterion = criterion_of(model, image_size=side, **options)
    count = Count()
    to_list = torch.Tensor.tolist

    def tolist(self):
        count.waits += 1
        return to_list(self)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", tolist)
        with count:
            loss = criterion(maps, targets)
    assert loss.box.item() > 0
    return count


@pytest.mark.parametrize("assigner", ["ota", "plain"])
def test_count_of_operations_and_synchronisations_is_small_and_does_not_grow(assigner, monkeypatch):
    few = counted(head(80), 4, 8, monkeypatch, assigner=assigner)
    many = counted(head(80), 64, 8, monkeypatch, assigner=assigner)
    # The first criterion of a size also lays out its constants, some of which the batch size does not change.
    assert few.operations <= 300 and many.operations <= 300
    assert abs(few.operations - many.operations) <= 2
    assert few.waits == many.waits <= 8


@pytest.mark.parametrize("mode", ["coarse-to-fine", "lead-guided"])
def test_count_with_an_auxiliary_head(mode, monkeypatch):
    few = counted(head(80, auxiliary=True), 4, 8, monkeypatch, auxiliary=mode)
    many = counted(head(80, auxiliary=True), 64, 8, monkeypatch, auxiliary=mode)
    # Twice the maps: views of them come on top, the operations that compute stay within 300.
    assert few.operations - few.views <= 300 and many.operations - many.views <= 300
    assert abs(few.operations - many.operations) <= 2
    assert few.waits == many.waits <= 8


def test_independent_heads_synchronise_at_most_eight_times(monkeypatch):
    count = counted(head(80, auxiliary=True), 16, 8, monkeypatch, auxiliary="independent")
    assert count.waits <= 8


def test_empty_batches_cost_no_more(monkeypatch):
    model = head(80)
    count = Count()
    with count:
        criterion_of(model, image_size=64)(raw_maps(model, 4, 64, 64), torch.zeros(0, 6))
    assert count.operations <= 300


MEMORY = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from assign_cases import criterion_of, head, random_targets, raw_maps
from yolov7.memory import peak_memory_gib
model = head(80)
side = 320
maps = [m.requires_grad_() for m in raw_maps(model, 32, side, side)]
targets = random_targets(32, 300, side, side, 80, exact=True)
loss = criterion_of(model, image_size=side)(maps, targets)
loss.total.backward()
assert torch.isfinite(loss.total)
print(peak_memory_gib())
"""


def test_crowded_batch_stays_under_2_gb(request):
    script = MEMORY.format(folder=str(Path(assign_cases.__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2_000_000 / 2**20  # GiB, the interpreter and torch included
