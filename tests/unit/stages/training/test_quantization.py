"""The quantize stage: off, on, resumed after a kill, and refused; and what the export takes from it."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_detector import SIDE, metadata_of, small_detector
from small_training import same_weights, training_data

import stages.quantize
import stages.training.quantization
import stages.training.run
from stages.export import quantized_file
from stages.project.params import Params
from stages.registry.journal import JOURNALS, RunJournal
from stages.training.quantization import QuantizationRun, scales_for
from stages.training.run import STATES
from yolov7.config import quantization_settings
from yolov7.errors import ConfigError, DataError, TrainingError
from yolov7.files import sha256_file, write_json
from yolov7.model import ModelMetadata, load_checkpoint, save_checkpoint
from yolov7.train.identity import fingerprint, run_identity
from yolov7.train.state import StateFolder, TrainingState

VARIANT = "yolov7-tiny"
ARGUMENTS = argparse.Namespace(variant=VARIANT, fresh=False)
TRAIN = {
    "preset": "small",
    "cache": "none",
    "image_size": SIDE,
    "batch_size": 2,
    "epochs": 3,
    "checkpoint_minutes": 0.0,
    "augment": {"mosaic": 0.0},
}
OUT = Path("models") / VARIANT / "quantized"
WEIGHTS = Path("models") / VARIANT / "train/best.safetensors"


class Killed(BaseException):
    """Ends a training as a kill does."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("images"))


@pytest.fixture
def project(tmp_path, images, monkeypatch):
    """A workspace with data and a trained network, whose MLflow is away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunJournal, "deliver", lambda self, force=False: False)
    monkeypatch.setenv("YOLOV7_DEVICE", "cpu")
    monkeypatch.setattr(stages.training.run, "open_index", lambda split: images)
    monkeypatch.setattr(stages.training.quantization, "dataset_document", lambda: {"sha256": "d" * 64})
    give_weights(images)
    return tmp_path


def give_weights(images, seed=0):
    model = small_detector(len(images.class_names), seed=seed)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    names, ids = tuple(images.class_names), tuple(images.category_ids)
    save_checkpoint(WEIGHTS, model, ModelMetadata.of(model, class_names=names, category_ids=ids, image_size=SIDE))
    write_json(WEIGHTS.with_name("run.json"), {"fingerprint": "f" * 12, "run_id": "abc"})


def params_with(train=None, **quantization) -> Params:
    settings = {"enabled": True, "epochs": 2, "calibration_images": 2, **quantization}
    values = {"variants": (VARIANT,), "train": {**TRAIN, **(train or {})}, "per_variant": {VARIANT: {}}}
    return Params.model_validate({**values, "quantization": settings})


def quantize(**quantization):
    stages.quantize.main(params_with(**quantization), ARGUMENTS)


def test_off_it_writes_a_document_and_nothing_else(project):
    OUT.mkdir()
    (OUT / "quantized.safetensors").write_text("of an earlier run")
    quantize(enabled=False)
    assert [path.name for path in OUT.iterdir()] == ["quantization.json"]
    assert json.loads((OUT / "quantization.json").read_text()) == {"enabled": False}
    assert quantized_file(VARIANT, WEIGHTS) is None and not STATES.exists()


def test_a_network_that_no_int8_file_would_be_made_of_is_named_before_it_is_trained(project, monkeypatch, caplog):
    monkeypatch.setattr(stages.quantize, "_train", lambda *_: None)
    caplog.set_level(logging.WARNING, "stages.quantize")
    quantize()
    assert f"{VARIANT}: params.yaml: export.formats has no int8 format" in caplog.text
    caplog.clear()
    params = params_with()
    export = params.export.model_copy(update={"formats": ("openvino-int8",)})
    stages.quantize.main(params.model_copy(update={"export": export}), ARGUMENTS)
    assert not caplog.text


@pytest.mark.slow
def test_it_trains_resumes_after_a_kill_and_records(project, monkeypatch, tmp_path):
    quantize()
    model, metadata = load_checkpoint(OUT / "quantized.safetensors")
    assert model.form == metadata.form == "quantized"
    document, run = (json.loads((OUT / name).read_text()) for name in ("quantization.json", "run.json"))
    assert document["enabled"] and document["val_AP"] >= document["calibrated_val_AP"]
    assert run["float"] == {"sha256": sha256_file(WEIGHTS), "run_id": "abc"}
    (folder,) = (STATES / f"{VARIANT}.quantized").iterdir()
    assert run["fingerprint"] == folder.name
    journal = JOURNALS / f"{VARIANT}.quantized-{folder.name}.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    tags = {k: v for event in events if event["kind"] == "tags" for k, v in event["values"].items()}
    assert tags["float_run"] == "abc" and tags["float_sha256"] == sha256_file(WEIGHTS) and tags["role"] == "quantized"
    assert events[-1]["kind"] == "end"
    assert quantized_file(VARIANT, WEIGHTS) == OUT / "quantized.safetensors"

    for name in (".state", str(OUT)):
        shutil.move(name, tmp_path / f"undisturbed-{Path(name).name}")
    for saves in (3, 4):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, saves)
            quantize()
        assert not OUT.exists()
    quantize()
    other = tmp_path / "undisturbed-quantized"
    assert same_weights(OUT / "quantized.safetensors", other / "quantized.safetensors")
    assert (OUT / "quantization.json").read_text() == (other / "quantization.json").read_text()
    again = (OUT / "run.json").read_bytes()
    quantize()  # finished: the outputs are written again, and nothing is trained
    assert (OUT / "run.json").read_bytes() == again


def killed_at(monkeypatch, saves):
    left, save = saves, StateFolder.save

    def counted(self, *arguments):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return save(self, *arguments)

    monkeypatch.setattr(StateFolder, "save", counted)


def test_the_run_is_that_of_weights_data_and_settings(project, images):
    def key(**quantization):
        return QuantizationRun.prepared(params_with(**quantization), VARIANT).key

    first = key()
    assert first == key() == key(masks=False, per_variant={"yolov9-t": {"epochs": 9}})
    others = {
        key(epochs=3),
        key(method="max"),
        key(calibration_images=1),
        key(distillation={"features": 1.0}),
        key(optimizer={"learning_rate": 0.5}),
        key(per_variant={VARIANT: {"epochs": 9}}),
        key(train={"augment": {"mosaic": 1.0}}),
    }
    give_weights(images, seed=1)
    assert len(others | {key(), first}) == 9


def test_a_stopped_run_bars_other_settings_but_not_new_weights(project, images):
    stopped = QuantizationRun.prepared(params_with(), VARIANT)
    stopped.states.save(TrainingState({}, {"position": {"finished": False}}), 1)
    expected = r"\(quantization\.epochs: was 2, is now 3\).*stages.quantize .*--fresh"
    with pytest.raises(TrainingError, match=expected):
        QuantizationRun.prepared(params_with(epochs=3), VARIANT).prepare(fresh=False)
    with pytest.raises(TrainingError, match=r"\(quantization\.optimizer\.learning_rate: was 2e-05, is now 0\.5\)"):
        QuantizationRun.prepared(params_with(optimizer={"learning_rate": 0.5}), VARIANT).prepare(fresh=False)
    with pytest.raises(TrainingError, match=r"\(train\.augment\.mosaic: was 0\.0, is now 1\.0\)"):
        QuantizationRun.prepared(params_with(train={"augment": {"mosaic": 1.0}}), VARIANT).prepare(fresh=False)
    give_weights(images, seed=1)
    run = QuantizationRun.prepared(params_with(epochs=3), VARIANT)
    run.prepare(fresh=False)
    assert run.key != stopped.key and stopped.states.last() is not None


def test_the_identity_of_the_float_training_is_as_before(project):
    train, data = params_with().train_for(VARIANT), {"sha256": "d" * 64}
    off = Params.model_validate({"variants": (VARIANT,), "train": TRAIN, "per_variant": {VARIANT: {}}})
    keys = {fingerprint(run_identity(VARIANT, one, data, None)) for one in (train, off.train_for(VARIANT))}
    assert len(keys) == 1 and "quantization" not in run_identity(VARIANT, train, data, None)["train"]


def test_what_is_missing_is_named_with_what_makes_it(project):
    shutil.rmtree(WEIGHTS.parent)
    with pytest.raises(DataError, match=f"dvc repro train@{VARIANT}"):
        quantize()


def test_the_export_refuses_a_network_of_other_weights(project, images):
    OUT.mkdir()
    (OUT / "quantized.safetensors").write_text("x")
    write_json(OUT / "run.json", {"float": {"sha256": sha256_file(WEIGHTS)}})
    assert quantized_file(VARIANT, WEIGHTS) is not None
    give_weights(images, seed=1)
    with pytest.raises(DataError, match=f"made of other weights than .*dvc repro quantize@{VARIANT}"):
        quantized_file(VARIANT, WEIGHTS)


def test_scales_are_found_or_asked_for(project):
    train = params_with().train_for(VARIANT)
    sgd = quantization_settings({"optimizer": {"name": "sgd"}})
    assert scales_for(VARIANT, train, sgd) is None
    target = train.model_copy(update={"rep_optimizer": "target", "scales": "s", "scales_sha256": "0" * 64})
    assert scales_for(VARIANT, target, sgd) == ("s", "0" * 64)
    assert scales_for(VARIANT, target, sgd.model_copy(update={"masks": False})) is None
    assert scales_for(VARIANT, target, quantization_settings({})) is None  # adamw
    chain = train.model_copy(update={"rep_optimizer": "chain"})
    first = {"role": "hyper-search", "key": "k" * 12, "sha256": "1" * 64}
    write_json(WEIGHTS.with_name("run.json"), {"fingerprint": "f" * 12, "first": first})
    with pytest.raises(
        ConfigError, match=f"hyper-search are not on this machine.*per_variant.{VARIANT}.masks to false"
    ):
        scales_for(VARIANT, chain, sgd)
    path = STATES / VARIANT / first["key"] / "last.safetensors"
    path.parent.mkdir(parents=True)
    save_checkpoint(path, small_detector(), replace(metadata_of(small_detector()), extra={}))
    assert scales_for(VARIANT, chain, sgd) == (path.as_posix(), "1" * 64)


def test_settings_of_one_variant_lie_over_the_common_ones():
    params = params_with(per_variant={VARIANT: {"epochs": 4}, "yolov9-t": {"enabled": False}})
    assert params.quantization_for(VARIANT).epochs == 4 and params.quantization_for(VARIANT).enabled
    assert not params.quantization_for("yolov9-t").enabled and params.quantization_for("yolov9-t").epochs == 2
    for values, message in (
        ({"per_variant": {VARIANT: {"epoch": 4}}}, rf"quantization \(with per_variant.{VARIANT}\).epoch: unknown key"),
        ({"per_variant": 3}, "a mapping by variant is expected"),
        ({"methods": "max"}, r"quantization.methods: unknown key \(did you mean 'method'\?\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            params_with(**values).quantization_for(VARIANT)
