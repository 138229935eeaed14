"""Quantisation-aware trainings of small networks: what they learn from, where they begin, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_aligned import small_aligned
from small_detector import metadata_of, small_detector
from small_rep import BLOCKS
from small_training import Watcher, parameters, same_outcome, trainer, training_data

import yolov7.train.quantization
from yolov7.config import Quantization, Train, quantization_settings
from yolov7.data.annotated import read_annotated
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.files import sha256_file
from yolov7.loss.divergence import channel_divergence
from yolov7.model import ModelMetadata, load_checkpoint, save_checkpoint
from yolov7.model.quantized import learnt_ranges
from yolov7.model.rep_optimizer import read_scales
from yolov7.train.initial import initial_model
from yolov7.train.quantization import quantization_parameters, student_and_teacher, write_quantized

QUICK = {"epochs": 2, "calibration_images": 2, "optimizer": {"nominal_batch": 4}}
FEATURES = "distill_features"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def files(tmp_path_factory, data):
    """Float networks of two families, trained for the classes of the data."""
    folder, found = tmp_path_factory.mktemp("float"), {}
    for recipe, model in {"p5": small_detector(), "yolov9": small_aligned(len(data.class_names))}.items():
        found[recipe] = folder / f"{recipe}.safetensors"
        names, ids = tuple(data.class_names), tuple(data.category_ids)
        size = {"class_names": names, "category_ids": ids, "image_size": metadata_of(model).image_size}
        save_checkpoint(found[recipe], model, ModelMetadata.of(model, **size))
    return found


def begun(data, folder: Path, file: Path, recipe: str, *, train: Train | None = None, more=None, **settings):
    """A trainer of the quantised form of this file's network."""
    chosen = quantization_settings({**QUICK, **settings})
    params = train or quantization_parameters(parameters(recipe), chosen)
    student, teacher, metadata = student_and_teacher(file, chosen, data)
    given = {"teacher": teacher, "metadata": metadata, "evaluate_first": True, **(more or {})}
    return trainer(data, folder, params, student, **given)


@pytest.mark.parametrize("recipe", ["p5", "yolov9"])
def test_it_begins_with_the_calibrated_network_and_keeps_the_better_one(data, tmp_path, files, recipe):
    watcher = Watcher()
    outcome = begun(data, tmp_path, files[recipe], recipe, more={"listeners": [watcher]}).fit()
    assert outcome.finished and len(outcome.history) == 2 and "val/AP" in outcome.start
    assert outcome.best_ap == max(outcome.start["val/AP"], *(row["val/AP"] for row in outcome.history))
    assert any("before the first epoch" in note for note in watcher.notes)
    best, metadata = load_checkpoint(outcome.best)
    last, _ = load_checkpoint(outcome.last)
    assert best.form == last.form == metadata.form == "quantized"
    assert metadata.extra["val"]["val/AP"] == outcome.best_ap
    start = student_and_teacher(files[recipe], quantization_settings(QUICK), data)[0]
    assert learnt_ranges(last) != learnt_ranges(start)
    names = set(outcome.history[0])
    assert {f"train/{FEATURES}"} <= names
    assert ("train/distill_classification" in names) is (recipe == "yolov9")

    figures = write_quantized(tmp_path / "out", outcome, parameters(recipe), torch.device("cpu"), title="small")
    rows = (tmp_path / "out/history.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[1].startswith("-1,")
    assert figures["calibrated_val_AP"] == outcome.start["val/AP"] and figures["val_AP"] == outcome.best_ap
    assert load_checkpoint(tmp_path / "out/quantized.safetensors")[0].form == "quantized"


def test_a_training_that_only_harms_leaves_the_calibrated_network(data, tmp_path, files):
    outcome = begun(data, tmp_path, files["p5"], "p5", optimizer={"nominal_batch": 4, "learning_rate": 10.0}).fit()
    start = student_and_teacher(files["p5"], quantization_settings(QUICK), data)[0].state_dict()
    best = load_checkpoint(outcome.best)[0].state_dict()
    assert outcome.best_epoch == -1 and outcome.best_ap == outcome.start["val/AP"]
    assert all(torch.equal(start[name], best[name]) for name in start)
    figures = write_quantized(tmp_path / "out", outcome, parameters(epochs=2), torch.device("cpu"), title="small")
    assert figures["best_epoch"] == 0 and "| best epoch | none of 2 |" in (tmp_path / "out/summary.md").read_text()


class Killed(BaseException):
    """Ends a training as a kill does."""


@pytest.mark.parametrize("recipe", ["p5", "yolov9"])
def test_a_kill_in_the_middle_changes_nothing(data, tmp_path, files, recipe):
    undisturbed = begun(data, tmp_path / "a", files[recipe], recipe).fit()
    train = quantization_parameters(parameters(recipe), quantization_settings(QUICK))
    often = train.model_copy(update={"checkpoint_minutes": 0.0})  # saved after every batch

    def kill_at(iteration):
        def step(report):
            if report.epoch * report.batches + report.batch >= iteration:
                raise Killed

        return {"listeners": [Watcher(step)]}

    for iteration in (1, 4):
        with pytest.raises(Killed):
            begun(data, tmp_path / "b", files[recipe], recipe, train=often, more=kill_at(iteration)).fit()
    resumed = begun(data, tmp_path / "b", files[recipe], recipe, train=often).fit()
    assert same_outcome(undisturbed, resumed) and undisturbed.start == resumed.start


def test_a_stop_before_the_first_figures_resumes_there(data, tmp_path, files):
    first = begun(data, tmp_path, files["p5"], "p5", more={"stop": lambda: True, "val_index": data}).fit()
    assert not first.finished and not first.start and not first.history
    assert begun(data, tmp_path, files["p5"], "p5").fit().finished


def test_the_loss_is_that_of_the_labels_and_of_the_features(data, tmp_path, files):
    run = begun(data, tmp_path, files["p5"], "p5")
    criterion, batch = run.learner.criterion.at(0, 2), next(iter(run.loader.epoch(0, 0)))
    images, targets = run._on_device(batch)
    raw = run.learner.raw(images)
    loss = criterion(raw, targets, images)
    ours, theirs = run.model.raw_and_features(images)[1], criterion.teacher.features(images)
    term = sum(float(channel_divergence(ours[name], theirs[name]).detach()) for name in criterion.names) / len(images)
    assert term > 0 and float(loss.parts[FEATURES]) == pytest.approx(10 * term, rel=1e-4)
    labels = criterion.labels(raw[: -2 * len(criterion.names)], targets, images)
    assert float(loss.total.detach()) == pytest.approx(float(labels.total.detach()) + 10 * term * len(images), rel=1e-4)
    assert float(run.learner.criterion.at(1, 2).factor) == pytest.approx(0.505)
    silent = begun(data, tmp_path / "b", files["p5"], "p5", distillation={"features": 0.0})
    assert FEATURES not in silent.learner.criterion.parts


@pytest.mark.parametrize(("settings", "trained", "expected"), [({}, 4, 0), ({"preset": "yolov6"}, 4, 4)])
def test_a_trained_network_assigns_as_at_its_end_unless_published_otherwise(settings, trained, expected):
    train = parameters("yolov6-s", loss={"atss_epochs": trained})
    params = quantization_parameters(train, quantization_settings(settings))
    assert params.loss == train.loss.model_copy(update={"atss_epochs": expected})
    never = parameters("yolov6-s", loss={"atss_epochs": 0})
    assert quantization_parameters(never, quantization_settings(settings)).loss == never.loss


def test_the_network_is_trained_as_it_is_deployed(files, data):
    settings = quantization_settings({**QUICK, "close_mosaic_epochs": 1})
    train = parameters("yolov9", pgi="", freeze=("backbone",), patience=5, distill_from="self")
    params = quantization_parameters(train, settings)
    assert (params.distill_from, params.freeze, params.patience, params.evaluate_every) == ("", (), 0, 1)
    assert params.augment.close_mosaic_epochs == 1 and params.loss == train.loss and params.epochs == 2
    assert params.distillation.features == 10 and params.distillation.dfl == 0
    student, teacher, _ = student_and_teacher(files["yolov9"], settings, data)
    assert teacher.form == "deploy" and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not student.has_auxiliary and student.spec.auxiliary == ()


def test_masks_of_rep_optimizer_stay_on_the_folded_kernels(data, tmp_path):
    sgd = {"name": "sgd", "learning_rate": 0.01, "nominal_batch": 4, "warmup_epochs": 0, "warmup_iterations": 0}
    network = {"network": "small_rep:small_rep_network", "optimizer": sgd}
    search = parameters(**network, epochs=1, rep_optimizer="hyper-search")
    scales = trainer(data, tmp_path / "s", search, initial_model("small-rep", search, data)).fit().last
    found = {"scales": str(scales), "scales_sha256": sha256_file(scales)}
    target = parameters(**network, epochs=1, rep_optimizer="target", **found)
    weights = trainer(data, tmp_path / "t", target, initial_model("small-rep", target, data)).fit().last
    settings = quantization_settings({**QUICK, "optimizer": {**sgd, "learning_rate": 1e-4}})
    params = quantization_parameters(target, settings, scales=(str(scales), found["scales_sha256"]))
    run = begun(data, tmp_path / "q", weights, "p5", train=params)
    for parameter in run.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    run.learner.masks.apply()
    blocks = read_scales(scales)
    for name, parameter in run.model.named_parameters():
        block = blocks.get(name.removesuffix(".conv.weight"))
        wanted = torch.ones_like(parameter) if block is None else block.mask(parameter.detach())
        torch.testing.assert_close(parameter.grad, wanted)
    assert {name for name in BLOCKS if f"{name}.conv.weight" in dict(run.model.named_parameters())} == set(BLOCKS)


def test_published_settings_and_ours():
    published = quantization_settings({"preset": "yolov6", "epochs": 3})
    assert (published.optimizer.name, published.optimizer.learning_rate, published.epochs) == ("sgd", 1e-5, 3)
    assert published.optimizer.learning_rate * published.optimizer.final_factor == pytest.approx(1e-8)
    assert quantization_settings({}) == Quantization()
    assert quantization_settings({"optimizer": {"learning_rate": 0.5}}).optimizer.name == "adamw"
    for values, message in (
        ({"epoch": 3}, r"quantization.epoch: unknown key \(did you mean 'epochs'\?\)"),
        ({"distillation": {"statistics": "batch"}}, "set it to running"),
        ({"distillation": {"dfl": 1.0}}, "set it to 0"),
        ({"preset": "yolov9"}, "quantization.preset"),
    ):
        with pytest.raises(ConfigError, match=message):
            quantization_settings(values)


def test_calibration_images_that_show_nothing_are_refused_and_equal_ones_warned_of(data, files, monkeypatch, caplog):
    settings, read = quantization_settings({**QUICK, "calibration_images": 3}), read_annotated
    student_and_teacher(files["p5"], settings, data)
    assert "calibration images" not in caplog.text
    monkeypatch.setattr(yolov7.train.quantization, "read_annotated", lambda index, _: read(index, 0))
    student_and_teacher(files["p5"], settings, data)
    assert "quantization: the 3 calibration images are all the same" in caplog.text
    plain = np.full((8, 8, 3), 7, np.uint8)
    monkeypatch.setattr(yolov7.train.quantization, "read_annotated", lambda index, _: plain)
    with pytest.raises(DataError, match=r"^quantization: the 3 calibration images are of a single colour each"):
        student_and_teacher(files["p5"], settings, data)


def test_what_cannot_be_trained_is_refused_in_one_line(data, tmp_path, files):
    settings = quantization_settings(QUICK)
    path = tmp_path / "x.safetensors"
    with pytest.raises(ModelError, match="no such file"):
        student_and_teacher(path, settings, data)
    student, _, metadata = student_and_teacher(files["p5"], settings, data)
    save_checkpoint(path, student, metadata)
    with pytest.raises(ConfigError, match="is quantised already"):
        student_and_teacher(path, settings, data)
    model = small_detector(2)
    save_checkpoint(path, model, metadata_of(model))
    with pytest.raises(ConfigError, match="its classes are not those of the data"):
        student_and_teacher(path, settings, data)
    model = small_detector()
    with torch.no_grad():
        model.backbone.P2.down.conv.weight.fill_(1e38)  # finite, but what it computes is not
    save_checkpoint(path, model, metadata_of(model))
    with pytest.raises(ModelError, match="not finite"):
        student_and_teacher(path, settings, data)
