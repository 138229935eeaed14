"""Distillation: its terms against float64, the criterion around that of the labels, and networks that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_aligned import small_aligned, small_aligned_network
from small_detector import SIDE, small_detector

from tests.unit.yolov7.loss.test_aligned import NoFloat64
from yolov7.config import Distillation
from yolov7.errors import ConfigError
from yolov7.loss import create_criterion, distilled, require_fit
from yolov7.loss.distillation import cosine_factor
from yolov7.loss.divergence import channel_divergence, class_divergence, distribution_divergence
from yolov7.model.heads.gelan import GelanHead

EVERYTHING = Distillation(classification=2.0, dfl=1.5, features=10.0)
TARGETS = torch.tensor([[0, 1, 10, 12, 40, 50], [1, 0, 20, 8, 60, 30], [1, 2, 5, 40, 25, 62]], dtype=torch.float32)


def normal(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def plain_classes(maps, teacher, temperature):
    """The sum as published, in the type of the maps."""
    ours, theirs = maps.sigmoid() / temperature, teacher.sigmoid() / temperature
    return F.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="sum") * temperature**2


# The terms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("classes", [2, 80])
def test_classes_in_float32_have_value_and_gradient_of_float64(classes, temperature):
    maps = normal(2, 3 + classes, 9, 7, scale=2.0, shift=-3.0).requires_grad_()
    teacher = normal(2, classes, 9, 7, seed=1, scale=2.0, shift=-3.0)
    total = class_divergence(maps, 3, teacher, temperature)
    exact = maps.detach().double().requires_grad_()
    wanted = plain_classes(exact[:, 3:], teacher.double(), temperature)
    assert total.item() == pytest.approx(wanted.item(), rel=2e-6)
    (3 * total).backward()
    (3 * wanted).backward()
    assert (maps.grad - exact.grad).abs().max() <= 2e-6 * exact.grad.abs().max()
    assert not maps.grad[:, :3].any()


def test_classes_of_equals_are_exactly_zero_where_the_published_sum_is_not():
    maps = normal(1, 80, 92, 92, scale=2.0, shift=-4.0)
    assert abs(plain_classes(maps, maps, 20.0)) > 0.001
    assert class_divergence(maps, 0, maps, 20.0).item() == 0.0


def test_one_class_has_nothing_to_compare():
    maps = normal(2, 5, 4, 4).requires_grad_()
    total = class_divergence(maps, 4, normal(2, 1, 4, 4, seed=1), 20.0)
    total.backward()
    assert total.item() == 0.0 and not maps.grad.any()


def test_classes_of_half_precision_maps():
    maps, teacher = normal(2, 84, 6, 5).half(), normal(2, 80, 6, 5, seed=1).half()
    single = class_divergence(maps.float(), 4, teacher.float(), 20.0)
    leaf = maps.clone().requires_grad_()
    found = class_divergence(leaf, 4, teacher, 20.0)
    found.backward()
    assert found.item() == single.item() and leaf.grad.dtype == torch.float16 and leaf.grad.isfinite().all()


def test_gradients_of_the_terms_in_float64():
    maps, teacher = normal(1, 7, 2, 3).double().requires_grad_(), normal(1, 3, 2, 3, seed=1).double()
    assert torch.autograd.gradcheck(lambda x: class_divergence(x, 4, teacher, 2.0), maps)
    rows, others = normal(5, 4, 6).double().requires_grad_(), normal(5, 4, 6, seed=1).double()
    assert torch.autograd.gradcheck(lambda x: distribution_divergence(x, others, 2.0), rows)


def test_channels_are_compared_over_their_positions():
    ours, theirs = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    wanted = 0.0
    for image in range(2):
        for channel in range(3):
            p, q = (maps[image, channel].flatten().double().softmax(0) for maps in (theirs, ours))
            wanted += (p * (p / q).log()).sum().item() / 3
    assert channel_divergence(ours, theirs).item() == pytest.approx(wanted, rel=1e-6)
    assert channel_divergence(ours, ours).item() == 0.0


def test_the_factor_falls_along_a_half_cosine():
    assert cosine_factor(0, 300, 0.01) == 1.0
    assert cosine_factor(100, 300, 0.01) == pytest.approx(0.7525)
    assert cosine_factor(3, 10, 0.01) == pytest.approx(0.7959536998847743)
    assert 0.01 < cosine_factor(299, 300, 0.01) < 0.0101
    assert cosine_factor(250, 300, 1.0) == 1.0


# The criterion -------------------------------------------------------------------------------------------------------


def pair(options: Distillation = EVERYTHING, seed: int = 5, **fields):
    """A student in training, its criterion, and the module to call; the teacher has other weights."""
    student, teacher = small_aligned().train(), small_aligned(seed=seed)
    labels = create_criterion(student, image_size=SIDE, **fields)
    criterion = distilled(labels, student.spec, teacher.requires_grad_(False), options)
    return student, labels, criterion, criterion.wrap(student)


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))


def test_the_terms_are_added_with_weight_gain_and_factor():
    student, labels, criterion, network = pair(box=2.5, dfl=0.5, classification=1.0)
    raw = network(images())
    own = raw[: len(student.raw(images()))]
    alone = labels(own, TARGETS)
    taught = criterion(raw, TARGETS)
    names = ("distill_classification", "distill_dfl", "distill_features")
    assert criterion.parts == (*labels.parts, *names) == tuple(taught.parts)
    assert all(torch.equal(taught.parts[name], alone.parts[name]) for name in labels.parts)
    levels = len(student.strides)
    leads, ours, theirs = raw[len(own) : len(own) + levels], raw[-2 * levels : -levels], raw[-levels:]
    classes = sum(plain_classes(a[:, 64:].double(), b[:, 64:].double(), 20.0) for a, b in zip(own, leads, strict=False))
    features = sum(channel_divergence(a, b) for a, b in zip(ours, theirs, strict=True)) / 2
    _, matches = labels.with_matches(own, TARGETS)
    rows = [
        torch.cat([item[i, :64, y, x] for item, (i, _, y, x) in zip(maps, matches.places(), strict=False)])
        for maps in (own[:levels], leads)
    ]
    assert len(rows[0]) > 5
    distances = distribution_divergence(*(each.unflatten(1, (4, 16)) for each in rows), 20.0).mean()
    for name, wanted in zip(names, (2.0 * classes, 0.5 * 1.5 * distances, 10.0 * features), strict=True):
        assert taught.parts[name].item() == pytest.approx(wanted.item(), rel=1e-5), name
    assert taught.total.item() == pytest.approx(2 * sum(part.item() for part in taught.parts.values()), rel=1e-6)
    later = criterion.at(100, 300)(raw, TARGETS)
    assert all(later.parts[n].item() == pytest.approx(0.7525 * taught.parts[n].item(), rel=1e-6) for n in names)
    assert criterion.factor == 1.0


def test_the_sum_over_cells_is_not_multiplied_for_the_gpus_of_a_published_run():
    """Each GPU took means over its own images, which add up to as many times that of all; its sum is a share."""
    student, labels, one, network = pair()
    eight = distilled(labels, student.spec, one.teacher, EVERYTHING, gpus=8)
    raw = network(images())
    alone, many = one(raw, TARGETS), eight(raw, TARGETS)
    for name, value in alone.parts.items():
        share = 8 if name == "distill_classification" else 1
        assert many.parts[name].item() == pytest.approx(value.item() / share, rel=1e-6)


def test_a_teacher_of_the_same_weights_adds_nothing():
    student, labels, criterion, network = pair(seed=3)
    student.eval()
    raw = network(images())
    taught, alone = criterion(raw, TARGETS), labels(student.raw(images()), TARGETS)
    assert taught.total.item() == alone.total.item()
    assert all(taught.parts[name].item() == 0.0 for name in criterion.parts if name.startswith("distill"))


def test_a_batch_without_targets():
    student, _, criterion, network = pair()
    raw = network(images())
    loss = criterion(raw, torch.zeros(0, 6))
    loss.total.backward()
    assert loss.total.isfinite() and loss.parts["distill_dfl"] == 0 and loss.parts["distill_classification"] > 0
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
    assert all(p.grad is None for p in criterion.teacher.parameters())


def test_devices_without_float64_are_not_asked_for_it(monkeypatch):
    monkeypatch.setattr("yolov7.loss.divergence.widest_float", lambda device: torch.float32)
    student, _, criterion, network = pair()
    raw = network(images())
    with NoFloat64():
        criterion(raw, TARGETS).total.backward()
    assert any(parameter.grad.any() for parameter in student.parameters() if parameter.grad is not None)


def test_only_the_terms_in_use_are_parts():
    for options, names in (
        (Distillation(), ("distill_classification", "distill_dfl")),
        (Distillation(dfl=0.0), ("distill_classification",)),
        (Distillation(classification=0.0, dfl=0.0, features=1.0), ("distill_features",)),
        (Distillation(classification=0.0, dfl=0.0), ()),
    ):
        _, labels, criterion, network = pair(options)
        loss = criterion(network(images()), TARGETS)
        assert criterion.parts == (*labels.parts, *names) == tuple(loss.parts)
        assert loss.total.isfinite()


def test_shares_of_two_processes_add_up_to_the_whole_batch():
    student, _, criterion, network = pair(box=2.5, least_score_sum=1e-6)
    student.eval()
    rows = torch.cat((TARGETS, TARGETS.roll(1, 0) + torch.tensor([2, 0, 1, 1, 2, 2])))
    whole = criterion(network(images(4)), rows)
    told: list[list[torch.Tensor]] = [[], []]

    def shares(totals):
        for share in range(2):
            mine = (rows[:, 0] >= 2 * share) & (rows[:, 0] < 2 * share + 2)
            own = rows[mine] - torch.tensor([2.0 * share, 0, 0, 0, 0, 0])
            criterion.labels.totals = lambda figures, share=share: totals(share, figures)
            yield criterion(network(images(4)[2 * share : 2 * share + 2]), own)

    # The first pass notes the figures of each process, the second answers with their sums.
    list(shares(lambda share, figures: told[share].append(figures.double()) or figures.double()))
    sums = [[a + b for a, b in zip(*told, strict=True)] for _ in range(2)]
    found = list(shares(lambda share, figures: sums[share].pop(0)))
    assert sum(part.total.item() for part in found) == pytest.approx(whole.total.item(), rel=1e-5)
    for name in whole.parts:
        assert sum(part.parts[name].item() for part in found) == pytest.approx(whole.parts[name].item(), rel=1e-5)


def test_pictures_and_limits_are_those_of_the_student():
    student, labels, criterion, network = pair()
    raw = network(images())
    own = raw[: len(student.raw(images()))]
    pictures = zip(criterion.assign(raw, TARGETS), labels.assign(own, TARGETS), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pictures)
    assert criterion.levels() == labels.levels() and criterion.largest_side() == labels.largest_side()
    sizes = torch.tensor([[2.0, 3.0], [40.0, 2.0]])
    assert torch.equal(criterion.misfit(sizes), labels.misfit(sizes))


# What does not fit ---------------------------------------------------------------------------------------------------


def with_head(**fields):
    network = small_aligned_network()
    return replace(network, name="other", head=replace(network.head, **fields))


def widened(network):
    """The same network with another width of its first level."""
    neck = (*network.neck[:-1], replace(network.neck[-1], block=replace(network.neck[-1].block, out=20)))
    return replace(network, neck=neck, auxiliary=(), head=GelanHead(lead=network.head.lead))


def test_networks_that_cannot_be_compared_are_named():
    student = small_aligned_network()
    require_fit(student, student, EVERYTHING)
    fewer = replace(student, name="other", auxiliary=(), head=GelanHead(lead=("T2",)))
    with pytest.raises(ConfigError, match=r"teacher, a other, has levels of strides \(4,\), small-aligned of \(4, 8\)"):
        require_fit(student, fewer, Distillation())
    with pytest.raises(ConfigError, match="distributions of 12 bins, small-aligned distributions of 16 bins"):
        require_fit(student, with_head(bins=12), Distillation())
    require_fit(student, with_head(bins=12), Distillation(dfl=0.0))
    with pytest.raises(ConfigError, match=r"features: the neck of the teacher.*\(20, 16\).*\(12, 16\)"):
        require_fit(student, widened(student), EVERYTHING)
    require_fit(student, widened(student), Distillation())
    with pytest.raises(ConfigError, match=r"distill_from: .* has a head with anchors"):
        require_fit(small_detector().spec, student, Distillation())


def test_distances_have_no_distributions_to_compare():
    direct = with_head(bins=0)
    with pytest.raises(ConfigError, match=r"distillation\.dfl: 1, but other predicts distances and no distributions"):
        require_fit(direct, direct, Distillation(dfl=1.0))
    require_fit(direct, direct, Distillation())
    with pytest.raises(ConfigError, match="predicts distances and no distributions, small-aligned distributions"):
        require_fit(small_aligned_network(), direct, Distillation())
