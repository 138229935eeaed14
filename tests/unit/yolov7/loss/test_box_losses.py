"""Overlaps of the box losses against the sheet's formulas; finite values and gradients at their edges."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolov7 import boxes
from yolov7.config import AlignedLoss
from yolov7.loss.box_losses import BOX_LOSSES, box_overlap

E = 1e-10
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a machine with other work
side = st.floats(0.25, 40, width=32)
place = st.floats(-20, 20, width=32)
box = st.tuples(place, place, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def plain(name, p, t):
    """Reference sheet: yolov6-training, section 7.2, written out."""
    w1, h1, w2, h2 = p[2] - p[0], p[3] - p[1] + E, t[2] - t[0], t[3] - t[1] + E
    i = max(min(p[2], t[2]) - max(p[0], t[0]), 0.0) * max(min(p[3], t[3]) - max(p[1], t[1]), 0.0)
    u = w1 * h1 + w2 * h2 - i + E
    j = i / u
    cw, ch = max(p[2], t[2]) - min(p[0], t[0]), max(p[3], t[3]) - min(p[1], t[1])
    dx, dy = (t[0] + t[2] - p[0] - p[2]) / 2, (t[1] + t[3] - p[1] - p[3]) / 2
    remote = (dx**2 + dy**2) / (cw**2 + ch**2 + E)
    if name == "iou":
        return j
    if name == "giou":
        c = cw * ch + E
        return j - (c - u) / c
    if name == "diou":
        return j - remote
    if name == "ciou":
        v = 4 / math.pi**2 * (math.atan(w2 / h2) - math.atan(w1 / h1)) ** 2
        return j - (remote + v * v / (v - j + 1 + E))
    dx, dy = dx + E, dy + E
    sigma = math.hypot(dx, dy)
    a = abs(dy) / sigma if abs(dx) / sigma > math.sqrt(2) / 2 else abs(dx) / sigma
    gamma = math.cos(2 * math.asin(a) - math.pi / 2) - 2
    delta = 2 - math.exp(gamma * (dx / cw) ** 2) - math.exp(gamma * (dy / ch) ** 2)
    omega = sum((1 - math.exp(-abs(a - b) / max(a, b))) ** 4 for a, b in ((w1, w2), (h1, h2)))
    return j - 0.5 * (delta + omega)


@pytest.mark.parametrize("name", BOX_LOSSES)
@BUSY
@given(st.lists(st.tuples(box, box), min_size=1, max_size=8))
def test_equals_the_sheet(name, pairs):
    p, t = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float64) for i in (0, 1))
    expected = [plain(name, *pair) for pair in zip(p.tolist(), t.tolist(), strict=True)]
    assert BOX_LOSSES[name](p, t, E).tolist() == pytest.approx(expected, abs=1e-8)
    near = BOX_LOSSES[name](p.float(), t.float(), E).tolist()
    assert near == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("name", BOX_LOSSES)
@BUSY
@given(st.tuples(box, box))
def test_the_gradient_is_that_of_the_value(name, pair):
    p, t = (torch.tensor([values], dtype=torch.float64) for values in pair)
    p = p + torch.tensor([[0.013, -0.017, 0.019, 0.023]])  # off the kinks of equal sides
    p.requires_grad_()
    (gradient,) = torch.autograd.grad(BOX_LOSSES[name](p, t, E).sum(), p)
    assert torch.isfinite(gradient).all()
    if name != "ciou":  # its weight is without gradient
        step = 1e-6 * torch.eye(4, dtype=torch.float64)
        ends = [BOX_LOSSES[name]((p + sign * step).detach(), t.expand(4, 4), E) for sign in (1, -1)]
        assert gradient[0].tolist() == pytest.approx(((ends[0] - ends[1]) / 2e-6).tolist(), abs=2e-5)


EDGES = {
    "equal": [3.0, 4.0, 13.0, 11.0],
    "coinciding centres": [5.0, 5.0, 11.0, 10.0],
    "same x": [3.0, 2.0, 13.0, 9.0],
    "touching": [13.0, 4.0, 20.0, 11.0],
    "apart": [100.0, 200.0, 101.0, 202.0],
    "a point": [5.0, 5.0, 5.0, 5.0],
    "the centre": [8.0, 7.5, 8.0, 7.5],
    "a line": [5.0, 5.0, 5.0, 9.0],
    "inside out": [9.0, 9.0, 5.0, 6.0],
    "inside out as large as the target": [13.0, 4.0, 3.0, 11.0],
    "turned on one side": [9.0, 5.0, 5.0, 9.0],
    "huge": [-1e8, -1e8, 1e8, 1e8],
    "far": [1e8, 1e8, 1.0001e8, 1.0001e8],
    "tiny": [5.0, 5.0, 5.0 + 1e-6, 5.0 + 1e-6],
}


@pytest.mark.parametrize("name", BOX_LOSSES)
@pytest.mark.parametrize("edge", EDGES)
def test_values_and_gradients_are_finite(name, edge):
    target = torch.tensor([EDGES["equal"]])
    p = torch.tensor([EDGES[edge]], requires_grad=True)
    value = BOX_LOSSES[name](p, target, E)
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    assert value.item() <= 1 + 1e-6
    if edge == "equal":
        assert value.item() == pytest.approx(1.0, abs=1e-6) and gradient.abs().max() < 1


def test_the_formula_of_yolov9_keeps_its_own_epsilons():
    assert box_overlap(AlignedLoss()) is boxes.ciou
    p, t = torch.tensor([[0.0, 0, 4, 0]]), torch.tensor([[0.0, 0, 4, 2]])
    assert box_overlap(AlignedLoss(box_epsilon=1e-10))(p, t).item() == pytest.approx(
        plain("ciou", *p.tolist(), *t.tolist())
    )
    assert box_overlap(AlignedLoss(box_loss="giou"))(p, t).item() == pytest.approx(0.0, abs=1e-6)
