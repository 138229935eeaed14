"""Losses, gradients and statistics that are not finite: what is left out, what is kept, what the loss scale does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from distributed_worker import trainer
from small_training import training_data

from yolov7.errors import TrainingError
from yolov7.train.distributed import Processes

ONE_EPOCH = {"epochs": 1, "evaluate_every": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images, so that an epoch of batches of one has four."""
    base = tmp_path_factory.mktemp("nonfinite")
    training_data(base, 4)
    return base


def run(folder, states, *, window=1, **params):
    optimizer = {"nominal_batch": window, "learning_rate": 0.002, "warmup_iterations": 0, "warmup_epochs": 0}
    values = {**ONE_EPOCH, "batch_size": 1, "optimizer": optimizer, **params}
    return trainer(folder, states, Processes(), params=values)[0]


def breaking(run, batches, factor=math.nan):
    """The loss of these batches is multiplied."""
    plain = run.learner.criterion

    def criterion(*inputs):
        result = plain(*inputs)
        worth = factor if run.position.iteration in batches else 1.0
        return replace(result, total=result.total * worth)

    criterion.assign, criterion.levels = plain.assign, plain.levels
    run.learner.criterion.at = lambda epoch, epochs: criterion
    return run


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])


@pytest.mark.parametrize("bad", [1, 2], ids=["inside the window", "at its end"])
def test_a_bad_loss_takes_nothing_from_the_other_batches_of_its_window(folder, tmp_path, bad):
    # Windows of two batches end at iterations 0, 2 and 4.
    whole = run(folder, tmp_path / "whole", window=2)
    steps = []
    step = whole.learner.optimizer.step
    whole.learner.optimizer.step = lambda *a, **k: (steps.append(gradient(whole)), step(*a, **k))[1]
    # The same gradients, but for those of the bad batch, which are set to nothing.
    breaking(whole, {bad}, factor=0.0).fit()
    found = []
    broken = run(folder, tmp_path / "broken", window=2)
    broken_step = broken.learner.optimizer.step
    broken.learner.optimizer.step = lambda *a, **k: (found.append(gradient(broken)), broken_step(*a, **k))[1]
    breaking(broken, {bad}).fit()
    assert broken.position.skipped_steps == 1
    assert broken.learner.average.updates == whole.learner.average.updates == 2
    assert all(torch.equal(a, b) for a, b in zip(found, steps, strict=True))
    assert torch.equal(weights(broken), weights(whole))


def gradient(run):
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


def test_statistics_that_overflowed_are_those_of_the_average_again(folder, tmp_path):
    broken = breaking(run(folder, tmp_path), {2})
    network, norm = broken.learner.network.forward, broken.model.backbone.P2.down.bn

    def overflowing(images):
        raw = network(images)
        if broken.position.iteration == 2:
            norm.running_var.fill_(math.nan)
            norm.running_mean[0] = math.inf
        return raw

    broken.learner.network.forward = overflowing
    outcome = broken.fit()
    assert broken.position.skipped_steps == 1
    for state in (broken.model.state_dict(), broken.learner.average.model.state_dict()):
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert outcome.history[0]["val/AP"] > 0


def test_an_overflowing_gradient_halves_the_loss_scale_and_restarts_its_count(folder, tmp_path):
    scaled = run(folder, tmp_path)
    scaled.learner.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    seen = []
    plain = scaled._step

    def step(batch):
        before = weights(scaled)
        plain(batch)
        scale = scaled.learner.scaler.state_dict()
        seen.append((scale["scale"], scale["_growth_tracker"], not torch.equal(before, weights(scaled))))
        assert all(parameter.grad is None for parameter in scaled.model.parameters())

    scaled._step = step
    breaking(scaled, {1}, factor=1e38).fit()
    # The loss itself is finite, its gradient times the scale is not.
    assert seen == [(1024.0, 1, True), (512.0, 0, False), (512.0, 1, True), (512.0, 2, True)]
    assert (scaled.position.skipped_steps, scaled.position.bad_batches) == (1, 0)


def test_every_image_of_a_window_that_was_lost_is_named(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("yolov7.train.guard._SHOWN_IDS", 2)
    # The window of iterations 1 to 3, whose second batch overflows.
    lost = breaking(run(folder, tmp_path, window=3, max_bad_batches=0), {2}, factor=1e38)
    lost.learner.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ids = ", ".join(str(image) for number in (1, 2, 3) for image in lost.loader.image_ids(0, number))
    with pytest.raises(TrainingError, match=rf"a gradient is not finite; .* image ids {ids}\. Lower"):
        lost.fit()
    assert f"(image ids {ids[:8]} and 1 more)" in caplog.text


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_gradients_are_measured_tensor_by_tensor_on_devices_without_foreach(folder, tmp_path, monkeypatch, clip):
    measuring = run(folder, tmp_path, optimizer={"gradient_clip": clip})
    for parameter in measuring.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in measuring.model.parameters())
    # As on MPS, in its older versions.
    monkeypatch.setattr("torch.nn.utils.clip_grad._has_foreach_support", lambda tensors, device: False)
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda device: False)
    assert float(measuring.learner.clipped_norm()) == pytest.approx(count**0.5, rel=1e-5)
    assert float(gradient(measuring).norm()) == pytest.approx(clip or count**0.5, rel=1e-3)


def test_bad_batches_in_a_row_stop_the_run_and_a_good_one_between_them_does_not(folder, tmp_path):
    every_other = breaking(run(folder, tmp_path / "a", max_bad_batches=1), {0, 2})
    assert every_other.fit().skipped_steps == 2
    with pytest.raises(TrainingError, match=r"2 batches in a row were skipped.*image ids"):
        breaking(run(folder, tmp_path / "b", max_bad_batches=1), {1, 2}).fit()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
        MemoryError("Unable to allocate 3 GiB for an array"),
    ],
    ids=["cuda", "cpu", "mps", "numpy"],
)
def test_out_of_memory_in_evaluation_is_explained_too(folder, tmp_path, monkeypatch, error):
    evaluating = run(folder, tmp_path, batch_size=4)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("yolov7.train.validation.find_results", fail)
    with pytest.raises(TrainingError, match=r"an evaluation of 4 images at a time of 96 px; try train\.batch_size: 2"):
        evaluating.fit()
