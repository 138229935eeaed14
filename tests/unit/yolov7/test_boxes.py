"""IoU and CIoU against plain float64 arithmetic, and finite gradients of degenerate boxes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yolov7 import boxes as bx

coordinate = st.floats(0, 640, width=32)
box = st.tuples(coordinate, coordinate, st.floats(0, 300, width=32), st.floats(0, 300, width=32)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def plain_iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def plain_ciou(p, t, e=1e-7):
    w1, h1, w2, h2 = p[2] - p[0], p[3] - p[1] + e, t[2] - t[0], t[3] - t[1] + e
    i = max(min(p[2], t[2]) - max(p[0], t[0]), 0.0) * max(min(p[3], t[3]) - max(p[1], t[1]), 0.0)
    j = i / (w1 * h1 + w2 * h2 - i + e)
    d = (max(p[2], t[2]) - min(p[0], t[0])) ** 2 + (max(p[3], t[3]) - min(p[1], t[1])) ** 2 + e
    r = ((p[0] + p[2] - t[0] - t[2]) / 2) ** 2 + ((p[1] + p[3] - t[1] - t[3]) / 2) ** 2
    v = 4 / math.pi**2 * (math.atan(w2 / (h2 + e)) - math.atan(w1 / (h1 + e))) ** 2
    return j - r / d - v / (v - j + 1 + e) * v


@given(st.lists(box, min_size=1, max_size=6), st.lists(box, min_size=1, max_size=6))
def test_pairwise_iou_equals_plain(rows_a, rows_b):
    a, b = torch.tensor(rows_a, dtype=torch.float64), torch.tensor(rows_b, dtype=torch.float64)
    expected = torch.tensor([[plain_iou(x, y) for y in a_b] for x, a_b in ((x, rows_b) for x in rows_a)])
    assert torch.allclose(bx.pairwise_iou(a, b), expected.double(), atol=1e-12)


@given(st.lists(st.tuples(box, box), min_size=1, max_size=8))
def test_ciou_equals_plain(pairs):
    p = torch.tensor([pair[0] for pair in pairs], dtype=torch.float64)
    t = torch.tensor([pair[1] for pair in pairs], dtype=torch.float64)
    expected = torch.tensor([plain_ciou(*pair) for pair in zip(p.tolist(), t.tolist(), strict=True)])
    assert torch.allclose(bx.ciou(p, t), expected.double(), atol=1e-9)


def test_ciou_of_a_box_with_itself_is_one():
    b = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert bx.ciou(b, b).item() == pytest.approx(1.0, abs=1e-5)


def test_ciou_gradient_is_finite_for_degenerate_boxes():
    rows = [[5, 5, 5, 5], [0, 0, 10, 0], [0, 0, 0, 10], [1, 1, 1 + 1e-20, 1 + 1e-20], [0, 0, 1e4, 1e-4]]
    for target in rows:
        p = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
        value = bx.ciou(p, torch.tensor([target] * len(rows), dtype=torch.float32))
        (gradient,) = torch.autograd.grad(value.sum(), p)
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


def test_trade_off_weight_carries_no_gradient():
    p = torch.tensor([[0.0, 0.0, 4.0, 1.0]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[0.0, 0.0, 2.0, 2.0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(bx.ciou(p, t).sum(), p)
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(4)) ** 2
    weight = v / (v - plain_iou(p[0].tolist(), t[0].tolist()) + 1)

    def held(values, step=1e-6):
        q = list(values)
        iou = plain_iou(q, t[0].tolist())
        d = max(q[2], 2) ** 2 + max(q[3], 2) ** 2
        r = ((q[0] + q[2] - 2) / 2) ** 2 + ((q[1] + q[3] - 2) / 2) ** 2
        shape = 4 / math.pi**2 * (math.atan(1) - math.atan((q[2] - q[0]) / (q[3] - q[1]))) ** 2
        return iou - r / d - weight * shape

    for k in (2, 3):
        up, down = p[0].tolist(), p[0].tolist()
        up[k] += 1e-6
        down[k] -= 1e-6
        assert gradient[0, k].item() == pytest.approx((held(up) - held(down)) / 2e-6, abs=1e-5)


def test_a_box_turned_inside_out_has_no_area():
    assert bx.area(torch.tensor([[5.0, 5.0, 1.0, 9.0], [0.0, 0.0, 2.0, 3.0]])).tolist() == [0.0, 6.0]


def test_empty_tables():
    none = torch.zeros(0, 4)
    assert bx.pairwise_iou(none, torch.ones(3, 4)).shape == (0, 3)
    assert bx.ciou(none, none).shape == (0,)
