"""The trainer as a whole, on a few embedded images: it learns, stops on request, and refuses what cannot work."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.project.params_data import Digits
from stages.sources.digits import make_digits
from yolov7.config import Train, train_parameters
from yolov7.data.formats.coco import read_coco
from yolov7.data.index import Index, build_index
from yolov7.errors import ConfigError, TrainingError
from yolov7.evaluate import evaluate
from yolov7.model import Detector, ModelMetadata, create_model, load_checkpoint
from yolov7.model.scaling import scale
from yolov7.model.variants import find_variant
from yolov7.predict import Predictor, TorchRuntime
from yolov7.train.loop import Trainer
from yolov7.train.state import StateFolder

SIZE = 96


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Four images of digits."""
    folder = tmp_path_factory.mktemp("digits")
    make_digits(Digits(image_size=SIZE, train_images=4, val_images=1, test_images=1, digits_per_image=(2, 4)), folder)
    coco = read_coco(folder / "train/annotations.json")
    return build_index(coco, folder / "train/images", folder / "index")


def plain(**over) -> Train:
    """Parameters of a run without augmentation."""
    still = {"mosaic": 0.0, "translate": 0.0, "scale": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
    values = {
        "preset": "small",
        "image_size": SIZE,
        "batch_size": 8,
        "epochs": 2,
        "augment": {**still, "flip_left_right": 0.0},
        "ema": {"decay": 0.9, "ramp": 10.0},
        "optimizer": {"warmup_iterations": 5, "warmup_epochs": 0},
        **over,
    }
    return train_parameters(values)


def trainer(index: Index, folder: Path, params: Train, model: Detector | None = None, **more) -> Trainer:
    model = model or create_model("yolov7-tiny", len(index.class_names), seed=0)
    metadata = ModelMetadata.of(
        model, class_names=index.class_names, category_ids=index.category_ids, image_size=params.image_size
    )
    states = StateFolder(folder, {"epochs": params.epochs})
    given = {"train_index": index, "val_index": index, **more}
    return Trainer(model, params=params, states=states, metadata=metadata, **given)


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(tmp_path):
    """The learnt objects are detected, at high overlap, after the checkpoint has gone to disk and back."""
    digits = Digits(
        image_size=64, train_images=8, val_images=1, test_images=1, digits_per_image=(1, 1), digit_size=(0.4, 0.7)
    )
    make_digits(digits, tmp_path)
    coco = read_coco(tmp_path / "train/annotations.json")
    index = build_index(coco, tmp_path / "train/images", tmp_path / "index")
    # Every image many times over, so that an epoch, after which the state is saved, is more than one step.
    copies = 25
    repeated = replace(
        coco,
        images=[{**image, "id": image["id"] + 10**8 * n} for n in range(copies) for image in coco.images],
        annotations=[
            {**box, "id": box["id"] + 10**8 * n, "image_id": box["image_id"] + 10**8 * n}
            for n in range(copies)
            for box in coco.annotations
        ],
    )
    params = plain(
        image_size=64,
        epochs=16,
        evaluate_every=16,
        loss={"objectness": 2.0, "box": 0.2},
        optimizer={"warmup_iterations": 5, "warmup_epochs": 0, "learning_rate": 0.005},
    )
    # The network at a quarter of its width: what is left is mostly the work of a step, whatever the network.
    model = create_model(scale(find_variant("yolov7-tiny"), depth=1.0, width=0.25), len(index.class_names), seed=0)
    model.anchors.mul_(0.5)
    train_index = build_index(repeated, tmp_path / "train/images", tmp_path / "repeated")
    outcome = trainer(index, tmp_path / "states", params, model, train_index=train_index).fit()
    assert outcome.finished
    assert outcome.best_ap > 0.9
    best, metadata = load_checkpoint(outcome.best)
    assert metadata.class_names == index.class_names
    assert metadata.extra["val"]["val/AP"] == outcome.best_ap
    assert all(torch.isfinite(tensor).all() for tensor in best.state_dict().values())
    again = evaluate(Predictor(TorchRuntime(best.reparameterize(), metadata)), index, image_size=64)
    assert again.metrics["AP"] == pytest.approx(outcome.best_ap, abs=1e-9)


def test_a_network_with_an_auxiliary_head_needs_no_trainer_of_its_own(index, tmp_path):
    network = scale(find_variant("yolov7-w6"), depth=1.0, width=0.125)
    model = create_model(network, len(index.class_names), seed=0)
    outcome = trainer(index, tmp_path, plain(image_size=128), model).fit()
    assert model.has_auxiliary
    assert len(outcome.history) == 2
    assert all(math.isfinite(value) for row in outcome.history for value in row.values())
    best, _ = load_checkpoint(outcome.best)
    assert best.has_auxiliary
    assert not best.reparameterize().has_auxiliary


def test_a_request_to_stop_is_met_after_the_batch_and_leaves_a_state(index, tmp_path):
    params = plain(epochs=3, batch_size=1)
    asked = iter([False, True])
    first = trainer(index, tmp_path, params, stop=lambda: next(asked)).fit()
    assert not first.finished
    again = trainer(index, tmp_path, params)
    assert again.fit().finished
    assert again.position.iteration == 12


def test_frozen_parts_keep_weights_and_statistics(index, tmp_path):
    model = create_model("yolov7-tiny", len(index.class_names), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer(index, tmp_path, plain(freeze=["backbone"]), model).fit()
    changed = {
        name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"neck", "head"}


def test_multi_scale_trains_at_other_sides_than_the_given_one(index, tmp_path):
    run = trainer(index, tmp_path, plain(multi_scale=True, batch_size=2))
    sides = set()
    raw = run.model.raw
    run.model.raw = lambda images: (sides.add(images.shape[-1]), raw(images))[1]  # type: ignore[method-assign]
    assert run.fit().finished
    assert len(sides) > 1
    assert all(side % 32 == 0 and SIZE // 2 - 32 < side < SIZE * 3 // 2 + 32 for side in sides)


def test_training_stops_early_when_nothing_gets_better(index, tmp_path):
    params = plain(epochs=30, patience=1, optimizer={"learning_rate": 1e-12})
    outcome = trainer(index, tmp_path, params).fit()
    assert outcome.finished
    assert len(outcome.history) < 30
    assert outcome.last.is_file()


def test_a_loss_that_is_not_finite_is_skipped_counted_and_in_the_end_stops_the_run(index, tmp_path):
    run = trainer(index, tmp_path, plain(epochs=9, max_bad_batches=3))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items() if "running" not in name}
    plain_criterion = run.learner.criterion

    def broken(*inputs):
        result = plain_criterion(*inputs)
        return replace(result, total=result.total * math.nan)

    run.learner.criterion.at = lambda epoch, epochs: broken  # type: ignore[method-assign, assignment]
    with pytest.raises(TrainingError, match=r"4 batches in a row were skipped.*not finite.*image ids"):
        run.fit()
    assert run.position.skipped_steps == 4
    after = run.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "num_batches" not in name)


def test_an_image_side_that_does_not_fit_names_two_that_do(index, tmp_path):
    with pytest.raises(ConfigError, match=r"100 is not a multiple.*32; use 96 or 128"):
        trainer(index, tmp_path, plain(image_size=100))
