"""Schedule, parameter groups, averaged model and the saved state, each against its definition."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from torch import nn

from yolov7.config import Ema, Optimizer
from yolov7.errors import ConfigError, TrainingError
from yolov7.train.ema import AveragedModel
from yolov7.train.optimizer import apply_settings, create_optimizer, freeze, parameter_groups
from yolov7.train.schedule import Schedule
from yolov7.train.state import StateFolder, TrainingState, prune


def published(**over) -> Schedule:
    return Schedule(optimizer=Optimizer(), **{"epochs": 300, "batches_per_epoch": 1000, "batch_size": 16, **over})


def test_cosine_and_linear_factors_follow_the_sheet():
    plan = published()
    assert plan.factor(0) == 1.0
    assert plan.factor(150) == pytest.approx(0.55)
    assert plan.factor(299) == pytest.approx((1 - math.cos(math.pi * 299 / 300)) / 2 * -0.9 + 1)
    linear = Schedule(optimizer=Optimizer(schedule="linear"), epochs=300, batches_per_epoch=10, batch_size=16)
    assert (linear.factor(0), linear.factor(299)) == (1.0, pytest.approx(0.1))
    options = Optimizer(schedule="linear", linear_reaches_end=False)
    later = Schedule(optimizer=options, epochs=300, batches_per_epoch=10, batch_size=16)
    assert (later.factor(0), later.factor(150), later.factor(300)) == (1.0, 0.55, pytest.approx(0.1))


def test_accumulation_and_decay_follow_the_nominal_batch():
    assert [published(batch_size=b).accumulate for b in (8, 16, 32, 64, 128)] == [8, 4, 2, 1, 1]
    assert published(batch_size=128).weight_decay == pytest.approx(0.001)
    assert published(batch_size=16).weight_decay == pytest.approx(0.0005)


def test_warm_up_interpolates_each_quantity():
    plan = published()
    assert plan.warmup == 3000
    start, middle, end, after = (plan.at(i) for i in (0, 1500, 3000, 3001))
    assert (start.learning_rate, start.bias_learning_rate, start.momentum, start.accumulate) == (0.0, 0.1, 0.8, 1)
    rate = 0.01 * plan.factor(1)
    assert middle.learning_rate == pytest.approx(rate / 2)
    assert middle.bias_learning_rate == pytest.approx((0.1 + rate) / 2)
    assert middle.momentum == pytest.approx((0.8 + 0.937) / 2)
    assert middle.accumulate == round((1 + 4) / 2)
    assert (end.momentum, end.accumulate) == (pytest.approx(0.937), 4)
    assert after.learning_rate == after.bias_learning_rate == pytest.approx(0.01 * plan.factor(3))


def test_a_short_run_leaves_its_warm_up():
    plan = published(epochs=4, batches_per_epoch=25)
    assert plan.warmup == 50


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)
        self.implicit = nn.Parameter(torch.zeros(1, 4, 1, 1))


def test_every_parameter_is_in_exactly_one_group():
    model = Tiny()
    groups = parameter_groups(model)
    assert set(groups.no_decay) == {"backbone.1.weight", "implicit"}
    assert set(groups.decay) == {"backbone.0.weight", "head.weight"}
    assert set(groups.bias) == {"backbone.1.bias", "head.bias"}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_settings_reach_the_groups_and_only_kernels_decay(name):
    optimizer = create_optimizer(Tiny(), Optimizer(name=name), weight_decay=0.001)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.001, 0.0]
    apply_settings(optimizer, published().at(0))
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0, 0.1]
    momentum = [g["momentum"] if name == "sgd" else g["betas"][0] for g in optimizer.param_groups]
    assert momentum == [0.8, 0.8, 0.8]


def test_freezing_by_name_and_a_name_that_is_not_there():
    model = Tiny()
    assert freeze(model, ["backbone"]) == [model.backbone]
    assert all(
        name.startswith(("head", "implicit")) for names in vars(parameter_groups(model)).values() for name in names
    )
    with pytest.raises(ConfigError, match=r"neck.*backbone, head"):
        freeze(model, ["neck"])
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is left"):
        create_optimizer(model, Optimizer(), weight_decay=0.0)


def test_average_follows_its_formula_for_weights_and_statistics():
    model = Tiny()
    average = AveragedModel(model, Ema(decay=0.9, ramp=3.0))
    expected = {k: v.double().clone() for k, v in model.state_dict().items() if v.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    for update in range(1, 6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor += torch.randn(tensor.shape, generator=generator)
                else:
                    tensor += 1
        average.update()
        d = 0.9 * (1 - math.exp(-update / 3.0))
        expected = {k: d * v + (1 - d) * model.state_dict()[k].double() for k, v in expected.items()}
    for name, value in expected.items():
        np.testing.assert_allclose(average.model.state_dict()[name].double(), value, rtol=1e-5, atol=1e-6)
    assert average.model.state_dict()["backbone.1.num_batches_tracked"] == 5


def test_without_averaging_the_copy_equals_the_model():
    model = Tiny()
    average = AveragedModel(model, Ema(enabled=False))
    with torch.no_grad():
        model.head.weight.add_(1.0)
    average.update()
    assert torch.equal(average.model.head.weight, model.head.weight)


def state(number: float) -> TrainingState:
    tensors = {"model.a": torch.full((3,), number), "ema.a": torch.zeros(2, dtype=torch.int64)}
    return TrainingState(tensors, {"position": {"epoch": number}})


def test_newest_complete_state_is_found_whatever_a_kill_left(tmp_path):
    folder = StateFolder(tmp_path, {"lr": 0.1})
    assert folder.newest() is None
    for iteration in (1, 2, 3):
        folder.save(state(iteration), iteration)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state-000000002.safetensors", "state-000000003.safetensors"]
    found = folder.newest()
    assert found.values["position"]["epoch"] == 3
    assert torch.equal(found.part("model")["a"], torch.full((3,), 3.0))
    newest = tmp_path / "state-000000003.safetensors"
    whole = newest.read_bytes()
    for size in (0, 7, 60, len(whole) // 2, len(whole) - 1):
        newest.write_bytes(whole[:size])
        assert folder.newest().values["position"]["epoch"] == 2
    (tmp_path / ".state-000000004-x.tmp.safetensors").write_bytes(whole[:50])
    assert folder.newest().values["position"]["epoch"] == 2
    assert not list(tmp_path.glob(".state*"))


def test_a_state_of_another_run_is_refused_with_the_difference(tmp_path):
    StateFolder(tmp_path, {"train": {"lr": 0.1}}).save(state(1), 1)
    with pytest.raises(TrainingError, match=r"train\.lr: was 0\.1, is now 0\.2"):
        StateFolder(tmp_path, {"train": {"lr": 0.2}}).newest()


def test_a_full_disk_leaves_the_state_before_and_says_what_to_free(tmp_path, monkeypatch):
    folder = StateFolder(tmp_path, {})
    folder.save(state(1), 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yolov7.train.state.save_file", full)
    with pytest.raises(TrainingError, match="disk is full; free at least"):
        folder.save(state(2), 2)
    assert folder.newest().values["position"]["epoch"] == 1


def test_old_runs_are_removed_but_never_the_current_one(tmp_path):
    folders = []
    for age, name in enumerate("abcd"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "state-000000001.safetensors").touch()
        os.utime(folder, (1000 + age, 1000 + age))
        folders.append(folder)
    (tmp_path / "refused").mkdir()  # newer than all, and without a state
    prune(tmp_path, 3, folders[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c", "d", "refused"]


def test_a_run_that_another_one_needs_is_kept_with_it(tmp_path):
    """b needs a, d needs c, f needs e, which is about to be trained again."""
    for age, name in enumerate("abcdefg"):
        needs = {"b": {"first": "a"}, "d": {"first": "c"}, "f": {"first": "e"}}.get(name, {})
        states = StateFolder(tmp_path / name, needs)
        states.save(TrainingState({}, {"position": {"finished": True}}), 1)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    prune(tmp_path, 3, tmp_path / "e")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "f", "g"]
    for age, name in enumerate("abcd"):
        states = StateFolder(tmp_path / name, {"b": {"first": "a"}, "d": {"first": "c"}}.get(name, {}))
        states.save(TrainingState({}, {"position": {"finished": True}}), 1)
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    os.utime(tmp_path / "d", (2000, 2000))
    prune(tmp_path, 2, tmp_path / "f", needs="e")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "d", "e", "f"]
