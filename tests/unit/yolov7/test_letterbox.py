"""Fitting an image: the arithmetic of 85b8700, a grey border around the image, and boxes that come back."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.letterbox import fit, load_size, to_original

side = st.integers(1, 300)
canvas_side = st.integers(1, 10).map(lambda count: 32 * count)


def picture(height, width):
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def resized(image, long_side):
    height, width = load_size(image.shape[0], image.shape[1], long_side)
    if (height, width) == image.shape[:2]:
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def on_grey(image, height, width):
    top, left = (round((new - old) / 2 - 0.1) for new, old in zip((height, width), image.shape, strict=False))
    padded = np.full((height, width, 3), 114, np.uint8)
    padded[top : top + image.shape[0], left : left + image.shape[1]] = image
    return padded, (left, top)


def assert_fitted(fitted, image, expected, height, width):
    """`expected`: the resized image."""
    pixels, pad = on_grey(expected, height, width)
    np.testing.assert_array_equal(fitted.image, pixels)
    assert (fitted.pad, fitted.size) == (pad, image.shape[:2])
    assert fitted.scale == (expected.shape[1] / image.shape[1], expected.shape[0] / image.shape[0])


@given(side, side, canvas_side, canvas_side)
@settings(max_examples=150, deadline=None)
def test_an_image_is_fitted_as_prediction_did(old_height, old_width, height, width):
    """Predictor.prepare of 85b8700; evaluation on a fixed height and width had the same formula."""
    image = picture(old_height, old_width)
    ratio = min(height / image.shape[0], width / image.shape[1])
    expected = resized(image, round(max(image.shape[:2]) * ratio))
    assert_fitted(fit(image, height, width), image, expected, height, width)


@given(side, side, canvas_side)
@settings(max_examples=150, deadline=None)
def test_a_square_is_fitted_as_evaluation_did(old_height, old_width, new):
    """Evaluation of 85b8700 on a square: the long side is the square's, without a ratio in floating point."""
    image = picture(old_height, old_width)
    assert_fitted(fit(image, new, new), image, resized(image, new), new, new)


@given(st.integers(1, 20000), st.integers(1, 20000), st.integers(1, 4096))
@settings(max_examples=500, deadline=None)
def test_the_long_side_of_a_square_is_exact_for_any_size(height, width, new):
    assert round(max(height, width) * min(new / height, new / width)) == new


@given(side, side, canvas_side)
@settings(max_examples=100, deadline=None)
def test_rectangular_evaluation_gives_the_long_side(old_height, old_width, long_side):
    """Half a stride to spare on each axis, as rectangular batches have it."""
    image = picture(old_height, old_width)
    height, width = (32 * int(np.ceil(new / 32 + 0.5)) for new in load_size(old_height, old_width, long_side))
    expected = resized(image, long_side)
    assert_fitted(fit(image, height, width, long_side=long_side), image, expected, height, width)


@given(side, side, st.integers(40, 200), st.integers(40, 200), st.integers(0, 30), st.data())
@settings(deadline=None)
def test_an_image_fits_with_its_border_and_boxes_come_back(height, width, new_height, new_width, border, data):
    image = np.full((height, width, 3), 200, np.uint8)
    fitted = fit(image, new_height, new_width, border=border)
    assert fitted.image.shape == (new_height, new_width, 3)
    inside = fitted.image[:, :, 0] == 200
    rows, columns, (x, y) = int(inside.any(1).sum()), int(inside.any(0).sum()), fitted.pad
    assert rows <= new_height - border and columns <= new_width - border
    # As large as fits; sides are truncated to whole pixels.
    assert rows >= new_height - border - 1 or columns >= new_width - border - 1
    assert inside[y : y + rows, x : x + columns].all() and (fitted.image[~inside] == 114).all()
    # The smaller half of an odd remainder lies before the image.
    assert 0 <= new_height - rows - 2 * y <= 1 and 0 <= new_width - columns - 2 * x <= 1
    corners = data.draw(st.tuples(*[st.floats(0, 1)] * 4))
    box = np.sort(np.reshape(corners, (2, 2)), 0).reshape(1, 4) * [width, height, width, height]
    there = box * np.tile(fitted.scale, 2) + np.tile(fitted.pad, 2)
    np.testing.assert_allclose(fitted.to_original(there), box, atol=1e-3)


def test_boxes_of_the_border_are_clipped_to_the_image():
    boxes = to_original(np.float32([[0, 0, 64, 64]]), scale=(0.5, 0.5), pad=(0, 8), size=(96, 128))
    np.testing.assert_array_equal(boxes, np.float32([[0, 0, 128, 96]]))
    none = to_original(np.zeros((0, 4), np.float32), scale=(0.5, 0.5), pad=(0, 8), size=(96, 128))
    assert none.shape == (0, 4)


@pytest.mark.parametrize(("size", "canvas", "border", "expected"), [((60, 80), (640, 640), 32, (456, 608))])
def test_a_border_shortens_the_long_side(size, canvas, border, expected):
    inside = (fit(np.zeros((*size, 3), np.uint8), *canvas, border=border).image == 0).all(2)
    assert (int(inside.any(1).sum()), int(inside.any(0).sum())) == expected
