"""Trainings of a small network with a teacher, and teachers that are refused."""

from __future__ import annotations

import copy
import functools
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_aligned import small_aligned, small_aligned_network
from small_detector import small_detector
from small_training import parameters, same_outcome, trainer, training_data
from torch import nn

from yolov7.config import AlignedLoss, Distillation, Train, identity_of, train_parameters
from yolov7.errors import ConfigError
from yolov7.files import sha256_file
from yolov7.loss import AlignedCriterion, loss_of_student, require_fit
from yolov7.model import ModelMetadata, create_model, load_checkpoint, save_checkpoint
from yolov7.model.heads.efficient import EfficientHead
from yolov7.model.quantized import quantized
from yolov7.model.trained import training_network
from yolov7.train.teacher import frozen, load_teacher, require_self_fits, student_parameters, teacher_parameters

NAMES = ("one", "two", "three")
TERMS = ("distill_classification", "distill_dfl", "distill_features")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def file(tmp_path_factory, data) -> Path:
    """A teacher for the classes of the data."""
    path = tmp_path_factory.mktemp("teacher") / "best.safetensors"
    model = small_aligned(len(data.class_names), seed=5)
    save_checkpoint(path, model, ModelMetadata.of(model, class_names=tuple(data.class_names)))
    return path


def student(data):
    return small_aligned(len(data.class_names)).train()


def taught(data, folder: Path, file: Path, *, model=None, distillation=None, **over):
    """A trainer with the teacher of this file."""
    given = {"features": 10.0, **(distillation or {})}
    params = parameters("yolov9", distill_from=str(file), distillation=given, **over)
    model = model or student(data)
    teacher = load_teacher(params, model.spec, data.class_names)
    return trainer(data, folder, params, model, teacher=teacher)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_a_training_with_a_teacher_leaves_it_as_it_was(data, tmp_path, file, statistics):
    run = taught(data, tmp_path, file, distillation={"statistics": statistics})
    teacher = run.learner.criterion.teacher
    before = copy.deepcopy(teacher.state_dict())
    outcome = run.fit()
    assert outcome.finished and outcome.skipped_steps == 0
    for row in outcome.history:
        assert all(row[f"train/{name}"] > 0 for name in TERMS), row
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    # The weights of the terms have fallen to 13 %, and the student has come nearer.
    assert outcome.history[-1]["train/distill_features"] < 0.5 * outcome.history[0]["train/distill_features"]


def test_the_teachers_statistics_are_those_of_the_batch_or_its_own():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = small_aligned()
    evaluated, trained = plain.raw(images), copy.deepcopy(plain).train().raw(images)
    batch, running = (frozen(copy.deepcopy(plain), name) for name in ("batch", "running"))
    assert all(torch.equal(a, b) for a, b in zip(running.raw(images), evaluated, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batch.raw(images), trained, strict=True))
    assert not torch.allclose(evaluated[0], trained[0])
    for name, buffer in batch.named_buffers():
        assert torch.equal(buffer, plain.get_buffer(name)), name


def test_a_student_that_is_its_teacher_has_nothing_to_learn(data, tmp_path, file):
    model = small_aligned(len(data.class_names), seed=5)
    learner = taught(data, tmp_path, file, model=model, batch_size=2).learner
    learner.train()  # both with the statistics of the batch
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loss = learner.criterion(learner.raw(images), torch.tensor([[0, 1, 10, 12, 40, 50.0]]))
    assert loss.parts["box"] > 0 and all(loss.parts[name] == 0 for name in TERMS)


def test_a_resumed_training_ends_with_the_bits_of_an_undisturbed_one(data, tmp_path, file):
    whole = taught(data, tmp_path / "whole", file).fit()
    asked = iter(range(100))
    params = {"checkpoint_minutes": 0.0}
    first = taught(data, tmp_path / "parts", file, **params)
    first.stop = lambda: next(asked) == 4
    assert not first.fit().finished
    states = list((tmp_path / "parts").glob("state-*.safetensors"))
    resumed = taught(data, tmp_path / "parts", file, **params).fit()
    assert states and same_outcome(whole, resumed)


def test_nothing_of_the_teacher_is_in_states_and_weights(data, tmp_path, file):
    run = taught(data, tmp_path, file, epochs=1)
    outcome = run.fit()
    alone = trainer(data, tmp_path / "alone", parameters("yolov9", epochs=1), student(data))
    expected = alone.fit()
    for ours, theirs in ((outcome.best, expected.best), (outcome.last, expected.last)):
        assert ours.stat().st_size == pytest.approx(theirs.stat().st_size, abs=200)
    state, other = (each.states.newest() for each in (run, alone))
    assert state.tensors.keys() == other.tensors.keys()
    assert run.learner.average.model.state_dict().keys() == run.model.state_dict().keys()


def test_in_half_precision(data, tmp_path, file):
    outcome = taught(data, tmp_path, file, epochs=1, precision="bfloat16").fit()
    (row,) = outcome.history
    assert outcome.skipped_steps == 0 and all(0 < row[f"train/{name}"] < 1e4 for name in TERMS)


@pytest.mark.slow
def test_a_compiled_network_has_the_same_maps(data, tmp_path, file, monkeypatch):
    # Traced whole but not made into machine code, which takes minutes: what could break is the tracing.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    eager, compiled = (taught(data, tmp_path, file, compile=how).learner for how in (False, True))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(compiled.raw(images), eager.raw(images), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_mode_of_the_student_is_not_that_of_the_teacher(data, tmp_path, file):
    learner = taught(data, tmp_path, file).learner
    network = learner.criterion.wrap(learner.model)
    norms = [module for module in network.teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    for mode in (True, False):
        network.train(mode)
        assert learner.model.training is mode and all(norm.training for norm in norms)
    assert not network.teacher.training


def test_distributions_beside_distances_are_learned_and_dropped(data, tmp_path):
    """N and S of 3.0: the student is deployed with distances, and learns the distributions of its teacher."""
    network = replace(small_aligned_network(), auxiliary=())
    teaching, learning = (
        replace(network, head=EfficientHead(lead=("T2", "SPP"), bins=bins, distributions=not bins)) for bins in (17, 0)
    )
    classes = len(data.class_names)
    teacher = create_model(teaching, classes, seed=1)
    for name, parameter in teacher.head.named_parameters():
        if "output" in name:  # fresh ones say the same everywhere
            nn.init.normal_(parameter.data, std=0.1, generator=torch.Generator().manual_seed(2))
    file = saved(tmp_path / "teacher.safetensors", teacher, data.class_names)
    outcome = taught(data, tmp_path / "run", file, model=create_model(learning, classes), epochs=2).fit()
    assert outcome.skipped_steps == 0
    for row in outcome.history:
        assert all(0 < row[f"train/{name}"] < 1e4 for name in ("box", "dfl", *TERMS)), row
    trained, _ = load_checkpoint(outcome.last)
    maps = trained.reparameterize().raw(torch.zeros(1, 3, 64, 64))
    assert [item.shape[1] for item in maps] == [4 + classes] * 2


@pytest.mark.parametrize(
    ("recipe", "given", "teacher", "student"),
    [
        ("yolov6v3-n", {"head": {"distributions": True}}, 1.0, 0.0),  # published: the student's sum has no bound
        ("yolov6v3-m", {"loss": {"least_score_sum": 2.0}}, 2.0, 2.0),
        ("yolov6v3-m", {"distillation": {"least_score_sum": None}}, 1.0, 1.0),
        ("yolov6-m", {}, 0.0, 0.0),
        ("yolov9", {}, 1.0, 1.0),
    ],
)
def test_the_bound_of_the_score_sum_is_that_of_the_students_release(recipe, given, teacher, student):
    """A batch whose target scores add up to 0.1: a bound of 1 makes its loss ten times smaller."""
    both = train_parameters({"distill_from": "self", **given}, recipe=recipe)
    first, second = teacher_parameters(both), student_parameters(both, "best.safetensors", "0" * 64)
    assert divisor(first.loss) == pytest.approx(teacher or 0.1)
    assert divisor(loss_of_student(second.loss, second.distillation)) == pytest.approx(student or 0.1)


def divisor(loss: AlignedLoss) -> float:
    """Of the sums of a head with target scores of 0.1 in all."""
    criterion = AlignedCriterion(loss, strides=(8,), num_classes=2, bins=0)
    _, share = criterion._shares(1, 1, torch.tensor([0]), torch.tensor([0.1]))
    return 1 / share.item()


def test_a_training_with_a_teacher_has_the_students_bound(data, tmp_path, file):
    bound, free = (
        taught(data, tmp_path / str(least), file, distillation={"least_score_sum": least}).learner.criterion
        for least in (None, 0.0)
    )
    assert (bound.labels.options.least_score_sum, free.labels.options.least_score_sum) == (None, 0.0)
    params = parameters("yolov9", distillation={"least_score_sum": 0.0})
    alone = trainer(data, tmp_path / "alone", params, student(data)).learner.criterion
    assert alone.options.least_score_sum is None


# Files that are refused ----------------------------------------------------------------------------------------------


def refused(data, path: Path, model=None, **more) -> str:
    params = parameters("yolov9", distill_from=str(path), **more)
    with pytest.raises(ConfigError) as caught:
        load_teacher(params, (model or student(data)).spec, data.class_names)
    message = str(caught.value)
    assert message.startswith("train.distill_from: ") and "\n" not in message
    return message


def saved(path: Path, model, names) -> Path:
    save_checkpoint(path, model, ModelMetadata.of(model, class_names=tuple(names)))
    return path


def test_files_that_are_no_teacher(data, tmp_path, file):
    assert "no such file" in refused(data, tmp_path / "absent.safetensors")
    assert "a .safetensors file is expected" in refused(data, tmp_path / "teacher.pt")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    assert "damaged" in refused(data, tmp_path / "damaged.safetensors")
    digest = sha256_file(file)
    assert load_teacher(
        parameters("yolov9", distill_from=str(file), distill_sha256=digest), student(data).spec, data.class_names
    )
    assert f"has the sha256 {digest}" in refused(data, file, distill_sha256="0" * 64)


def test_teachers_of_other_classes(data, tmp_path):
    names = list(data.class_names)
    more = saved(tmp_path / "more.safetensors", small_aligned(len(names) + 1), [*names, "more"])
    assert f"the teacher has {len(names) + 1} classes, the data have {len(names)}" in refused(data, more)
    turned = saved(tmp_path / "turned.safetensors", small_aligned(len(names)), names[::-1])
    assert "in another order" in refused(data, turned)
    other = saved(tmp_path / "other.safetensors", small_aligned(len(names)), [*names[:-1], "zebra"])
    assert f"does not know these classes of the data: {names[-1]}" in refused(data, other)


def test_a_teacher_in_deploy_form_has_running_statistics_only(data, tmp_path):
    path = saved(
        tmp_path / "deploy.safetensors", small_aligned(len(data.class_names)).reparameterize(), data.class_names
    )
    assert "in deploy form, which has no batch norms" in refused(data, path)
    params = parameters("yolov9", distill_from=str(path), distillation={"statistics": "running"})
    assert load_teacher(params, student(data).spec, data.class_names).form == "deploy"


def test_a_teacher_in_quantised_form_has_no_statistics_of_a_batch_either(data, tmp_path):
    form = quantized(small_aligned(len(data.class_names)))
    path = saved(tmp_path / "quantized.safetensors", form, data.class_names)
    assert "in quantized form, which has no batch norms" in refused(data, path)


def test_a_teacher_that_does_not_fit_is_named_with_its_file(data, file):
    assert "has a head with anchors" in refused(data, file, small_detector())


def test_without_a_teacher():
    assert load_teacher(Train(), small_aligned().spec, NAMES) is None


def test_one_class_is_told(tmp_path, caplog):
    path = saved(tmp_path / "one.safetensors", small_aligned(1), NAMES[:1])
    with caplog.at_level(logging.INFO):
        assert load_teacher(parameters("yolov9", distill_from=str(path)), small_aligned(1).spec, NAMES[:1])
    assert "distillation of the classes has no effect: there is one class" in caplog.text


# Two trainings -------------------------------------------------------------------------------------------------------


def test_the_first_of_two_trainings_is_one_without_a_teacher(tmp_path):
    plain = parameters("yolov9")
    both = parameters("yolov9", distill_from="self", distillation={"features": 1.0})
    assert identity_of(teacher_parameters(both)) == identity_of(plain)
    second = student_parameters(both, tmp_path / "best.safetensors", "0" * 64)
    assert second.distill_from == str(tmp_path / "best.safetensors") and second.distillation == both.distillation


def of_yolov6(variant: str, **values) -> Train:
    return train_parameters({"distill_from": "self", **values}, recipe=variant)


@pytest.mark.parametrize(
    ("variant", "head", "teacher", "student"),
    [
        ("yolov6-n", {}, (0, False, False), (0, False, False)),
        ("yolov6-n", {"bins": 17}, (17, False, False), (17, False, False)),
        ("yolov6-m", {}, (17, False, False), (17, False, False)),
        ("yolov6v3-n", {"distributions": True}, (17, True, False), (0, False, True)),
        ("yolov6v3-l", {}, (17, True, False), (17, False, False)),
    ],
)
def test_the_heads_of_the_two_trainings_are_the_published_ones(variant, head, teacher, student):
    params = of_yolov6(variant, head=head)
    require_self_fits(variant, params)
    both = teacher_parameters(params), student_parameters(params, "best.safetensors", "0" * 64)
    heads = [training_network(variant, each).head for each in both]
    assert [(each.bins, each.anchor_aided, each.distributions) for each in heads] == [teacher, student]


def test_a_second_training_that_could_not_use_the_first_is_refused():
    with pytest.raises(ConfigError, match=r"distillation\.dfl: 1, but yolov6-s predicts distances"):
        require_self_fits("yolov6-s", of_yolov6("yolov6-s", distillation={"dfl": 1.0}))
    with pytest.raises(ConfigError, match="yolov7-tiny has a head with anchors"):
        require_self_fits("yolov7-tiny", train_parameters({"distill_from": "self"}))
    require_self_fits("yolov7-tiny", train_parameters({}))


def test_an_anchor_aided_student_is_refused_with_a_named_teacher():
    aided = training_network("yolov6v3-m", of_yolov6("yolov6v3-m"))
    with pytest.raises(ConfigError, match=r"head\.anchor_aided: yolov6v3-m: .* cannot be combined with distillation"):
        require_fit(aided, aided, Distillation())
