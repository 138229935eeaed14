"""Anchor recall, fitting and the decision to replace anchors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7 import anchors as module
from yolov7.anchors import best_possible_recall, check_anchors, fit_anchors
from yolov7.errors import DataError

COCO = np.array(
    [[[12, 16], [19, 36], [40, 28]], [[36, 75], [76, 55], [72, 146]], [[142, 110], [192, 243], [459, 401]]], dtype=float
)


def boxes(seed=0, count=600, scale=1.0):
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(np.log(40 * scale), 0.7, (count, 2)))


def plain_recall(sizes, anchors, threshold):
    reached = [any(max(w / a, a / w, h / b, b / h) < threshold for a, b in anchors) for w, h in sizes]
    return sum(reached) / len(reached)


@given(st.integers(0, 10**6), st.sampled_from([1.5, 2.0, 4.0]))
@settings(max_examples=30, deadline=None)
def test_recall_equals_plain(seed, threshold):
    sizes = boxes(seed, 50)
    assert best_possible_recall(sizes, COCO.reshape(-1, 2), threshold) == plain_recall(
        sizes, COCO.reshape(-1, 2), threshold
    )


def test_recall_of_nothing_is_one():
    assert best_possible_recall(np.zeros((0, 2)), COCO.reshape(-1, 2)) == 1.0


def test_fitted_anchors_find_the_groups():
    rng = np.random.default_rng(1)
    centres = np.array([[8.0, 20.0], [60.0, 30.0], [200.0, 220.0]])
    sizes = np.concatenate([centre * rng.normal(1, 0.03, (200, 2)) for centre in centres])
    fitted = fit_anchors(sizes, 3, np.random.default_rng(2), generations=200)
    assert np.allclose(fitted, centres, rtol=0.1)


def test_fitting_is_sorted_deterministic_and_better_than_its_start():
    sizes = boxes(3)
    once = fit_anchors(sizes, 9, np.random.default_rng(5), generations=100)
    again = fit_anchors(sizes, 9, np.random.default_rng(5), generations=100)
    other = fit_anchors(sizes, 9, np.random.default_rng(6), generations=100)
    start = fit_anchors(sizes, 9, np.random.default_rng(5), generations=0)
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    assert np.all(np.diff(once.prod(axis=1)) >= 0) and once.min() >= 2
    assert module._fitness(sizes, once, 4.0) > module._fitness(sizes, start, 4.0)


def test_fitting_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()
    fit_anchors(boxes(), 3, np.random.default_rng(0), generations=5)
    assert np.array_equal(before, np.random.get_state()[1])


def test_equal_boxes_and_large_sets(monkeypatch):
    assert np.allclose(fit_anchors(np.full((20, 2), 30.0), 3, np.random.default_rng(0), generations=3), 30, rtol=0.2)
    monkeypatch.setattr(module, "SAMPLE", 100)
    assert fit_anchors(boxes(count=1000), 9, np.random.default_rng(0), generations=3).shape == (9, 2)


@pytest.mark.parametrize("sizes", [np.zeros((0, 2)), np.ones((50, 2)), np.full((50, 2), np.nan)])
def test_too_few_usable_boxes(sizes):
    with pytest.raises(DataError, match="there are 0"):
        fit_anchors(sizes, 9, np.random.default_rng(0))
    assert np.array_equal(check_anchors(sizes, COCO, 4.0, np.random.default_rng(0)), COCO)


def test_anchors_that_fit_are_kept():
    assert np.array_equal(check_anchors(boxes(), COCO, 4.0, np.random.default_rng(0)), COCO)


def test_anchors_that_do_not_fit_are_replaced_by_better_ones():
    sizes = np.concatenate((boxes(scale=0.1), boxes(1, scale=0.3)))
    sizes = sizes[(sizes >= 2).all(axis=1)]
    found = check_anchors(sizes, COCO, 4.0, np.random.default_rng(0))
    assert found.shape == COCO.shape
    before, after = (best_possible_recall(sizes, anchors.reshape(-1, 2)) for anchors in (COCO, found))
    assert before < 0.98 < after


def test_anchors_that_are_no_better_are_refused(monkeypatch):
    sizes = boxes(scale=0.05)
    monkeypatch.setattr(module, "fit_anchors", lambda sizes, *rest: COCO.reshape(-1, 2) * 50)
    assert np.array_equal(check_anchors(sizes, COCO, 4.0, np.random.default_rng(0)), COCO)
