"""Arrays that rows are added to: those of all parts, as narrow as they fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolov7.data.growing import GrowingArray, GrowingStarts, GrowingWholeNumbers

BOUNDS = [0, 1, -1, 2**15 - 1, 2**15, -(2**15), -(2**15) - 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)]


@given(st.lists(st.lists(st.sampled_from(BOUNDS), max_size=4), max_size=5))
def test_whole_numbers_are_as_narrow_as_all_of_them_fit(parts):
    growing = GrowingWholeNumbers()
    for part in parts:
        growing.add(np.array(part, np.int64))
    values = [value for part in parts for value in part]
    found = growing.array()
    assert found.tolist() == values and len(growing) == len(values)
    kinds = [
        kind
        for kind in (np.int16, np.int32, np.int64)
        if all(np.iinfo(kind).min <= one <= np.iinfo(kind).max for one in values)
    ]
    assert found.dtype == kinds[0]


def test_rows_of_several_numbers_and_the_starts_of_ragged_ones():
    points, starts = GrowingArray(np.float32, (2,)), GrowingStarts()
    for count in (2, 0, 3):
        points.add(np.full((count, 2), count, np.float64))
        starts.add(np.array([0, count], np.int64))
    starts.add(np.zeros(1, np.int64))  # of no rows
    assert points.array().dtype == np.float32 and points.array().tolist() == [[2, 2]] * 2 + [[3, 3]] * 3
    assert starts.array().tolist() == [0, 2, 2, 5]
    assert GrowingArray(np.float64, (4,)).array().shape == (0, 4)


def test_nothing_is_added_to_an_array_that_is_in_use():
    growing = GrowingArray(np.float64)
    growing.add(np.ones(1000))
    found = growing.array()
    with pytest.raises(BufferError):
        growing.add(np.ones(1000))
    assert found.sum() == 1000
