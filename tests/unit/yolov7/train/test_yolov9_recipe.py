"""The released recipe of YOLOv9, number by number (reference sheet: yolov9-training, sections 1 to 3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic_source import SIDE, SyntheticSource, ring

from yolov7.augment import pipeline
from yolov7.augment.affine import draw_matrix, flip_boxes_left_right
from yolov7.augment.mosaic import gather, plan_mosaic4, plan_single
from yolov7.augment.paste import copy_paste
from yolov7.augment.sample import Objects
from yolov7.config import train_parameters
from yolov7.data.dataset import TrainDataset
from yolov7.model import create_model
from yolov7.polygons import Polygons
from yolov7.presets import YOLOV9
from yolov7.train.ema import AveragedModel
from yolov7.train.optimizer import parameter_groups
from yolov7.train.schedule import Schedule

RECIPE = train_parameters({}, recipe="yolov9")
EPOCHS, BATCHES = 500, 924  # of 128 images, COCO


def schedule(batch_size: int = 128, batches: int = BATCHES) -> Schedule:
    return Schedule(optimizer=RECIPE.optimizer, epochs=EPOCHS, batches_per_epoch=batches, batch_size=batch_size)


# Optimiser ------------------------------------------------------------------------------------------------------------


def test_the_recipe_has_the_published_values():
    options, augment = RECIPE.optimizer, RECIPE.augment
    assert (RECIPE.epochs, RECIPE.image_size, RECIPE.patience, RECIPE.evaluate_iou) == (500, 640, 100, 0.7)
    assert (options.name, options.learning_rate, options.final_factor, options.momentum) == ("sgd", 0.01, 0.01, 0.937)
    assert (options.weight_decay, options.nominal_batch, options.gradient_clip) == (0.0005, 64, 10.0)
    assert (options.warmup_epochs, options.warmup_momentum, options.warmup_bias_learning_rate) == (3.0, 0.8, 0.1)
    assert (RECIPE.ema.decay, RECIPE.ema.ramp) == (0.9999, 2000.0)
    assert (RECIPE.loss.box, RECIPE.loss.classification, RECIPE.loss.dfl) == (7.5, 0.5, 1.5)
    assert (augment.hsv_h, augment.hsv_s, augment.hsv_v) == (0.015, 0.7, 0.4)
    assert (augment.degrees, augment.shear, augment.perspective, augment.translate) == (0.0, 0.0, 0.0, 0.1)
    assert (augment.flip_up_down, augment.flip_left_right, augment.max_aspect) == (0.0, 0.5, 100.0)
    assert (augment.mosaic, augment.mosaic9, augment.mixup, augment.copy_paste, augment.paste_in) == (
        1,
        0,
        0.15,
        0.3,
        0,
    )
    assert YOLOV9["yolov9"]["augment"]["close_mosaic_epochs"] == 15


# Section 2: biases, kernels, weights of batch norms; T as S. Of the kernels one a head are the fixed bins.
GROUPS = {
    "gelan": {"s": (227, 228, 221), "m": (155, 156, 149), "c": (160, 161, 154), "e": (309, 310, 298)},
    "yolov9": {"s": (303, 305, 291), "m": (245, 247, 230), "c": (253, 255, 238), "e": (373, 375, 356)},
}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("size", "tsmce")
def test_parameters_are_in_the_published_groups(kind, size):
    """The fixed numbers of the bins are a kernel there that never has a gradient, so nothing moves or decays them. Here
    they are in no group: they take no gradient, and a count of what is trained leaves them out.
    """
    model = create_model(f"{kind}-{size}", device="meta")
    groups = parameter_groups(model)
    bins = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert bins == ["head.lead_bins.values", "head.auxiliary_bins.values"][: 1 + model.has_auxiliary]
    counts = (len(groups.bias), len(groups.decay) + len(bins), len(groups.no_decay))
    assert counts == GROUPS[kind]["s" if size == "t" else size]
    assert all(name.endswith("bn.weight") for name in groups.no_decay)


def test_the_rate_falls_in_a_line_that_ends_one_epoch_after_the_last():
    plan = schedule()
    assert [0.01 * plan.factor(epoch) for epoch in (0, 250, 499)] == pytest.approx([0.01, 0.00505, 0.0001198])


def test_the_warm_up_has_the_published_values():
    """Iteration: rate of biases, rate of the others, momentum; at 924 batches of 128 images."""
    plan = schedule()
    assert plan.warmup == 2772
    published = {0: (0.1, 0.0, 0.8), 924: (0.0699934, 0.00332673, 0.845667), 2772: (0.0099406, 0.0099406, 0.937)}
    for iteration, values in published.items():
        found = plan.at(iteration)
        assert (found.bias_learning_rate, found.learning_rate, found.momentum) == pytest.approx(values, rel=5e-6)
        assert found.accumulate == 1
    assert plan.at(2773).learning_rate == plan.at(2773).bias_learning_rate == pytest.approx(0.01 * plan.factor(3))
    assert schedule(batches=10).warmup == 100  # at least


def test_decay_and_accumulation_follow_the_batch():
    assert {batch: schedule(batch).weight_decay for batch in (16, 128)} == pytest.approx({16: 0.0005, 128: 0.001})
    assert [schedule(batch).accumulate for batch in (16, 32, 64, 128)] == [4, 2, 1, 1]


@pytest.mark.parametrize("batch_size", [6, 16, 24, 128])
def test_a_step_comes_when_enough_batches_have_passed_since_the_last_one(batch_size):
    plan = schedule(batch_size, batches=50)
    last, expected = -1, []
    for iteration in range(400):
        share = min(iteration / plan.warmup, 1.0)
        accumulate = max(1, round(1 + share * (64 / batch_size - 1))) if share < 1 else max(round(64 / batch_size), 1)
        if iteration - last >= accumulate:
            last = iteration
            expected.append(iteration)
    assert [iteration for iteration in range(400) if plan.steps_after(iteration)] == expected
    seen = [plan.window(iteration) for iteration in expected]
    assert [i for window in seen for i in window] == list(range(expected[-1] + 1))


def test_the_average_never_moves_the_bins():
    model = create_model("gelan-t", 3)
    average = AveragedModel(model, RECIPE.ema)
    for _ in range(5):
        average.update()
    assert torch.equal(average.model.head.lead_bins.values.flatten(), torch.arange(16.0))


# Samples --------------------------------------------------------------------------------------------------------------


class Closable:
    """As much of an index as the question needs whether mosaic is on."""

    has_polygons = False

    def __len__(self) -> int:
        return 1


def test_the_last_15_epochs_are_without_mosaic_wherever_a_run_resumes():
    dataset = TrainDataset(Closable(), image_size=SIDE, augment=RECIPE.augment, seed=0, epochs=EPOCHS)
    # A pure function of the epoch: nothing happens at its start that a resume could miss.
    assert [dataset.is_closed(epoch) for epoch in (499, 0, 490, 484, 485)] == [True, False, True, False, True]


def test_the_four_images_of_a_mosaic_lie_in_random_order():
    source = SyntheticSource(40)
    rng = np.random.default_rng(0)
    places = np.zeros(4)
    for _ in range(2000):
        tiles = plan_mosaic4(source, 7, SIDE, rng, RECIPE.augment.shuffle_mosaic)
        assert len(tiles) == 4
        places += [tile.source == 7 for tile in tiles]
    np.testing.assert_allclose(places / 2000, 0.25 + 0.75 / 40, atol=0.04)
    assert all(plan_mosaic4(source, 7, SIDE, rng)[0].source == 7 for _ in range(50))  # YOLOv7


def test_scale_shift_and_blend_have_the_published_ranges(monkeypatch):
    rng = np.random.default_rng(0)
    drawn = [draw_matrix(rng, RECIPE.augment, 2 * SIDE, SIDE) for _ in range(3000)]
    scales = np.array([scale for _, scale in drawn])
    centres = np.array([(matrix @ [SIDE, SIDE, 1])[:2] for matrix, _ in drawn]) / SIDE
    assert scales.min() == pytest.approx(0.1, abs=0.01) and scales.max() == pytest.approx(1.9, abs=0.01)
    np.testing.assert_allclose([centres.min(0), centres.max(0)], [[0.4, 0.4], [0.6, 0.6]], atol=0.002)
    ratios = []
    monkeypatch.setattr(pipeline, "mix", lambda first, second, ratio: (ratios.append(ratio), first)[1])
    source = SyntheticSource(4)
    for seed in range(600):
        pipeline.augment_sample(source, 0, augment=RECIPE.augment, size=SIDE, rng=np.random.default_rng(seed))
    assert 60 < len(ratios) < 120  # 0.15
    assert np.std(ratios) == pytest.approx(0.5 / np.sqrt(65), rel=0.25) and np.mean(ratios) == pytest.approx(
        0.5, abs=0.03
    )


class Outlined(SyntheticSource):
    """One image with objects whose outlines fill little of their boxes."""

    def __init__(self, boxes, outlined=None):
        super().__init__(1, objects=0)
        boxes = np.asarray(boxes, np.float64)
        outlined = range(len(boxes)) if outlined is None else outlined
        rings = [ring(x1, y1, (x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes[list(outlined)]]
        counts, owners = np.full(len(rings), 12), np.array(list(outlined), np.int64)
        polygons = Polygons(np.concatenate(rings), counts, owners)
        self._images[0] = np.full((SIDE, SIDE, 3), 200, np.uint8)
        self._objects[0] = Objects(boxes, np.arange(len(boxes)), polygons)
        self.has_polygons = True


def test_without_mosaic_the_labels_follow_the_boxes_alone():
    source = Outlined([[8, 8, 56, 56]])
    still = {"translate": 0.0, "scale": 0.0, "flip_left_right": 0.0}

    def closed(**over):
        augment = RECIPE.augment.model_copy(update={**still, **over})
        rng = np.random.default_rng(0)
        return pipeline.augment_sample(source, 0, augment=augment, size=SIDE, rng=rng, closed=True).boxes

    np.testing.assert_allclose(closed(), [[8, 8, 56, 56]])
    (extent,) = closed(outlines_without_mosaic=True)  # YOLOv7: what is visible of the outline
    assert extent[2] < 33 and extent[3] < 33


def copied(boxes, seed=0, outlined=None, share=0.3):
    source = Outlined(boxes, outlined)
    scene = gather(source, plan_single(source, 0, SIDE), SIDE)
    return scene, copy_paste(scene, share, np.random.default_rng(seed), of=RECIPE.augment.copy_paste_of)


@pytest.mark.parametrize("count", range(1, 9))
def test_of_the_objects_that_may_be_pasted_three_tenths_are(count):
    """Half to even: none of one, two of five. Those whose copies would hide a label do not count."""
    free = [[2, 7 * n, 8, 7 * n + 6] for n in range(count)]  # their copies lie on the right
    hiding = [[26, 7 * n, 38, 7 * n + 6] for n in range(9)]  # their copies cover themselves
    for seed in range(5):
        scene, result = copied(free + hiding, seed)
        new = result.boxes[len(scene.boxes) :]
        assert len(new) == round(0.3 * count)
        mirrored = flip_boxes_left_right(scene.boxes[:count], SIDE).tolist()
        assert all(box in mirrored for box in new.tolist())
        labels = result.labels[len(scene.boxes) :]
        assert [mirrored[label] for label in labels] == new.tolist()


def test_copies_are_compared_with_the_first_labels_alone_and_boxes_without_outline_are_not_copied():
    twins = [[2, 10, 12, 20], [2, 10, 12, 20]]  # their copies cover each other
    scene, result = copied([*twins, [2, 40, 12, 50]], outlined=[0, 1], share=1.0)
    assert len(result.boxes) - len(scene.boxes) == 2
    plain = copy_paste(scene, 1.0, np.random.default_rng(0))
    assert len(plain.boxes) - len(scene.boxes) == 1  # YOLOv7 compares with those pasted before, too
