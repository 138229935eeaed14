"""Class losses against their formulas on probabilities in float64, and in the loss of a head."""

import pytest
import torch
from aligned_cases import STRIDES, random_batch, sizes_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolov7.config import AlignedLoss, parse
from yolov7.errors import ConfigError
from yolov7.loss import AlignedCriterion
from yolov7.loss.class_losses import CLASS_LOSSES

KINDS = list(CLASS_LOSSES)


def made(kind, **fields):
    return CLASS_LOSSES[kind](AlignedLoss(classification_loss=kind, **fields))


def plain(kind, logits, scores, matched, gamma=2.0):
    """On probabilities; `matched`: the class of the target."""
    p = logits.sigmoid()
    entropy = -scores * p.log().clamp(min=-100) - (1 - scores) * (1 - p).log().clamp(min=-100)
    if kind == "bce":
        return entropy
    if kind == "varifocal":
        return entropy * torch.where(matched, scores, 0.75 * p**gamma)
    if kind == "quality-focal":
        return entropy * (scores - p).abs() ** gamma
    missing = scores * (1 - p) + (1 - scores) * p
    alpha = 0.25 * scores + 0.75 * (1 - scores)
    focal = alpha * missing**gamma * entropy
    return focal if kind == "focal" else focal - alpha * missing ** (gamma + 1)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a machine with other work
@given(st.lists(st.tuples(st.floats(-12, 12), st.floats(0, 1)), min_size=1, max_size=8))
def test_equals_the_formula(kind, pairs):
    logits, scores = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    yes = torch.ones_like(logits, dtype=torch.bool)
    expected = plain(kind, logits, scores, yes)
    assert made(kind)(logits, scores).tolist() == pytest.approx(expected.tolist(), rel=1e-7, abs=1e-9)
    expected = plain(kind, logits, torch.zeros_like(scores), ~yes)
    assert made(kind).negative(logits).tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_the_slope_of_negatives_is_their_derivative(kind, gamma):
    logits = torch.linspace(-30, 30, 121, dtype=torch.float64, requires_grad=True)
    loss = made(kind, focal_gamma=gamma)
    (expected,) = torch.autograd.grad(loss.negative(logits).sum(), logits)
    out = torch.empty_like(logits)
    for found in (loss.negative_slope(logits.detach()), loss.negative_slope(logits.detach(), out=out)):
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-14)  # softplus ends at 20
    assert found is out


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_give_finite_losses_and_gradients(kind, gamma):
    loss_of = made(kind, focal_gamma=gamma)
    logits = torch.tensor([-1e4, -200.0, -50.0, 0.0, 50.0, 200.0, 1e4], requires_grad=True)
    for loss in (
        loss_of.negative(logits),
        *(loss_of(logits, torch.full_like(logits, t)) for t in (0.0, 0.5, 1.0)),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()
    assert torch.isfinite(loss_of.negative_slope(logits.detach())).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5, 2.0]])
def test_in_the_loss_of_a_head(kind, weights):
    """All classes of all cells; a match whose box misses its target has score 0 and is no negative."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, 8, h, w, generator=generator, dtype=torch.float64) for h, w in sizes_of(64, 64)]
    for item in maps:
        item.requires_grad_()
    _, targets = random_batch(1, height=64, width=64)
    options = AlignedLoss(assigner="atss", classification_loss=kind, classification=1.0, least_score_sum=0.0)
    criterion = AlignedCriterion(
        options,
        strides=STRIDES,
        num_classes=4,
        bins=0,
        auxiliary=False,
        class_weights=None if weights is None else torch.tensor(weights),
    )
    loss, matches = criterion.with_matches(maps, targets)
    assert (matches.weight == 0).any() and (matches.weight > 0).any()
    expected = 0.0
    factors = torch.tensor(weights or [1.0] * 4, dtype=torch.float64)
    for level, item in enumerate(maps):
        logits = item[:, 4:].movedim(1, 3)
        scores, matched, factor = (
            torch.zeros_like(logits).to(kind) for kind in (logits.dtype, torch.bool, logits.dtype)
        )
        factor += 1
        for (where, image, _, row, column, target), score in zip(matches.cells.T.tolist(), matches.weight, strict=True):
            if where == level:
                label = int(targets[target, 1])
                scores[image, row, column, label], matched[image, row, column, label] = score.double(), True
                factor[image, row, column] = factors[label]
        expected = expected + (factor * plain(kind, logits, scores, matched)).sum()
    expected = expected / matches.weight.double().sum()
    assert loss.parts["classification"].item() == pytest.approx(expected.item(), rel=1e-6)
    ours = torch.autograd.grad(loss.total / len(maps[0]), maps)
    for a, b in zip(ours, torch.autograd.grad(expected, maps), strict=True):
        assert torch.allclose(a[:, 4:], b[:, 4:], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["varifocal", "quality-focal", "poly"])
def test_options_without_a_meaning_are_refused(kind):
    for field, value in (("label_smoothing", 0.1), ("classification_positive_weight", 2.0)):
        with pytest.raises(ConfigError, match=f"{field} has no meaning with classification_loss {kind}"):
            parse(AlignedLoss, {"classification_loss": kind, field: value}, where="loss")
    with pytest.raises(ConfigError, match="classification_loss"):
        parse(AlignedLoss, {"classification_loss": "varifocl"}, where="loss")
