"""Annotations given twice: the same as every pair of them compared."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.data import repeated
from yolov7.data.repeated import find_repeated

SIDES = st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf, -math.inf, 1e300, 5e-324])
ROWS = st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 1), st.lists(SIDES, min_size=4, max_size=4)), max_size=40)


def by_pairs(rows) -> list[bool]:
    return [
        any((image, label) == earlier[:2] and all(map(float.__eq__, box, earlier[2])) for earlier in rows[:place])
        for place, (image, label, box) in enumerate(rows)
    ]


@pytest.mark.parametrize("piece", [5, 1 << 17])
@pytest.mark.parametrize("bits", [0, 1, 64])  # few bits: many different boxes have the same hash
@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_repetitions_are_those_of_all_pairs(bits, piece, rows):
    hashes = repeated._hashes
    images, labels = (np.array([row[place] for row in rows], np.int16) for place in (0, 1))
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "_PIECE", piece)
        patch.setattr(repeated, "_hashes", lambda *columns: hashes(*columns) & np.uint64((1 << bits) - 1))
        assert find_repeated(images, labels, boxes).tolist() == by_pairs(rows)


def test_different_boxes_have_different_hashes():
    generator = np.random.default_rng(0)
    boxes = generator.integers(0, 3, (5000, 4)).astype(np.float64)
    images, labels = generator.integers(0, 20, (2, 5000))
    different = len(np.unique(np.column_stack([images, labels, boxes]), axis=0))
    assert len(set(repeated._hashes(images, labels, boxes).tolist())) == different
