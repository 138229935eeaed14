"""The grey border of an evaluation: the way back is exact, or as far off as the release's options make it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.errors import ConfigError
from yolov7.letterbox import Border, check_border, fit, load_size, released_load_size, to_original

side = st.integers(1, 400)
long_canvas = st.integers(2, 12).map(lambda count: 32 * count)


def corners_back(image_size, fitted, border):
    """The image's corners as they lie in the input, mapped back."""
    (x, y), (height, width) = fitted.pad, image_size
    inside = (fitted.image == 200).all(2)
    rows, columns = int(inside.any(1).sum()), int(inside.any(0).sum())
    scale, pad = border.way_back(fitted)
    box = np.array([[x, y, x + columns, y + rows]])
    clipped = to_original(box, scale=scale, pad=pad, size=(height, width))[0]
    back = ((box - np.tile(pad, 2)) / np.tile(scale, 2))[0]
    np.testing.assert_allclose(clipped, np.clip(back, 0, [width, height] * 2), rtol=1e-6, atol=0)  # a float32
    return back


def white(height, width):
    return np.full((height, width, 3), 200, np.uint8)


@given(side, side, long_canvas, st.integers(0, 40), st.booleans())
@settings(max_examples=200, deadline=None)
def test_corners_come_back_exactly_in_x_and_y(height, width, canvas, pixels, rectangular):
    border = Border(pixels)
    if rectangular:
        shape = tuple(-(-new // 32) * 32 for new in load_size(height, width, canvas))
        fitted = fit(white(height, width), *shape, long_side=canvas - pixels, border=pixels)
    else:
        fitted = fit(white(height, width), canvas, canvas, border=pixels)
    back = corners_back((height, width), fitted, border)
    np.testing.assert_allclose(back, [0, 0, width, height], rtol=1e-12, atol=0)


@given(side, side, long_canvas, st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_halves_and_one_scale_are_off_by_what_the_truncation_leaves(height, width, canvas, pixels):
    fitted = fit(white(height, width), canvas, canvas, border=pixels)
    scale, pad = Border(pixels, integer_offset=False).way_back(fitted)
    odd = [(new - round(old * s)) % 2 for new, old, s in zip((canvas, canvas), (width, height), scale, strict=True)]
    assert [half - corner for half, corner in zip(pad, fitted.pad, strict=True)] == [each / 2 for each in odd]
    (across, down), same = Border(pixels, exact_scale=False).way_back(fitted)
    assert across == down == fitted.scale[1] and same == fitted.pad


@given(side, side, st.integers(1, 400))
@settings(max_examples=300, deadline=None)
def test_the_released_arithmetic_is_a_pixel_short_at_most(height, width, long_side):
    exact, released = load_size(height, width, long_side), released_load_size(height, width, long_side)
    assert all(0 <= a - b <= 1 for a, b in zip(exact, released, strict=True))


def test_a_side_that_floating_point_shortens():
    assert load_size(97, 301, 634) == (204, 634) and released_load_size(97, 301, 634) == (204, 633)


@given(side, side, st.integers(32, 300), st.integers(32, 300), st.integers(1, 500))
@settings(max_examples=200, deadline=None)
def test_an_image_is_never_larger_than_the_input_nor_enlarged_to_it(height, width, new_height, new_width, long_side):
    fitted = fit(white(height, width), new_height, new_width, long_side=long_side)
    inside = (fitted.image == 200).all(2)
    rows, columns = int(inside.any(1).sum()), int(inside.any(0).sum())
    loaded = load_size(height, width, long_side)
    shrink = min(new_height / loaded[0], new_width / loaded[1], 1)
    assert (rows, columns) == tuple(max(round(each * shrink), 1) for each in loaded)
    np.testing.assert_allclose(corners_back((height, width), fitted, Border()), [0, 0, width, height], rtol=1e-12)


def test_no_room_for_an_image():
    assert check_border(63, (64, 96)) == 63
    for pixels in (-1, 64):
        with pytest.raises(ConfigError, match=f"a border of 0 to 63 pixels is expected for this input, got {pixels}"):
            check_border(pixels, (64, 96))
