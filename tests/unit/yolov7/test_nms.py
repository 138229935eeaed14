"""Suppression against a plain greedy reference, on random and adversarial boxes; selection of detections; memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7 import nms as nms_module
from yolov7.boxes import pairwise_iou
from yolov7.nms import Thresholds, batched_nms, nms, select

PRODUCT = "objectness x class probability"


def plain(boxes, scores, labels, iou):
    values = scores.tolist()
    rivals = pairwise_iou(boxes, boxes) > torch.tensor(iou, dtype=torch.float32)
    rivals = (rivals & (labels[:, None] == labels[None, :])).numpy()
    kept = []
    for i in sorted(range(len(values)), key=lambda i: (-values[i], i)):
        if not rivals[i, kept].any():
            kept.append(i)
    return kept


def scene(seed, count, classes, *, side=100.0, levels=0):
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(0, side, (count, 2)), rng.uniform(0, side / 2, (count, 2))
    boxes = np.concatenate((centre - size / 2, centre + size / 2), 1).astype(np.float32)
    scores = rng.random(count).astype(np.float32)
    if levels:
        scores = np.floor(scores * levels) / levels
    labels = rng.integers(0, classes, count)
    return torch.from_numpy(boxes), torch.from_numpy(scores.astype(np.float32)), torch.from_numpy(labels)


@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.65, 1.0]))
@settings(max_examples=60, deadline=None)
def test_equals_plain_reference(seed, count, classes, iou):
    boxes, scores, labels = scene(seed, count, classes, levels=5)
    assert batched_nms(boxes, scores, labels, iou).tolist() == plain(boxes, scores, labels, iou)


@given(st.integers(0, 10**6), st.sampled_from([1, 3, 17]), st.sampled_from([0.2, 0.5, 0.65]))
@settings(max_examples=20, deadline=None)
def test_blocks_equal_plain_reference(seed, classes, iou):
    boxes, scores, labels = scene(seed, 150, classes, levels=20)
    expected = plain(boxes, scores, labels, iou)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms_module, "ONE_MATRIX", 0)
        patch.setattr(nms_module, "BLOCK", 16)
        patch.setattr(nms_module, "KEPT_CHUNK", 8)
        assert batched_nms(boxes, scores, labels, iou).tolist() == expected
        assert batched_nms(boxes, scores, labels, iou, limit=7).tolist() == expected[:7]


def test_real_sizes_equal_plain_reference():
    boxes, scores, labels = scene(1, 1500, 3, side=640.0, levels=50)
    assert batched_nms(boxes, scores, labels, 0.65).tolist() == plain(boxes, scores, labels, 0.65)


@pytest.mark.parametrize("count", [5, 600])
def test_identical_boxes_leave_the_lowest_index(count):
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]]).repeat(count, 1)
    assert nms(boxes, torch.full((count,), 0.5), 0.65).tolist() == [0]
    assert batched_nms(boxes, torch.full((count,), 0.5), torch.arange(count), 0.65).tolist() == list(range(count))


@pytest.mark.parametrize("count", [40, 700])
def test_nested_boxes(count):
    inner = torch.arange(count, dtype=torch.float32) * (45 / count)
    boxes = torch.stack((inner, inner, 100 - inner, 100 - inner), 1)
    scores = torch.linspace(1, 0.1, count)
    labels = torch.zeros(count, dtype=torch.int64)
    for iou in (0.3, 0.65, 0.95):
        assert nms(boxes, scores, iou).tolist() == plain(boxes, scores, labels, iou)


@pytest.mark.parametrize("count", [10, 700])
def test_zero_area_boxes_never_suppress(count):
    boxes = torch.tensor([[5.0, 5.0, 5.0, 5.0]]).repeat(count, 1)
    assert nms(boxes, torch.linspace(1, 0, count), 0.0).tolist() == list(range(count))


def test_a_chain_is_settled_greedily():
    # 1 is suppressed by 0, so it may not suppress 2 any more.
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]


def test_overlap_at_the_threshold_stays():
    boxes = torch.tensor([[0.0, 0, 2, 1], [1.0, 0, 2, 1]])  # IoU exactly 0.5
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.49).tolist() == [0]


def test_classes_do_not_meet_at_huge_coordinates():
    # An offset of 4096 per class would lay the second box exactly over the first.
    boxes = torch.tensor([[4096.0, 4096, 4196, 4196], [0.0, 0, 100, 100]])
    assert batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), 0.5).tolist() == [0, 1]


def test_nothing_in_nothing_out():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    assert batched_nms(torch.ones(3, 4), torch.ones(3), torch.zeros(3), 0.5, limit=0).tolist() == []


def decoded(*rows):
    return torch.tensor([rows], dtype=torch.float32)


def test_one_class_scores_by_objectness_alone():
    (found,) = select(decoded([0, 0, 10, 10, 0.8, 0.5]), Thresholds(0.6, 0.5), scoring="objectness", multi_label=True)
    assert found.scores.tolist() == pytest.approx([0.8]) and found.labels.tolist() == [0]


def test_multi_label_and_best_class():
    rows = decoded([0, 0, 10, 10, 1.0, 0.9, 0.7, 0.1])
    (every,) = select(rows, Thresholds(0.25, 0.5), scoring=PRODUCT, multi_label=True)
    (best,) = select(rows, Thresholds(0.25, 0.5), scoring=PRODUCT, multi_label=False)
    assert every.labels.tolist() == [0, 1] and best.labels.tolist() == [0]
    assert every.scores.tolist() == pytest.approx([0.9, 0.7])


def test_selection_equals_plain_pipeline():
    generator = torch.Generator().manual_seed(3)
    batch = torch.rand(3, 200, 9, generator=generator)
    batch[..., :4] *= 50
    batch[..., 2:4] += batch[..., :2]
    for found, rows in zip(select(batch, Thresholds(0.1, 0.4), scoring=PRODUCT, multi_label=True), batch, strict=True):
        scores = rows[:, 4:5] * rows[:, 5:]
        at, labels = torch.nonzero(scores > 0.1, as_tuple=True)
        kept = plain(rows[at, :4], scores[at, labels], labels, 0.4)[:300]
        assert torch.equal(found.boxes, rows[at, :4][kept]) and torch.equal(found.labels, labels[kept])
        assert torch.equal(found.scores, scores[at, labels][kept])


def test_limits_are_kept():
    batch = torch.zeros(1, 500, 6)
    batch[0, :, 0] = torch.arange(500) * 20
    batch[0, :, 2:4] = batch[0, :, :2] + 10
    batch[0, :, 4] = torch.linspace(0.9, 0.5, 500)
    (found,) = select(batch, Thresholds(0.1, 0.5), scoring="objectness", multi_label=False)
    assert len(found) == 300 and found.scores[0] == batch[0, 0, 4]
    (found,) = select(batch, Thresholds(0.1, 0.5), scoring="objectness", multi_label=False, max_candidates=20)
    assert len(found) == 20


def test_broken_predictions_are_left_out():
    nan, inf = float("nan"), float("inf")
    rows = decoded([0, 0, nan, 5, 0.9, 0.9, 0.1], [0, 0, inf, 5, 0.9, 0.9, 0.1], [0, 0, 5, 5, nan, 0.9, 0.1])
    for multi_label in (True, False):
        (found,) = select(rows, Thresholds(0.2, 0.5), scoring=PRODUCT, multi_label=multi_label)
        assert len(found) == 0 and found.boxes.shape == (0, 4)


def test_half_precision_and_wrong_shapes():
    (found,) = select(
        decoded([0, 0, 10, 10, 0.8, 0.5, 1.0]).half(), Thresholds(0.2, 0.5), scoring=PRODUCT, multi_label=False
    )
    assert found.boxes.dtype == torch.float32 and found.labels.tolist() == [1]
    assert [array.shape for array in found.to_numpy()] == [(1, 4), (1,), (1,)]
    with pytest.raises(ValueError, match=r"\(B, N, 5 \+ C\)"):
        select(torch.zeros(2, 7), Thresholds(0.2, 0.5), scoring=PRODUCT, multi_label=False)


MEMORY = """
import torch
from yolov7.memory import peak_memory_gib
from yolov7.nms import batched_nms
g = torch.Generator().manual_seed(0)
boxes = torch.rand(100_000, 4, generator=g) * 640
boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:] / 8
scores, labels = torch.rand(100_000, generator=g), torch.randint(0, 80, (100_000,), generator=g)
batched_nms(boxes[:1000], scores[:1000], labels[:1000], 0.65)
before = peak_memory_gib()
batched_nms(boxes, scores, labels, 0.65)
batched_nms(boxes, scores, labels * 0, 0.65, limit=300)
print(peak_memory_gib() - before)
"""


def test_memory_is_bounded_at_100_000_candidates():
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    assert float(out) < 0.1  # GiB; a full matrix would be 37
