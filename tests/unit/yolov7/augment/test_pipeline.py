"""Colour, blending, pasting, and whole samples whose labels must point at what is painted."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_source import SIDE, SyntheticSource

from yolov7.augment.color import draw_hsv_tables, hsv_tables, jitter
from yolov7.augment.mixup import mix
from yolov7.augment.mosaic import Rendered, gather, outline_mask, plan_mosaic4, plan_single, render
from yolov7.augment.paste import MAX_COVER, collect_cut_outs, copy_paste, covered_shares, paste_in
from yolov7.augment.pipeline import augment_sample
from yolov7.augment.sample import Objects, Shown
from yolov7.config import Augment
from yolov7.polygons import Polygons

SEEDS = st.integers(0, 2**32)
PLAIN = {"hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "mixup": 0, "paste_in": 0}


def sample_of(source, augment, seed, index=0, **keywords):
    return augment_sample(source, index, augment=augment, size=SIDE, rng=np.random.default_rng(seed), **keywords)


# Colour --------------------------------------------------------------------------------------------------------------


def test_tables_turn_the_hue_and_clip_the_others():
    hue, saturation, brightness = hsv_tables(1.5, 0.5, 2.0)
    assert hue[100] == 150 and hue[130] == 195 - 180 and hue.max() < 180
    assert saturation[201] == 100
    assert brightness[100] == 200 and brightness[200] == 255
    np.testing.assert_array_equal(hsv_tables(1, 1, 1)[1:], [np.arange(256)] * 2)


@given(SEEDS, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_drawn_gains_stay_in_their_range(seed, h, s, v):
    tables = draw_hsv_tables(np.random.default_rng(seed), Augment(hsv_h=h, hsv_s=s, hsv_v=v))
    assert tables.shape == (3, 256) and tables.dtype == np.uint8
    for table, gain in zip(tables[1:], (s, v), strict=True):
        assert np.floor(100 * (1 - gain)) - 1 <= table[100] <= min(100 * (1 + gain), 255)


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 30), st.integers(0, 30), st.integers(0, 40), st.integers(0, 40))
def test_jitter_of_a_part_equals_jitter_of_the_whole(seed, x, y, width, height):
    rng = np.random.default_rng(seed)
    image = np.full((64, 64, 4), 114, np.uint8)
    content = (x, y, min(x + width, 64), min(y + height, 64))
    image[content[1] : content[3], content[0] : content[2]] = rng.integers(0, 255, 4)
    tables = draw_hsv_tables(rng, Augment(hsv_h=0.5))
    planes = [cv2.LUT(p, t) for p, t in zip(cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)), tables, strict=True)]
    expected = cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB)
    # OpenCV's vectorised loop and the rest of a row it does not divide into round differently, by one at most.
    for part in (content, (0, 0, 64, 64)):
        assert np.abs(jitter(image, tables, part).astype(int) - expected).max() <= 1


def test_no_gain_changes_colours_by_no_more_than_the_rounding_of_8_bit_hsv():
    image = SyntheticSource().image(0)
    result = jitter(image, hsv_tables(1, 1, 1), (0, 0, image.shape[1], image.shape[0]))
    assert np.abs(result.astype(int) - image).max() <= 8


# Blending ------------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1))
def test_mixing_blends_pixels_and_keeps_all_labels(ratio):
    parts = [
        Rendered(np.full((8, 8, 4), value, np.uint8), content, np.full((n, 4), n, float), np.full(n, n))
        for value, content, n in ((200, (1, 2, 3, 4), 2), (100, (2, 0, 8, 3), 3))
    ]
    mixed = mix(*parts, ratio)
    assert np.abs(mixed.image - (ratio * 200.0 + (1 - ratio) * 100)).max() <= 0.5 + 1e-4
    assert mixed.content == (1, 0, 8, 4)
    assert mixed.labels.tolist() == [2, 2, 3, 3, 3] and mixed.boxes.shape == (5, 4)


# Whole samples -------------------------------------------------------------------------------------------------------

MAPS = {
    "upright": Augment(**PLAIN, flip_up_down=0.5),
    "tilted": Augment(**PLAIN, flip_up_down=0.5, degrees=20, shear=5),
    "single": Augment(**PLAIN, flip_up_down=0.5, mosaic=0, scale=0.5),
}


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from(["upright", "single"]))
def test_labels_point_at_what_is_painted(seed, mapping):
    source = SyntheticSource(white=True, objects=1, seed=seed % 5)
    sample = sample_of(source, MAPS[mapping], seed, index=seed % 12)
    white = sample.image.min(2) > 200
    for x1, y1, x2, y2 in sample.boxes:
        inner = white[int(np.ceil(y1 + 1)) : int(y2 - 1), int(np.ceil(x1 + 1)) : int(x2 - 1)]
        assert inner.all()
        left, above = (slice(max(int(edge) - 3, 0), max(int(edge) - 2, 0)) for edge in (x1, y1))
        for strip in (white[int(y1) : int(y2), left], white[above, int(x1) : int(x2)]):
            assert not strip.any() or len(sample.boxes) > 1
    if mapping == "single" and len(sample.boxes) == 1:
        ys, xs = np.nonzero(white)
        seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(seen - sample.boxes[0]).max() <= 1.5


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from([False, True]))
def test_samples_are_clean_and_repeatable(seed, polygons):
    source = SyntheticSource(polygons=polygons)
    augment = Augment(
        degrees=90, shear=20, perspective=0.001, mixup=0.5, mosaic9=0.5, copy_paste=0.5, paste_in=0.5, flip_up_down=0.5
    )
    sample, again = (sample_of(source, augment, seed) for _ in range(2))
    np.testing.assert_array_equal(sample.image, again.image)
    np.testing.assert_array_equal(sample.boxes, again.boxes)
    assert sample.image.shape == (SIDE, SIDE, 3) and sample.image.dtype == np.uint8
    assert sample.boxes.dtype == np.float32 and len(sample.boxes) == len(sample.labels)
    assert (sample.boxes >= 0).all() and (sample.boxes <= SIDE).all()
    assert (sample.boxes[:, 2:] - sample.boxes[:, :2] > 2).all()


def test_flips_mirror_pixels_and_labels_together():
    source = SyntheticSource()
    for seed in range(10):
        plain = sample_of(source, Augment(**PLAIN, flip_left_right=0), seed)
        mirrored = sample_of(source, Augment(**PLAIN, flip_left_right=1), seed)
        turned = sample_of(source, Augment(**PLAIN, flip_left_right=0, flip_up_down=1), seed)
        np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
        np.testing.assert_array_equal(turned.image, plain.image[::-1])
        x1, y1, x2, y2 = plain.boxes.T
        np.testing.assert_allclose(mirrored.boxes, np.stack([SIDE - x2, y1, SIDE - x1, y2], 1), atol=1e-5)
        np.testing.assert_allclose(turned.boxes, np.stack([x1, SIDE - y2, x2, SIDE - y1], 1), atol=1e-5)


@pytest.mark.parametrize("keywords", [{"closed": True}, {}])
def test_closed_samples_show_one_image_only(keywords):
    source = SyntheticSource(polygons=True)
    augment = Augment(mosaic=1, mixup=1, paste_in=1, mosaic9=0, scale=0, translate=0)
    sample_of(source, augment, 1, index=7, **keywords)
    assert (set(source.asked) == {7}) == bool(keywords)


# Pasting -------------------------------------------------------------------------------------------------------------


def test_covered_shares():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 6, 6], [20, 20, 30, 30]], float)
    np.testing.assert_allclose(covered_shares(boxes, np.array([5, 0, 15, 10.0])), [0.5, 1, 0])


def test_without_outlines_nothing_is_drawn_looked_at_or_changed():
    source, rng = SyntheticSource(), np.random.default_rng(0)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    boxes, labels = paste_in(image, np.zeros((0, 4)), np.zeros(0, np.int64), source, rng)
    assert not image.any() and not len(boxes) and not len(labels) and not source.asked
    assert rng.random() == np.random.default_rng(0).random()
    scene = gather(source, plan_mosaic4(source, 0, SIDE, rng), 2 * SIDE)
    assert copy_paste(scene, 1.0, rng) is scene


def test_outlined_data_without_any_outline_ends_after_one_mosaic():
    source = SyntheticSource(polygons=True, objects=1)  # the first object of an image has none
    assert collect_cut_outs(source, SIDE, np.random.default_rng(0)) == []


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_cut_outs_lie_inside_their_images(seed):
    source = SyntheticSource(polygons=True)
    pool = collect_cut_outs(source, SIDE, np.random.default_rng(seed))
    assert pool and not source.asked
    for cut_out in pool:
        height, width = source.size(cut_out.source)
        assert (cut_out.box >= 0).all() and (cut_out.box <= [width, height, width, height]).all()
        objects = source.objects(cut_out.source)
        owner = next(
            n for n in range(len(objects)) if any(np.allclose(p, cut_out.outlines[0]) for p in objects.polygons.of(n))
        )
        assert objects.labels[owner] == cut_out.label
        assert (cut_out.box[:2] >= objects.boxes[owner, :2] - 1).all()


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_pasted_objects_are_labelled_and_leave_the_others_visible(seed):
    side = 192
    source, rng = SyntheticSource(polygons=True, side=side), np.random.default_rng(seed)
    for image in source._images:
        image[:] = 255
    canvas = np.zeros((side, side, 3), np.uint8)
    present = np.array([[10, 10, 60, 60], [100, 100, 180, 180]], float)
    boxes, labels = paste_in(canvas, present, np.array([1, 2]), source, rng)
    np.testing.assert_array_equal(boxes[:2], present)
    assert len(boxes) == len(labels) and labels[:2].tolist() == [1, 2]
    painted = canvas[..., 0] > 0
    labelled = np.zeros_like(painted)
    for box in boxes[2:]:
        x1, y1, x2, y2 = box
        assert 0 <= x1 < x2 <= side and 0 <= y1 < y2 <= side
        # Pixels that the outline only touches are painted, too.
        labelled[max(int(y1) - 1, 0) : int(y2) + 2, max(int(x1) - 1, 0) : int(x2) + 2] = True
        part = painted[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
        assert part.any(0)[1:-1].all() and part.any(1)[1:-1].all()  # the outline touches all sides of its box
        assert (covered_shares(present, box) < MAX_COVER).all()
    assert not (painted & ~labelled).any()
    assert len(source.asked) == len(boxes) - 2  # only what was pasted was decoded


def test_something_is_pasted_most_of_the_time():
    source = SyntheticSource(polygons=True, side=192)
    counts = []
    for seed in range(30):
        image = np.zeros((192, 192, 3), np.uint8)
        rng = np.random.default_rng(seed)
        counts.append(len(paste_in(image, np.zeros((0, 4)), np.zeros(0, np.int64), source, rng)[0]))
    assert np.mean(np.array(counts) > 0) > 0.8


class OneObject:
    """An image 40 wide, 64 high with one white triangle."""

    has_polygons = True
    triangle = np.array([[4.0, 10], [20, 10], [4, 40]])

    def __init__(self):
        mask = outline_mask([self.triangle], 0, 0, 40, 64)
        self.pixels = np.repeat(mask[..., None], 3, 2)

    def __len__(self):
        return 1

    def size(self, index):
        return (64, 40)

    def objects(self, index):
        outlines = Polygons(self.triangle, np.array([3]), np.array([0]))
        return Objects(np.array([[4.0, 10, 20, 40]]), np.array([3]), outlines)

    def image(self, index):
        return self.pixels

    def shown(self, index, scale):
        return Shown(self.pixels)


def test_copy_paste_mirrors_the_object_on_the_canvas_with_its_label():
    source = OneObject()
    tiles = plan_single(source, 0, 64)  # the image lies at x = 12
    scene = copy_paste(gather(source, tiles, 64), 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(scene.boxes, [[16, 10, 32, 40], [32, 10, 48, 40]])
    assert scene.labels.tolist() == [3, 3]
    rendered = render(source, scene, np.eye(3), 1.0, 64)
    image = rendered.image[..., 0]
    original, copied = image[8:42, 15:32], image[8:42, 32:49]
    assert (original == 255).sum() > 200
    assert ((copied == 255) != (original[:, ::-1] == 255)).sum() <= 40  # pixels on the outline may go either way
    np.testing.assert_allclose(rendered.boxes, scene.boxes, atol=1e-9)


def test_copy_paste_leaves_out_what_would_hide_a_label():
    source = OneObject()
    tiles = plan_single(source, 0, 64)
    scene = gather(source, tiles, 64)
    scene.boxes = np.array([[26.0, 10, 46, 40]])  # its mirror image covers it
    assert len(copy_paste(scene, 1.0, np.random.default_rng(0)).boxes) == 1
