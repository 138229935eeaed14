"""Whatever a YOLOv7 can be trained with, a YOLOv9 can: on a small GELAN with an auxiliary branch, and on T itself."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_detector import SIDE
from small_gelan import small_gelan_detector
from small_training import Watcher, parameters, same_outcome, trainer, training_data

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import build_index
from yolov7.loss import create_criterion
from yolov7.model import create_model, load_checkpoint
from yolov7.train.loop import Trainer
from yolov7.train.pictures import draw_assignment


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Four images: an epoch of two batches, which is an accumulation window."""
    return training_data(tmp_path_factory.mktemp("yolov9"), 4)


def run(index, folder, model=None, on=None, **over) -> Trainer:
    """`on` are the parts of the trainer."""
    params = parameters("yolov9", **{"epochs": 1, **over})
    return trainer(index, folder, params, model or small_gelan_detector(), **(on or {}))


def curve(index, folder, model=None, **over) -> list[dict[str, float]]:
    """Parts of the loss, batch by batch."""
    watcher = Watcher()
    assert run(index, folder, model, {"listeners": [watcher]}, **over).fit().finished
    return [report.losses for report in watcher.reports]


@pytest.fixture(scope="module")
def plain(index, tmp_path_factory):
    return curve(index, tmp_path_factory.mktemp("plain"), epochs=2, evaluate_every=2)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gelan-t", "yolov9-t"])
def test_a_run_stopped_inside_a_window_ends_with_the_bits_of_one_that_was_not(index, tmp_path, variant):
    small = {"image_size": 64, "batch_size": 1, "preset": "yolov9"}

    def fit(folder, **on):
        return run(index, tmp_path / folder, create_model(variant, 3), on, **small).fit()

    calls = iter(range(9))
    assert not fit("pieces", stop=lambda: next(calls) == 1).finished
    assert same_outcome(fit("pieces"), fit("whole"))


def test_bfloat16_changes_the_losses_by_its_rounding_alone(index, tmp_path, plain):
    half = curve(index, tmp_path, epochs=2, evaluate_every=2, precision="bfloat16")
    assert len(half) == len(plain) == 4 and half != plain
    for ours, exact in zip(half, plain, strict=True):
        assert ours == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
def test_a_compiled_network_has_the_same_losses(index, tmp_path, monkeypatch):
    # Traced but not made into machine code, which takes a minute: what could break is the tracing.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    (eager,), (compiled,) = (
        curve(index, tmp_path / str(how), small_gelan_detector(part="pfh"), batch_size=4, compile=how)
        for how in (False, True)
    )
    assert compiled == pytest.approx(eager, rel=5e-5)


def test_class_weights_and_sampling_reach_the_training(index, tmp_path, plain):
    weighed = curve(index, tmp_path / "a", class_weights={"kind 0": 9.0, "kind 1": 9.0, "kind 2": 9.0})
    (first, *_), (other, *_) = plain, weighed
    assert other["classification"] > first["classification"]
    assert (other["box"], other["dfl"]) == (first["box"], first["dfl"])
    drawn = run(index, tmp_path / "b", image_sampling="class_balanced")
    seen = [image for epoch in range(6) for batch in drawn.loader.epoch(epoch) for image in batch.image_ids]
    assert len(seen) == 24 and len(set(seen[:4])) + len(set(seen[4:8])) + len(set(seen[8:12])) < 12


def test_several_scales_train_at_multiples_of_the_largest_stride(index, tmp_path):
    scaled = run(index, tmp_path, multi_scale=True, epochs=3, evaluate_every=3)
    sides, raw = set(), scaled.model.raw
    scaled.model.raw = lambda images: (sides.add(images.shape[-1]), raw(images))[1]
    assert scaled.fit().finished
    assert len(sides) > 1 and all(side % 32 == 0 and SIDE // 2 - 32 < side < SIDE * 3 // 2 + 32 for side in sides)


@pytest.mark.parametrize(
    ("frozen", "trained"),
    [
        (["backbone"], {"neck", "head.lead", "head.auxiliary", "auxiliary"}),
        (["auxiliary", "head.auxiliary"], {"backbone", "neck", "head.lead"}),
    ],
    ids=["backbone", "branch"],
)
def test_frozen_parts_keep_weights_and_statistics(index, tmp_path, frozen, trained):
    model = small_gelan_detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(index, tmp_path, model, freeze=frozen).fit()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    found = {".".join(name.split(".")[: 1 + name.startswith("head.")]) for name in changed}
    assert found == trained


def test_pictures_show_the_matches_of_the_main_head(index, tmp_path):
    watcher = Watcher()
    drawn = run(index, tmp_path, on={"listeners": [watcher]})
    assigned, original = [], drawn.learner.criterion.assign
    drawn.learner.criterion.assign = lambda raw, targets: assigned.append(original(raw, targets)) or assigned[-1]
    drawn.fit()
    assert len(watcher.pictured) == len(assigned) == 2
    for batch, positives in zip(watcher.pictured, assigned, strict=True):
        assert [level.stride for level in batch.levels] == [8, 16, 32] and len(batch.positives) == 3
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(batch.positives, positives, strict=True))
    assert sum(level.shape[1] for batch in watcher.pictured for level in batch.positives) > 0
    draw_assignment(watcher.pictured[0], ["a", "b", "c"], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_images_without_objects_are_learned_as_background(index, tmp_path):
    records = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(2)]
    for record in records:
        (tmp_path / record["file_name"]).write_bytes((index.folder.parent / "0.png").read_bytes())
    categories = [{"id": i, "name": name} for i, name in zip(index.category_ids, index.class_names, strict=True)]
    empty = build_index(CocoAnnotations(tmp_path / "a.json", records, [], categories), tmp_path, tmp_path / "index")
    outcome = run(empty, tmp_path / "states", epochs=2, evaluate_every=2).fit()
    for row in outcome.history:
        assert row["train/box"] == row["train/dfl"] == 0.0 < row["train/classification"] < math.inf
    assert outcome.skipped_steps == 0 and outcome.best.is_file()


def test_a_bad_loss_is_skipped_and_counted(index, tmp_path):
    broken = run(index, tmp_path, epochs=2, evaluate_every=2)
    criterion = broken.learner.criterion

    def sometimes(raw, targets, images=None):
        result = criterion(raw, targets, images)
        return replace(result, total=result.total * (math.nan if broken.position.iteration == 1 else 1.0))

    sometimes.assign, sometimes.levels = criterion.assign, criterion.levels
    criterion.at = lambda epoch, epochs: sometimes
    outcome = broken.fit()
    assert outcome.skipped_steps == 1
    assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(outcome.last)[0].state_dict().values())


def test_gradients_are_clipped_to_the_recipes_norm(index, tmp_path):
    clipped = run(index, tmp_path, preset="yolov9")
    for parameter in clipped.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert float(clipped.learner.clipped_norm()) > 10
    kept = [p.grad for group in clipped.learner.optimizer.param_groups for p in group["params"]]
    assert float(torch.nn.utils.get_total_norm(kept)) == pytest.approx(10.0, rel=1e-4)


def test_every_trained_parameter_gets_a_gradient():
    """A process of several would wait for one that has none."""
    model = small_gelan_detector(part="icn").train()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(0, 6)
    for rows in (torch.tensor([[0.0, 0, 10, 10, 60, 60]]), nothing):
        model.zero_grad()
        create_criterion(model, image_size=SIDE)(model.raw(images), rows).total.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
    assert np.isfinite([float(p.grad.norm()) for p in model.parameters() if p.requires_grad]).all()
