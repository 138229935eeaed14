"""Every option of the method does what it says, and every freebie of the paper has a switch that takes it away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_detector import SIDE, metadata_of, small_detector
from small_training import Watcher, parameters, same_outcome, same_weights, trainer, training_data

from stages.evaluate import run_evaluation as evaluate_artefact
from stages.project.params import Evaluate
from yolov7.augment import pipeline
from yolov7.config import AnchorLoss
from yolov7.data.dataset import TrainDataset
from yolov7.data.loader import epoch_order
from yolov7.errors import ConfigError, ModelError
from yolov7.loss import CRITERIA, Criterion, LossResult, anchor_criterion, create_criterion
from yolov7.model import load_checkpoint
from yolov7.predict import Predictor, TorchRuntime
from yolov7.train import validation
from yolov7.train.class_weights import class_weights, image_weights
from yolov7.train.loop import Trainer
from yolov7.train.records import loss_parts
from yolov7.train.summary import facts


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("options"))


# Selection and evaluation ---------------------------------------------------------------------------------------------


def figures(*values):
    """Replaces the evaluation of a trainer by given APs, one per epoch."""

    def evaluate(self):
        return dict.fromkeys(("AP", "AP50", "AP75"), values[self.position.epoch])

    return evaluate


def test_the_best_weights_are_kept_and_the_last_ones_beside_them(index, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_evaluate", figures(0.3, 0.5, 0.4))
    outcome = trainer(index, tmp_path, parameters()).fit()
    assert (outcome.best_epoch, outcome.best_ap) == (1, 0.5)
    assert load_checkpoint(outcome.best)[1].extra["epoch"] == 1
    assert load_checkpoint(outcome.last)[1].extra["epoch"] == 2
    assert not same_weights(outcome.best, outcome.last)


def test_best_weights_exist_even_without_a_single_object(index, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "_evaluate", figures(-1.0, -1.0, -1.0))
    outcome = trainer(index, tmp_path, parameters()).fit()
    assert outcome.best.is_file() and outcome.best_epoch == 0


@pytest.mark.parametrize("rectangular", [False, True])
def test_rectangular_validation_is_an_option(index, tmp_path, monkeypatch, rectangular):
    shapes = []
    decoded = TorchRuntime.decoded

    def watched(self, images):
        shapes.append(tuple(images.shape[2:]))
        return decoded(self, images)

    monkeypatch.setattr(TorchRuntime, "decoded", watched)
    trainer(index, tmp_path, parameters(epochs=1, evaluate_rectangular=rectangular)).fit()
    assert (set(shapes) == {(SIDE, SIDE)}) != rectangular
    assert any(height != width for height, width in shapes) == rectangular


@pytest.mark.parametrize("rectangular", [False, True])
def test_rectangular_evaluation_of_the_artefact_is_an_option(index, rectangular):
    shapes = []

    class Watched(TorchRuntime):
        def decoded(self, images):
            shapes.append(tuple(images.shape[2:]))
            return super().decoded(images)

    model = small_detector().reparameterize()
    evaluate_artefact(
        Predictor(Watched(model, metadata_of(model))), index, Evaluate(rectangular=rectangular, batch_size=2)
    )
    assert (set(shapes) == {(SIDE, SIDE)}) != rectangular


def test_validation_inside_training_has_as_many_loader_processes(index, tmp_path, monkeypatch):
    asked = []
    find = validation.find_results
    monkeypatch.setattr(validation, "find_results", lambda *a, **k: (asked.append(k["workers"]), find(*a, **k))[1])
    assert trainer(index, tmp_path, parameters(epochs=1), workers=2).fit().finished
    assert asked == [2]


def test_the_iou_of_the_suppression_in_validation_is_an_option(index, tmp_path, monkeypatch):
    asked = []
    find = validation.find_results
    watched = lambda *a, **k: (asked.append(k["thresholds"].iou), find(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr(validation, "find_results", watched)
    assert parameters().evaluate_iou == 0.65
    assert trainer(index, tmp_path, parameters(epochs=1, evaluate_iou=0.5)).fit().finished
    assert asked == [0.5]


# Class weights --------------------------------------------------------------------------------------------------------


def test_class_weights_follow_the_counts_or_the_names(index):
    counts = index.class_counts()
    assert len(set(counts.tolist())) > 1
    assert class_weights("equal", index) is None
    inverse = np.array(class_weights("inverse", index))
    shares = inverse * counts
    np.testing.assert_allclose(shares[counts > 0], shares.sum() / (counts > 0).sum())
    assert shares.sum() == pytest.approx(counts.sum())
    assert class_weights({"kind 1": 3.0}, index) == (1.0, 3.0, 1.0)
    with pytest.raises(ConfigError, match=r"no class 'kind 7' in the data \(did you mean 'kind"):
        class_weights({"kind 7": 1.0}, index)


def test_class_weights_multiply_the_class_loss_of_their_objects_alone():
    model = small_detector().train()
    raw = model.raw(torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    boxes = torch.tensor([[0.0, 0, 10, 10, 40, 40], [0, 2, 50, 50, 90, 90]])

    def losses(rows, weights):
        result = create_criterion(model, image_size=SIDE, assigner="plain", class_weights=weights)(raw, rows)
        return torch.stack((result.box, result.objectness, result.classification))

    for label, weight in ((0, 5.0), (2, 0.25)):
        rows = boxes[boxes[:, 1] == label]
        plain, weighed = losses(rows, None), losses(rows, (5.0, 7.0, 0.25))
        assert torch.equal(plain[:2], weighed[:2])
        assert weighed[2].item() == pytest.approx(weight * plain[2].item(), rel=1e-5)
    with pytest.raises(ModelError, match="2 class weights given for 3 classes"):
        create_criterion(model, image_size=SIDE, class_weights=(1.0, 2.0))


def test_class_weights_of_the_parameters_reach_the_training(index, tmp_path):
    plain = trainer(index, tmp_path / "a", parameters(epochs=1)).fit()
    weighed = trainer(index, tmp_path / "b", parameters(epochs=1, class_weights={"kind 0": 9.0, "kind 1": 9.0})).fit()
    assert weighed.history[0]["train/classification"] > 1.5 * plain.history[0]["train/classification"]


def test_images_with_rare_classes_are_drawn_more_often_and_empty_ones_keep_their_share(index, tmp_path):
    class Counted:
        labels_of = ([0, 0, 0], [0, 0, 0], [1], [])
        labels = lambda self, i: np.array(self.labels_of[i], np.int64)  # noqa: E731
        trainable = lambda self, i: np.ones(len(self.labels_of[i]), np.bool_)  # noqa: E731
        class_counts = lambda self: np.array([6, 1, 0])  # noqa: E731
        __len__ = lambda self: 4  # noqa: E731

    assert image_weights("uniform", Counted()) is None
    weights = image_weights("class_balanced", Counted())
    # Seven objects, two classes: 7/12 for each of class 0, 7/2 for that of class 1, then divided by their mean.
    np.testing.assert_allclose(weights[:3], np.array([1.75, 1.75, 3.5]) / (7 / 3))
    assert weights[3] == 1
    drawn = np.concatenate([epoch_order(4, seed=0, epoch=epoch, weights=weights) for epoch in range(2000)])
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), weights / weights.sum(), atol=0.02)

    run = trainer(index, tmp_path, parameters(epochs=1, image_sampling="class_balanced"))
    seen = [i for batch in run.loader.epoch(7) for i in batch.image_ids]
    order = epoch_order(len(index), seed=0, epoch=7, weights=image_weights("class_balanced", index))
    assert seen == [index.image_id(int(i)) for i in order] and len(set(seen)) < len(seen)
    assert seen[2:] == [i for batch in run.loader.epoch(7, 1) for i in batch.image_ids]


# Criteria of other heads ----------------------------------------------------------------------------------------------


class OtherCriterion(Criterion):
    """The anchor loss under other names, with a second output of the network and a method that changes by the epoch."""

    parts = ("box", "distribution")

    def __init__(self, model, parameters, seen, **options):
        self.plain, self.seen, self.epoch = anchor_criterion(model, parameters, **options), seen, None

    def at(self, epoch, epochs):
        self.epoch = (epoch, epochs)
        return self

    def wrap(self, model):
        class WithImages(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, images):
                return self.model(images), images

        return WithImages()

    def __call__(self, raw, targets, images=None):
        maps, same = raw
        assert torch.equal(same, images)
        self.seen.append(self.epoch)
        result = self.plain(maps, targets)
        return LossResult(result.total, {"box": result.box, "distribution": result.objectness})

    def assign(self, raw, targets):
        return self.plain.assign(raw[0], targets)

    def levels(self):
        return self.plain.levels()


def test_a_criterion_of_another_kind_needs_no_other_trainer(index, tmp_path, monkeypatch):
    plain = trainer(index, tmp_path / "plain", parameters(epochs=2)).fit()
    seen = []
    monkeypatch.setitem(CRITERIA, AnchorLoss, lambda *given, **options: OtherCriterion(*given, seen, **options))
    other = trainer(index, tmp_path / "other", parameters(epochs=2)).fit()
    assert seen == [(0, 2)] * 3 + [(1, 2)] * 3
    assert same_weights(plain.last, other.last)
    for ours, theirs in zip(other.history, plain.history, strict=True):
        assert loss_parts(ours) == ["box", "distribution"]
        assert ours["train/distribution"] == theirs["train/objectness"]
    lines = dict(facts(other, epochs=2, device="cpu", peak_memory_gib=1.0, folder=tmp_path))
    assert lines["last losses"].startswith("box 0.") and ", distribution " in lines["last losses"]


# Ablations ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "switch",
    [
        {"ema": {"enabled": False}},
        {"augment": {"mosaic": 0.0}},
        {"augment": {"mixup": 1.0}},
        {"loss": {"assigner": "plain"}},
        {"loss": {"auxiliary_weight": 0.0}},
        {"loss": {"auxiliary": "lead-guided"}},
        {"loss": {"label_smoothing": 0.1}},
        {"loss": {"focal_gamma": 1.5}},
        {"optimizer": {"gradient_clip": 0.01}},
        {"optimizer": {"schedule": "linear"}},
    ],
    ids=str,
)
def test_a_switch_changes_the_result(index, tmp_path, switch, baseline):
    values = {key: value for key, value in switch.items() if key != "optimizer"}
    if "optimizer" in switch:
        values["optimizer"] = {"nominal_batch": 4, "warmup_iterations": 2, "warmup_epochs": 0, **switch["optimizer"]}
    outcome = trainer(index, tmp_path, parameters(epochs=2, evaluate_every=2, **values)).fit()
    assert not same_weights(outcome.last, baseline.last)


@pytest.fixture(scope="module")
def baseline(index, tmp_path_factory):
    return trainer(index, tmp_path_factory.mktemp("baseline"), parameters(epochs=2, evaluate_every=2)).fit()


@pytest.mark.parametrize(("mixup", "mosaic"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.0)])
def test_mixup_and_mosaic_happen_as_often_as_they_are_wanted(index, monkeypatch, mixup, mosaic):
    calls = {"mix": 0, "plan_mosaic4": 0, "plan_single": 0}

    def counting(name):
        original = getattr(pipeline, name)

        def counted(*arguments):
            calls[name] += 1
            return original(*arguments)

        return counted

    for name in calls:
        monkeypatch.setattr(pipeline, name, counting(name))
    augment = parameters(augment={"mixup": mixup, "mosaic": mosaic, "mosaic9": 0.0}).augment
    dataset = TrainDataset(index, image_size=SIDE, augment=augment, seed=0)
    for i in range(len(index)):
        assert dataset[0, i].image.any()
    count = len(index)
    whole = count if mosaic else 0
    assert calls == {
        "mix": whole * int(mixup),
        "plan_mosaic4": whole * (1 + int(mixup)),
        "plan_single": count - whole,
    }


def test_without_weight_the_auxiliary_head_learns_nothing_and_teaches_nothing():
    model = small_detector().train()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[0.0, 0, 10, 10, 40, 40], [1, 2, 50, 50, 90, 90]])

    def gradients(maps, **options):
        model.zero_grad(set_to_none=True)
        create_criterion(model, image_size=SIDE, **options)(model.raw(images)[:maps], rows).total.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    levels = len(model.strides)
    off, on, lead = gradients(2 * levels, auxiliary_weight=0.0), gradients(2 * levels), gradients(levels)
    assert off.keys() == lead.keys() < on.keys()
    assert all(torch.allclose(off[name], lead[name], rtol=1e-4, atol=1e-6) for name in lead)


# Pictures -------------------------------------------------------------------------------------------------------------


def test_pictures_show_the_first_batches_and_change_nothing(index, tmp_path, baseline):
    watcher = Watcher()
    run = trainer(index, tmp_path, parameters(epochs=2, evaluate_every=2), listeners=[watcher])
    assigned = []
    original = run.learner.criterion.assign
    run.learner.criterion.assign = lambda raw, targets: assigned.append(original(raw, targets)) or assigned[-1]
    assert same_outcome(run.fit(), baseline)
    first = [batch for batch in watcher.pictured if batch.epoch == 0]
    assert [batch.batch_index for batch in first] == [0, 1, 2]
    for batch, positives in zip(watcher.pictured, assigned, strict=True):
        assert batch.images.shape == (2, 3, SIDE, SIDE) and batch.images.dtype == torch.uint8
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch.positives, positives, strict=True))
        assert sum(level.shape[1] for level in batch.positives) > 0
        assert all((level[5] < len(batch.targets)).all() for level in batch.positives)
    dataset = TrainDataset(index, image_size=SIDE, augment=run.params.augment, seed=0, epochs=2)
    place = [index.image_id(i) for i in range(len(index))].index(first[0].image_ids[0])
    np.testing.assert_array_equal(first[0].images[0].permute(1, 2, 0).numpy(), dataset[0, place].image)
    assert metadata_of(run.model).variant == "small"
