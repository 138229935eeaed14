"""The published recipes of YOLOv6, number by number (reference sheet: yolov6-training, sections 1 to 3 and 7.7)."""

from __future__ import annotations

import pytest
import torch
from small_detector import SIDE, small_detector
from small_training import Watcher, parameters, trainer, training_data

from yolov7.config import Augment, Optimizer
from yolov7.data.dataset import TrainDataset
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
