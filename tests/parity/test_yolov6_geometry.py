"""Fitting an image and the way back in YOLOv6's evaluation: golden vectors of the release's arithmetic."""

from pathlib import Path

import numpy as np
import pytest

from yolov7.data.evaluation import batch_shape
from yolov7.letterbox import Border, fit, released_load_size

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "v6" / "eval_geometry.npz"
SIDE = 640

pytestmark = pytest.mark.skipif(not GOLDEN.is_file(), reason="the golden vectors of YOLOv6 (../shared) are not here")


def golden(name):
    return np.load(GOLDEN)[name] if GOLDEN.is_file() else np.zeros((1, 12))


@pytest.mark.parametrize("row", golden("rows"), ids=lambda row: "{:.0f}x{:.0f}-{:.0f}".format(*row[:3]))
def test_every_number_of_a_fitted_image(row):
    old_height, old_width, long_side, height, width = row[:5].astype(int)
    shrink, left, top, half_x, half_y, gain_y, gain_x = row[5:]
    assert released_load_size(old_height, old_width, long_side) == (height, width)
    assert shrink == 1  # nothing is left for the letterbox to shrink
    pixels = SIDE - long_side
    image = np.zeros((old_height, old_width, 3), np.uint8)
    fitted = fit(image, SIDE, SIDE, border=pixels)
    assert fitted.image.shape == (SIDE, SIDE, 3) and fitted.pad == (left, top)
    rows, columns = (np.nonzero((fitted.image == 0).all(2).any(axis))[0] for axis in (1, 0))
    assert (rows[0], rows[-1] + 1) == (top, top + height) and (columns[0], columns[-1] + 1) == (left, left + width)
    # The gains are quotients of whole numbers: equal to the last bit of float64, or the one beside it.
    close = {"rtol": 4e-16, "atol": 0}
    for exact_scale, wanted in ((True, (gain_x, gain_y)), (False, (gain_y, gain_y))):
        for integer_offset, pad in ((True, (left, top)), (False, (half_x, half_y))):
            scale, offset = Border(pixels, integer_offset, exact_scale).way_back(fitted)
            np.testing.assert_allclose(scale, wanted, **close)
            assert offset == pad


@pytest.mark.parametrize("row", golden("rect_minratio_maxratio_pad_h_w"))
def test_shapes_of_rectangular_batches(row):
    low, high, spare, height, width = row[:5]
    assert batch_shape(low, high, SIDE, 32, spare) == (height, width)
