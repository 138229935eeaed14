"""A fault in the training of a later variant is told before the first one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stages.preflight.findings import Findings
from stages.preflight.trainings import check_classes, check_weights
from stages.project import params as params_module
from yolov7.errors import ConfigError
from yolov7.weights.places import place_of
from yolov7.weights.releases import RELEASED

FAULTS = [
    ({"weights": "missing.safetensors", "weights_sha256": "0" * 64}, "missing.safetensors: no such file"),
    ({"weights": "there.safetensors"}, "weights_sha256: missing"),
    ({"weights": "there.safetensors", "weights_sha256": "0" * 64}, "params.yaml expects"),
    ({"rep_optimizer": "target", "scales": "missing.safetensors"}, "train.scales: missing.safetensors: no such file"),
    ({"rep_optimizer": "target", "scales": "there.safetensors"}, "scales_sha256: missing"),
    ({"class_weights": {"dogs": 2.0}}, "no class 'dogs' in the data (did you mean 'dog'?)"),
]


@pytest.mark.parametrize(("settings", "fault"), FAULTS)
def test_a_fault_of_a_later_variant(tmp_path, monkeypatch, settings, fault):
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").write_bytes(b"x")
    Path("data/ingested").mkdir(parents=True)
    Path("data/ingested/dataset.json").write_text('{"classes": ["dog", "cat"]}')
    variants = ["yolov7-tiny", "yolov7"]
    own = {"network": "small_rep:small_rep_network"} if "rep_optimizer" in settings else {}
    values = {"variants": variants, "per_variant": {"yolov7-tiny": {}, "yolov7": settings | own}}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    params = params_module.load()
    for chosen in (variants, ["yolov7-tiny"]):
        found = Findings()
        check_weights(params, chosen, found)
        check_classes(params, chosen, found)
        first = found.problems if "yolov7" in chosen else found.warnings
        assert len(found.problems + found.warnings) == 1 and fault in first[0]


def test_published_weights_are_announced_and_not_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLOV7_CACHE", str(tmp_path / "cache"))
    variants = ["yolov7-tiny", "yolov7"]
    own = {"yolov7": {"weights": "yolov7", "weights_sha256": "0" * 64}, "yolov7-tiny": {"weights": "yolov7-tiny"}}
    Path("params.yaml").write_text(yaml.safe_dump({"variants": variants, "per_variant": own}))
    found = Findings()
    check_weights(params_module.load(), variants, found)
    assert [line.split("https")[0] for line in found.warnings] == ["train.weights: yolov7 will be fetched ("]
    assert found.warnings[0].endswith("/yolov7_training.pt, GPL-3.0)")
    assert len(found.problems) == 1 and "yolov7 fetch-weights yolov7-tiny --form training" in found.problems[0]
    assert not (tmp_path / "cache").exists()
    path = place_of(RELEASED["yolov7"], "training").path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"put there by hand")
    found = Findings()
    check_weights(params_module.load(), variants, found)
    assert not found.warnings


@pytest.mark.parametrize(
    ("variant", "settings", "fault"),
    [
        (
            "yolov7-tiny",
            {"head": {"bins": 17}},
            r"train .*\.head: yolov7-tiny: bins: options of YOLOv6's head",
        ),
        ("yolov6-m", {"head": {"distributions": True}}, r"\.head: distributions: .* set bins to 0"),
        ("yolov6v3-n6", {"preset": "yolov6v3-n"}, r"\.head: anchor_aided: anchors of 4 levels are needed"),
        (
            "yolov6v3-n",
            {"head": {"distributions": True}},
            "head: anchor_aided, .* exclude each other; .*from: self",
        ),
        ("yolov6v3-n", {"rep_optimizer": "chain"}, "rep_optimizer: not available with the anchor-aided branch"),
        ("yolov6-n", {"first_epochs": 9}, "train .*first_epochs: there is one training and no first of two; it goes"),
        ("yolov6-n", {"distill_sha256": "0" * 64}, "train .*the digest of the teacher, and `distill_from` names no"),
        (
            "yolov6-n",
            {"scales_sha256": "0" * 64},
            "train .*scales_sha256: it is the digest of `scales`, which names no",
        ),
        ("yolov6v3-n", {"head": {"distributions": True}, "distill_from": "self"}, None),
        ("yolov6v3-n", {}, None),
    ],
)
def test_options_that_a_head_does_not_have(tmp_path, monkeypatch, variant, settings, fault):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump({"variants": [variant], "per_variant": {variant: settings}}))
    if fault is None:
        assert params_module.load().trainings[variant].head.anchor_aided
        return
    with pytest.raises(ConfigError, match=fault):
        assert params_module.load().trainings


@pytest.mark.parametrize(
    ("train", "own"),
    [
        ({"first_epochs": 2}, {"distill_from": "self"}),
        ({"first_epochs": 2}, {"rep_optimizer": "chain"}),
        ({"rep_optimizer": "target", "optimizer": {"rate_batch": 0}}, {"scales": "n.safetensors"}),
        ({"preset": "p5"}, {"preset": "small"}),
    ],
)
def test_parameters_that_only_their_variant_completes(tmp_path, monkeypatch, train, own):
    monkeypatch.chdir(tmp_path)
    values = {"variants": ["yolov6-n"], "train": train, "per_variant": {"yolov6-n": own}}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    training = params_module.load().trainings["yolov6-n"]
    assert {name: getattr(training, name) for name in own} == own
    values["per_variant"]["yolov6-s"] = {}
    Path("params.yaml").write_text(yaml.safe_dump(values | {"variants": ["yolov6-n", "yolov6-s"]}))
    with pytest.raises(ConfigError, match=r"^params.yaml: train\b"):
        params_module.load()


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        ({"epohcs": 3}, "params.yaml: train (with per_variant.yolov6-n).epohcs: unknown key"),
        ({"epochs": 3}, "params.yaml: train: first_epochs: there is one training"),
    ],
)
def test_a_mistake_of_a_variant_is_not_one_of_train(tmp_path, monkeypatch, own, fault):
    monkeypatch.chdir(tmp_path)
    values = {"variants": ["yolov6-n"], "train": {"first_epochs": 2}, "per_variant": {"yolov6-n": own}}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as refused:
        params_module.load()
    assert str(refused.value).startswith(fault)


def test_classes_that_are_there_and_data_that_are_not_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"variants": ["yolov7"], "per_variant": {"yolov7": {}}, "train": {"class_weights": {"dog": 2.0}}}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    found = Findings()
    check_classes(params_module.load(), ["yolov7"], found)
    Path("data/ingested").mkdir(parents=True)
    Path("data/ingested/dataset.json").write_text('{"classes": ["dog", "cat"]}')
    check_classes(params_module.load(), ["yolov7"], found)
    assert (found.problems, found.warnings) == ([], [])
