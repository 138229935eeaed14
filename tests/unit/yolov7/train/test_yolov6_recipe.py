"""The published recipes of YOLOv6, number by number (reference sheet: yolov6-training, sections 1 to 3 and 7.7)."""

from __future__ import annotations

import pytest
import torch
from small_detector import SIDE, small_detector
from small_training import Watcher, parameters, trainer, training_data

from yolov7.config import Augment, HeadOptions, Optimizer, Train, train_parameters
from yolov7.data.dataset import TrainDataset
from yolov7.model.variants import list_variants, recipe_of
from yolov7.train.distributed import Processes
from yolov7.train.learner import Learner
from yolov7.train.schedule import Schedule


def schedule(batch_size: int, **optimizer) -> Schedule:
    options = Optimizer(**optimizer)
    return Schedule(optimizer=options, epochs=400, batches_per_epoch=924, batch_size=batch_size)


# Learning rate and loss by GPUs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "gpus", "per_gpu", "factor"),
    [(128, 4, 32, 1.0), (256, 8, 32, 1.0), (128, 8, 32, 0.5), (128, 8, 16, 1.0), (16, 1, 32, 0.5), (8, 4, 0, 1.0)],
)
def test_the_rate_follows_the_images_per_gpu(batch_size, gpus, per_gpu, factor):
    plan = schedule(
        batch_size, learning_rate=0.02, published_gpus=gpus, rate_batch=per_gpu, warmup_bias_learning_rate=0
    )
    assert plan.learning_rate == pytest.approx(0.02 * factor)
    assert plan.at(plan.warmup + 1).learning_rate == pytest.approx(plan.learning_rate * plan.factor(3))
    assert plan.at(plan.warmup // 2).bias_learning_rate == pytest.approx(plan.at(plan.warmup // 2).learning_rate)


def test_the_start_report_names_the_rate_in_use(tmp_path):
    started = []

    class Started(Watcher):
        def started(self, report) -> None:
            started.append(report.learning_rate)

    options = {"learning_rate": 0.02, "rate_batch": 4, "nominal_batch": 4, "warmup_iterations": 0, "warmup_epochs": 0}
    params = parameters(optimizer=options, epochs=1)
    trainer(training_data(tmp_path / "data", 4), tmp_path / "states", params, listeners=[Started()]).fit()
    assert started == [pytest.approx(0.01)]


def gradients(gpus: int) -> dict[str, torch.Tensor]:
    params = parameters(optimizer={"published_gpus": gpus})
    plan = Schedule(optimizer=params.optimizer, epochs=1, batches_per_epoch=1, batch_size=2)
    model = small_detector()
    learner = Learner(model, params, plan, class_weights=None, device=torch.device("cpu"), processes=Processes())
    learner.train()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[0, 1, 10.0, 12, 40, 50], [1, 0, 5, 5, 30, 25]])
    learner.backward(learner.criterion(learner.raw(images), targets).total)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_multiplied_by_the_gpus_of_the_published_run():
    one, eight = gradients(1), gradients(8)
    assert one.keys() == eight.keys()
    for name, gradient in one.items():  # a power of two: nothing is rounded
        assert torch.equal(eight[name], 8 * gradient), name


# Samples --------------------------------------------------------------------------------------------------------------


def test_outlines_can_be_left_out():
    class Outlined:
        has_polygons = True

        def __len__(self) -> int:
            return 1

    found = [
        TrainDataset(Outlined(), image_size=SIDE, augment=Augment(outlines=wanted), seed=0, epochs=1).has_polygons
        for wanted in (True, False)
    ]
    assert found == [True, False]


# The published files --------------------------------------------------------------------------------------------------

# Section 1: box loss, learning rate, scale, mixup, GPUs of the published run (4 x 32 or 8 x 32 images).
FILES_2 = {
    "yolov6-n": ("siou", 0.02, 0.5, 0.0, 4),
    "yolov6-t": ("siou", 0.01, 0.5, 0.0, 8),
    "yolov6-s": ("giou", 0.01, 0.5, 0.0, 8),
    "yolov6-m": ("giou", 0.01, 0.9, 0.1, 8),
    "yolov6-l-relu": ("giou", 0.01, 0.9, 0.1, 8),
    "yolov6-l": ("giou", 0.01, 0.9, 0.1, 8),
    "yolov6-n-base": ("giou", 0.01, 0.5, 0.0, 8),
    "yolov6-s-base": ("giou", 0.01, 0.5, 0.0, 8),
    "yolov6-m-base": ("giou", 0.01, 0.9, 0.1, 8),
    "yolov6-l-base": ("giou", 0.01, 0.9, 0.1, 8),
}
# Section 7.7: the same, images per GPU that the rate is for, mixup of P6.
FILES_3 = {
    "yolov6v3-n": ("siou", 0.02, 0.5, 0.0, 32),
    "yolov6v3-s": ("giou", 0.01, 0.5, 0.0, 32),
    "yolov6v3-m": ("giou", 0.01, 0.9, 0.1, 32),
    "yolov6v3-l": ("giou", 0.01, 0.9, 0.1, 32),
    "yolov6v3-n6": ("siou", 0.02, 0.5, 0.0, 16),
    "yolov6v3-s6": ("giou", 0.01, 0.5, 0.0, 16),
    "yolov6v3-m6": ("giou", 0.01, 0.9, 0.1, 16),
    "yolov6v3-l6": ("giou", 0.01, 0.9, 0.2, 16),
}


def recipe(name: str) -> Train:
    return train_parameters({}, recipe=name)


def found(params: Train) -> tuple[str, float, float, float]:
    return (params.loss.box_loss, params.optimizer.learning_rate, params.augment.scale, params.augment.mixup)


@pytest.mark.parametrize("name", FILES_2)
def test_the_files_of_release_2_have_the_published_values(name):
    params = recipe(name)
    assert (*found(params), params.optimizer.published_gpus) == FILES_2[name]
    assert params.epochs == (400 if params.augment.scale == 0.5 else 300)
    assert params.optimizer.rate_batch == 32
    assert (params.loss.atss_epochs, params.loss.least_score_sum, params.image_size) == (4, 0.0, 640)
    assert params.head == HeadOptions()


@pytest.mark.parametrize("name", FILES_3)
def test_the_files_of_release_3_have_the_published_values(name):
    params, large = recipe(name), name.endswith("6")
    assert (*found(params), params.optimizer.rate_batch) == FILES_3[name]
    assert (params.epochs, params.optimizer.published_gpus) == (300, 8)
    assert params.head.anchor_aided is not large
    assert (params.loss.atss_epochs, params.loss.least_score_sum) == (4 if large else 0, None)
    assert params.image_size == (1280 if large else 640)


@pytest.mark.parametrize("name", [*FILES_2, *FILES_3])
def test_what_all_files_share(name):
    params = recipe(name)
    options, augment, loss = params.optimizer, params.augment, params.loss
    assert (options.name, options.final_factor, options.schedule, options.momentum) == ("sgd", 0.01, "cosine", 0.937)
    assert (options.weight_decay, options.nominal_batch, options.gradient_clip) == (0.0005, 64, 0.0)
    assert (options.warmup_epochs, options.warmup_iterations, options.warmup_momentum) == (3.0, 1000, 0.8)
    assert (options.warmup_bias_learning_rate, options.count_from_last_step) == (0.1, True)
    assert (params.ema.decay, params.ema.ramp) == (0.9999, 2000.0)
    assert (augment.hsv_h, augment.hsv_s, augment.hsv_v, augment.translate) == (0.015, 0.7, 0.4, 0.1)
    assert (augment.degrees, augment.shear, augment.flip_up_down, augment.flip_left_right) == (0.0, 0.0, 0.0, 0.5)
    assert (augment.mosaic, augment.mosaic9, augment.close_mosaic_epochs, augment.mixup_beta) == (1.0, 0.0, 15, 32.0)
    assert (augment.scale_surplus, augment.max_aspect, augment.outlines) == (0.0, 20.0, False)
    assert (augment.copy_paste, augment.paste_in, augment.shuffle_mosaic) == (0.0, 0.0, True)
    assert (loss.assigner, loss.overlap, loss.top_k, loss.alpha, loss.beta) == ("aligned", "iou", 13, 1.0, 6.0)
    assert (loss.classification, loss.box, loss.dfl) == (1.0, 2.5, 0.5)
    assert (loss.classification_loss, loss.box_epsilon, loss.times_images) == ("varifocal", 1e-10, False)


@pytest.mark.parametrize("name", [*FILES_2, *FILES_3])
def test_the_fine_tuning_files(name):
    params, base = recipe(f"{name}-finetune"), recipe(name)
    options, augment = params.optimizer, params.augment
    assert (options.learning_rate, options.final_factor, options.momentum) == (0.0032, 0.12, 0.843)
    assert (options.weight_decay, options.warmup_epochs, options.warmup_momentum) == (0.00036, 2.0, 0.5)
    assert options.warmup_bias_learning_rate == 0.05
    assert (augment.hsv_h, augment.hsv_s, augment.hsv_v) == (0.0138, 0.664, 0.464)
    assert (augment.degrees, augment.translate, augment.scale, augment.shear) == (0.373, 0.245, 0.898, 0.602)
    assert (augment.flip_up_down, augment.flip_left_right, augment.mosaic, augment.mixup) == (0.00856, 0.5, 1.0, 0.243)
    assert params.loss == base.loss


@pytest.mark.parametrize("variant", list_variants("yolov6"))
def test_every_variant_has_its_file(variant):
    assert recipe_of(variant) == variant
    assert recipe_of(variant) in FILES_2 | FILES_3


def test_the_published_batches_have_the_rate_of_the_file():
    for name, values in FILES_2.items():
        gpus = values[-1]
        plan = Schedule(optimizer=recipe(name).optimizer, epochs=1, batches_per_epoch=1, batch_size=32 * gpus)
        assert plan.learning_rate == values[1]
    half = Schedule(optimizer=recipe("yolov6v3-n").optimizer, epochs=1, batches_per_epoch=1, batch_size=128)
    assert half.learning_rate == 0.01  # 8 GPUs with 16 images each


def test_the_small_preset_has_the_loss_of_the_family():
    small = train_parameters({"preset": "small"}, recipe="yolov6-s")
    assert small.loss == recipe("yolov6-s").loss
    assert (small.optimizer.rate_batch, small.optimizer.published_gpus) == (0, 1)
