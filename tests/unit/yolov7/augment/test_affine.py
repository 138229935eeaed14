"""Maps of points, boxes and outlines: inverses, clipping, filtering, and a plain polygon clipper as the judge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov7.augment.affine import (
    draw_matrix,
    flip_boxes_left_right,
    flip_boxes_up_down,
    is_kept,
    is_upright,
    pixel_matrix,
    transform_boxes,
    transform_points,
    translation,
    visible_extents,
    visible_region,
)
from yolov7.config import Augment
from yolov7.polygons import Polygons, join_polygons

SIZE = 64
SEEDS = st.integers(0, 2**32)
TILTED = Augment(degrees=180, shear=20, perspective=0.001, scale=0.9, translate=0.5)
UPRIGHT = Augment()


def matrix_of(seed, augment, canvas=2 * SIZE):
    return draw_matrix(np.random.default_rng(seed), augment, canvas, SIZE)


def clipped(points, inside, cross):
    kept = []
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        da, db = inside(a), inside(b)
        if da >= 0:
            kept.append(a)
        if da * db < 0:
            kept.append(cross(a, b, da / (da - db)))
    return np.array(kept).reshape(-1, 2)


def clip_to_rectangle(points, x1, y1, x2, y2):
    """Sutherland and Hodgman, for convex polygons."""
    for axis, bound, sign in ((0, x1, 1), (0, x2, -1), (1, y1, 1), (1, y2, -1)):
        if not len(points):
            break
        points = clipped(
            points, lambda p, a=axis, b=bound, s=sign: s * (p[a] - b), lambda p, q, share: p + share * (q - p)
        )
    return points


@given(SEEDS, st.sampled_from([TILTED, UPRIGHT]))
def test_a_map_and_its_inverse_meet(seed, augment):
    matrix, _ = matrix_of(seed, augment)
    points = np.random.default_rng(seed).uniform(0, 2 * SIZE, (20, 2))
    np.testing.assert_allclose(
        transform_points(transform_points(points, matrix), np.linalg.inv(matrix)), points, atol=1e-6
    )


@given(SEEDS)
def test_the_drawn_map_has_the_drawn_scale_and_shift(seed):
    augment = Augment(degrees=90, translate=0.2, scale=0.5)
    matrix, scale = matrix_of(seed, augment)
    assert 0.5 <= scale <= 1.6
    assert np.linalg.det(matrix[:2, :2]) == pytest.approx(scale**2)
    centre = transform_points(np.array([[SIZE, SIZE]], float), matrix)[0]
    assert (np.abs(centre - SIZE / 2) <= 0.2 * SIZE + 1e-9).all()
    assert is_upright(matrix_of(seed, UPRIGHT)[0]) and not is_upright(matrix)


def test_pixel_centres_follow_the_continuous_map():
    matrix = translation(3, 4) @ np.diag([2.0, 2.0, 1.0])
    # Pixel 0 covers [0, 1); doubled it covers pixels 3 and 4, whose common centre is 3.5.
    np.testing.assert_allclose(transform_points(np.zeros((1, 2)), pixel_matrix(matrix)), [[3.5, 4.5]])


@given(SEEDS, st.sampled_from([TILTED, UPRIGHT]))
def test_boxes_stay_inside_and_hold_their_visible_corners(seed, augment):
    rng = np.random.default_rng(seed)
    matrix, _ = matrix_of(seed, augment)
    corners = np.sort(rng.uniform(0, 2 * SIZE, (10, 2, 2)), 1)
    boxes = corners.reshape(10, 4)
    after = transform_boxes(boxes, matrix, SIZE)
    assert (after >= 0).all() and (after <= SIZE).all() and (after[:, 2:] >= after[:, :2]).all()
    for box, moved in zip(boxes, after, strict=True):
        inside = rng.uniform(box[:2], box[2:], (200, 2))
        divisor = inside @ matrix[2, :2] + matrix[2, 2]
        seen = transform_points(inside[divisor > 0.01], matrix)
        seen = seen[((seen >= 0) & (seen <= SIZE)).all(1)]
        assert (seen >= moved[:2] - 1e-6).all() and (seen <= moved[2:] + 1e-6).all()


@given(SEEDS)
def test_the_general_way_equals_the_short_one_without_rotation(seed):
    matrix, _ = matrix_of(seed, UPRIGHT)
    boxes = np.sort(np.random.default_rng(seed).uniform(0, 2 * SIZE, (10, 2, 2)), 1).reshape(10, 4)
    corners = transform_points(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2), matrix)
    expected = np.clip(np.hstack([corners.min(1), corners.max(1)]), 0, SIZE)
    np.testing.assert_allclose(transform_boxes(boxes, matrix, SIZE), expected, atol=1e-9)


@given(SEEDS, st.sampled_from([TILTED, UPRIGHT]))
def test_the_visible_region_maps_into_the_output_and_back_into_the_rectangle(seed, augment):
    matrix, _ = matrix_of(seed, augment)
    rng = np.random.default_rng(seed)
    rectangle = np.sort(rng.uniform(0, 2 * SIZE, (2, 2)), 0).ravel()
    region = visible_region(rectangle, matrix, SIZE)
    if len(region):
        assert (region >= rectangle[:2] - 1e-6).all() and (region <= rectangle[2:] + 1e-6).all()
        moved = transform_points(region, matrix)
        assert (moved >= -1e-5).all() and (moved <= SIZE + 1e-5).all()
    points = rng.uniform(rectangle[:2], rectangle[2:], (300, 2))
    divisor = points @ matrix[2, :2] + matrix[2, 2]
    moved = transform_points(points, matrix)
    seen = ((moved > 0) & (moved < SIZE)).all(1) & (divisor > 0.01)
    assert len(region) or not seen.any()


def polygons_of(rng, objects):
    """Stars around random centres (which see all corners), one or two an object, with none for every fourth."""
    points, counts, owners, centres = [], [], [], []
    for number in range(objects):
        for _ in range(0 if number % 4 == 3 else int(rng.integers(1, 3))):
            corners = int(rng.integers(3, 9))
            angles = (np.arange(corners) + rng.uniform(0, 0.4, corners)) * 2 * np.pi / corners
            radii = rng.uniform(1, rng.uniform(4, 3 * SIZE), (corners, 1))
            centres.append(rng.uniform(-20, 2 * SIZE + 20, 2))
            points.append(centres[-1] + radii * np.stack([np.cos(angles), np.sin(angles)], 1))
            counts.append(corners)
            owners.append(number)
    return Polygons(np.concatenate(points), np.array(counts), np.array(owners)), centres


@settings(max_examples=200)
@given(SEEDS, st.sampled_from([Augment(degrees=180, shear=20, translate=0.5), UPRIGHT]))
def test_visible_extents_equal_those_of_clipped_polygons(seed, augment):
    rng = np.random.default_rng(seed)
    matrix, _ = draw_matrix(rng, augment, 2 * SIZE, SIZE)
    polygons, centres = polygons_of(rng, 8)
    rectangles = np.sort(rng.uniform(0, 2 * SIZE, (2, 2, 2)), 1).reshape(2, 4)
    clips = rectangles[rng.integers(0, 2, 8)]
    found = visible_extents(polygons, clips, matrix, SIZE)
    starts = np.split(polygons.points, np.cumsum(polygons.counts)[:-1])
    rings_of = list(zip(polygons.owners, starts, strict=True))
    for number in range(8):
        rings = [(points, centre) for points, centre in zip(rings_of, centres, strict=True) if points[0] == number]
        parts = []
        for (_, points), centre in rings:
            for a, b in zip(points, np.roll(points, -1, 0), strict=True):
                part = clip_to_rectangle(np.array([centre, a, b]), *clips[number])
                if len(part):
                    parts.append(clip_to_rectangle(transform_points(part, matrix), 0, 0, SIZE, SIZE))
        points = np.concatenate([np.zeros((0, 2)), *parts])
        expected = np.array([*points.min(0), *points.max(0)]) if len(points) else np.zeros(4)
        if (expected[2:] - expected[:2] < 1e-6).any():  # boxes that only touch do not overlap
            assert (found[number, 2:] - found[number, :2] < 1e-5).any()
        else:
            np.testing.assert_allclose(found[number], expected, atol=1e-5)


def test_an_object_around_the_whole_output_fills_it():
    around = Polygons(np.array([[-99, -99], [300, -99], [300, 300], [-99, 300.0]]), np.array([4]), np.array([0]))
    clip = np.array([[0.0, 0, 128, 128]])
    for matrix in (np.eye(3), matrix_of(5, Augment(degrees=5, scale=0.1, translate=0.05))[0]):
        np.testing.assert_allclose(visible_extents(around, clip, matrix, SIZE), [[0, 0, SIZE, SIZE]], atol=1e-9)


def test_behind_the_viewer_nothing_is_seen():
    matrix = np.array([[1.0, 0, 0], [0, 1, 0], [-0.02, 0, 1]])  # the divisor is 0 at x = 50
    boxes = np.array([[60.0, 10, 90, 20], [10, 10, 90, 20]])
    after = transform_boxes(boxes, matrix, SIZE)
    np.testing.assert_array_equal(after[0], 0)
    assert after[1, 0] == pytest.approx(12.5) and after[1, 2] == SIZE


sides = st.floats(0, 60)


@given(st.tuples(sides, sides, sides, sides), st.floats(0.1, 2), st.sampled_from([0.1, 0.01]))
def test_the_filter_keeps_what_the_sheet_says(values, scale, share):
    w1, h1, w2, h2 = values
    before, after = np.array([[0, 0, w1, h1]]), np.array([[0, 0, w2, h2]])
    wide_enough = w2 > 2 and h2 > 2
    expected = wide_enough and w2 * h2 > share * w1 * h1 * scale**2 and max(w2, h2) < 20 * min(w2, h2)
    assert bool(is_kept(before, after, scale, share)[0]) == expected


def test_the_filter_takes_no_boxes():
    assert is_kept(np.zeros((0, 4)), np.zeros((0, 4)), 1.0, 0.1).shape == (0,)


@given(SEEDS)
def test_flipping_twice_is_nothing_and_once_moves_pixels_and_boxes_alike(seed):
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(0, 20, 2)
    x2, y2 = x1 + rng.integers(1, 20), y1 + rng.integers(1, 20)
    boxes = np.array([[x1, y1, x2, y2]], float)
    image = np.zeros((50, 40))
    image[y1:y2, x1:x2] = 1
    for flip, mirrored, side in ((flip_boxes_left_right, image[:, ::-1], 40), (flip_boxes_up_down, image[::-1], 50)):
        a, b, c, d = flip(boxes, side)[0].astype(int)
        assert mirrored[b:d, a:c].all() and mirrored.sum() == (d - b) * (c - a)
        np.testing.assert_array_equal(flip(flip(boxes, side), side), boxes)


def test_polygons_are_taken_joined_and_mapped():
    polygons, _ = polygons_of(np.random.default_rng(0), 6)
    chosen = np.array([True, False, True, True, False, True])
    taken = polygons.take(chosen)
    for new, old in enumerate(np.flatnonzero(chosen)):
        for a, b in zip(taken.of(new), polygons.of(old), strict=True):
            np.testing.assert_array_equal(a, b)
    joined = join_polygons([(polygons, 6), (None, 2), (taken, 4)])
    np.testing.assert_array_equal(joined.of(8 + 1)[0], polygons.of(2)[0])
    np.testing.assert_allclose(polygons.mapped((2, 3), (1, -1)).points, polygons.points * [2, 3] + [1, -1])
    assert join_polygons([(None, 3)]) is None


@pytest.mark.parametrize("surplus", [0.1, 0.0, 0.5])
def test_the_scale_is_uniform_up_to_its_surplus(surplus):
    augment = Augment(scale=0.4, scale_surplus=surplus)
    scales = [matrix_of(seed, augment, SIZE)[1] for seed in range(500)]
    assert 0.6 <= min(scales) < 0.62
    assert 1.4 + surplus - 0.02 < max(scales) <= 1.4 + surplus
