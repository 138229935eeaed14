"""Typed parameters: presets, merging, and mistakes refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import yaml

from stages.project import params as params_module
from yolov7 import config
from yolov7.config import (
    PGI,
    AddedLater,
    AlignedLoss,
    AnchorLoss,
    Group,
    Loss,
    LossParameters,
    Train,
    identity_of,
    merge,
    parse,
    train_parameters,
)
from yolov7.errors import ConfigError
from yolov7.model.pgi import PARTS
from yolov7.model.variants import list_variants
from yolov7.presets import PRESETS, YOLOV7

ROOT = Path(__file__).resolve().parents[3]


def test_presets_hold_the_published_values():
    p5, p6 = train_parameters({"preset": "p5"}), train_parameters({"preset": "p6"})
    tiny, finetune = train_parameters({"preset": "tiny"}), train_parameters({"preset": "finetune"})
    assert (p5.optimizer.learning_rate, p5.optimizer.final_factor, p5.optimizer.momentum) == (0.01, 0.1, 0.937)
    assert (p5.loss.box, p5.loss.classification, p5.loss.objectness) == (0.05, 0.3, 0.7)
    assert (p5.augment.translate, p5.augment.scale, p5.augment.mixup, p5.augment.paste_in) == (0.2, 0.9, 0.15, 0.15)
    assert (p6.optimizer.final_factor, p6.image_size) == (0.2, 1280)
    assert (tiny.optimizer.final_factor, tiny.loss.classification, tiny.loss.objectness) == (0.01, 0.5, 1.0)
    assert (tiny.augment.translate, tiny.augment.scale, tiny.augment.mixup) == (0.1, 0.5, 0.05)
    assert (finetune.augment.scale, finetune.augment.mixup, finetune.augment.paste_in) == (0.5, 0.0, 0.0)
    assert not train_parameters({"preset": "small"}).loss.scale_gains


@pytest.mark.parametrize("name", YOLOV7)
def test_given_values_override_the_preset_and_leave_the_rest(name):
    plain = train_parameters({"preset": name})
    changed = train_parameters({"preset": name, "optimizer": {"learning_rate": 0.5}})
    assert changed.optimizer.learning_rate == 0.5
    assert changed.optimizer.model_copy(update={"learning_rate": plain.optimizer.learning_rate}) == plain.optimizer
    assert changed.loss == plain.loss


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimiser": {}}, ["train.optimiser", "optimizer"]),
        ({"optimizer": {"lerning_rate": 1}}, ["train.optimizer.lerning_rate", "learning_rate"]),
        ({"preset": "smal"}, ["preset", "small"]),
        ({"epochs": 0}, ["train.epochs", "0"]),
        ({"augment": {"mosaic": 2.0}}, ["train.augment.mosaic"]),
        ({"loss": {"box": float("nan")}}, ["train.loss.box"]),
    ],
)
def test_a_mistake_is_named_with_the_nearest_key(values, words):
    with pytest.raises(ConfigError) as caught:
        train_parameters(values)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", ["ota", ["ota"], 3, None])
def test_a_loss_that_is_not_a_mapping_is_refused(loss):
    with pytest.raises(ConfigError, match=r"train\.loss: "):
        train_parameters({"loss": loss})


@pytest.mark.parametrize("preset", [["p5"], 5, None, "P5"])
def test_a_preset_that_is_not_a_name_is_refused(preset):
    with pytest.raises(ConfigError, match=r"train\.preset: .* is not a preset"):
        train_parameters({"preset": preset})


@pytest.mark.parametrize("recipe", YOLOV7)
def test_without_a_preset_the_recipe_is_used(recipe):
    assert train_parameters({}, recipe=recipe) == train_parameters({"preset": recipe})
    assert train_parameters({"preset": ""}, recipe=recipe).preset == recipe
    assert train_parameters({"preset": "small"}, recipe=recipe) == train_parameters({"preset": "small"})
    with pytest.raises(ConfigError, match="'p7' is not a recipe"):
        train_parameters({}, recipe="p7")


class OtherLoss(LossParameters):
    """Parameters of another kind of head."""

    box: float = 7.5
    assigner: str = "aligned"


@pytest.fixture
def other_family(monkeypatch):
    presets = {"other": {"epochs": 500, "loss": {"box": 2.5}}, "small": {"epochs": 20}}
    monkeypatch.setitem(PRESETS, "other", presets)
    monkeypatch.setitem(config.LOSSES, "other", OtherLoss)


def test_a_family_has_its_own_presets_and_loss_parameters(other_family):
    train = train_parameters({"loss": {"assigner": "plain"}}, recipe="other")
    assert train.loss == OtherLoss(box=2.5, assigner="plain")
    assert (train.preset, train.epochs) == ("other", 500)
    assert train.model_dump()["loss"] == {"box": 2.5, "assigner": "plain"}
    small = train_parameters({"preset": "small"}, recipe="other")
    assert (small.epochs, small.loss) == (20, OtherLoss())
    assert train_parameters({"preset": "small"}).loss == AnchorLoss(objectness=1.0, scale_gains=False)


def test_parameters_survive_a_round_trip_and_a_mapping_is_read_as_the_anchor_loss():
    train = train_parameters({"preset": "small"})
    assert Train.model_validate(train.model_dump()) == train
    assert Train(loss={"box": 0.1}).loss == AnchorLoss(box=0.1)


def test_mistakes_in_the_loss_and_elsewhere_are_reported_together():
    with pytest.raises(
        ConfigError, match=r"train\.loss\.boxx: unknown key \(did you mean 'box'\?\); .*train\.epochz: "
    ):
        train_parameters({"loss": {"boxx": 1}, "epochz": 3})


def test_presets_and_loss_parameters_of_another_family_are_refused(other_family):
    with pytest.raises(ConfigError, match=r"preset: 'other' is a preset of other .*network of yolov7 \(known: p5"):
        train_parameters({"preset": "other"})
    with pytest.raises(ConfigError, match=r"'tiny' is a preset of yolov7 .*network of other"):
        train_parameters({"preset": "tiny"}, recipe="other")
    with pytest.raises(ConfigError, match=r"train.loss.objectness: unknown key \(known: box, assigner\)"):
        train_parameters({"loss": {"objectness": 1.0}}, recipe="other")
    with pytest.raises(ConfigError, match=r"train.loss: OtherLoss is expected here, got AnchorLoss"):
        train_parameters({"loss": AnchorLoss()}, recipe="other")


def test_a_network_of_the_users_own_may_have_the_head_of_any_family(other_family):
    own = {"network": "my_networks:aligned", "preset": "other"}
    assert train_parameters(own).loss == OtherLoss(box=2.5)
    assert train_parameters({**own, "preset": "small"}).loss == AnchorLoss(objectness=1.0, scale_gains=False)
    with pytest.raises(ConfigError, match="'othr' is not a preset"):
        train_parameters({**own, "preset": "othr"})


class LaterTrain(Train):
    """A revision with one more field at each level."""

    class LaterAugment(Group):
        """Augmentation with a field more."""

        mosaic: float = 1.0
        border: Annotated[int, AddedLater()] = 114

    augment: LaterAugment = LaterAugment()  # type: ignore[assignment]
    dropout: Annotated[float, AddedLater()] = 0.0


def test_a_field_added_later_stays_out_of_the_identity_while_at_its_default():
    plain = Train().model_dump(mode="json")
    later = (
        ("", "evaluate_iou"),
        ("", "pgi"),
        ("", "head"),
        ("", "rep_optimizer"),
        ("", "scales"),
        ("", "scales_sha256"),
        ("", "first_epochs"),
        ("", "distill_from"),
        ("", "distill_sha256"),
        ("", "distillation"),
        ("augment", "outlines"),
        ("augment", "hsv_on_device"),
        ("augment", "reduced_decode"),
        ("augment", "scale_surplus"),
        ("augment", "max_aspect"),
        ("augment", "shuffle_mosaic"),
        ("augment", "outlines_without_mosaic"),
        ("augment", "copy_paste_of"),
        ("optimizer", "count_from_last_step"),
        ("optimizer", "linear_reaches_end"),
        ("optimizer", "rate_batch"),
        ("optimizer", "published_gpus"),
    )
    for group, name in later:
        del (plain[group] if group else plain)[name]  # added since the first revision
    assert identity_of(Train()) == plain
    assert identity_of(Train(evaluate_iou=0.7)) == {**plain, "evaluate_iou": 0.7}
    expected = {**plain, "augment": {"mosaic": 1.0}}
    assert identity_of(LaterTrain()) == expected
    changed = LaterTrain(dropout=0.5, augment={"border": 0})
    assert identity_of(changed) == {**expected, "dropout": 0.5, "augment": {"mosaic": 1.0, "border": 0}}


def test_the_old_values_in_the_upgrade_notes_give_a_yolov9_its_old_identity():
    """What `docs/operations.md`, Upgrade, says keeps an unfinished training of YOLOv9."""
    augment = {"shuffle_mosaic": False, "outlines_without_mosaic": True, "copy_paste_of": "all"}
    kept = {"patience": 0, "augment": augment, "optimizer": {"count_from_last_step": False}}
    now, old = (identity_of(train_parameters(values, recipe="yolov9")) for values in ({}, kept))
    assert (now["patience"], old["patience"]) == (100, 0)
    assert now["augment"].keys() - old["augment"].keys() == augment.keys()
    assert now["optimizer"].keys() - old["optimizer"].keys() == {"count_from_last_step"}
    small = {"preset": "small", "optimizer": {"learning_rate": 0.002}}
    found = identity_of(train_parameters(small, recipe="yolov9"))
    assert found["optimizer"] == identity_of(train_parameters({"preset": "small"}))["optimizer"]
    lines = [line for line in (ROOT / "docs/operations.md").read_text().splitlines() if "YOLOv9 or GELAN" in line]
    assert all(name in lines[0] for name in ("patience: 0", "count_from_last_step: false", *augment))
    assert "learning_rate: 0.002" in lines[1]


def test_lead_head_guided_icn_sets_the_assignment_too():
    assert list(PGI) == [*PARTS, "lhg-icn"]
    recipe = {"recipe": "yolov9"}
    plain, guided = (train_parameters({"pgi": part}, **recipe) for part in ("icn", "lhg-icn"))
    assert (plain.auxiliary_part, plain.loss.auxiliary) == ("icn", "independent")
    assert (guided.auxiliary_part, guided.loss.auxiliary) == ("icn", "lead-guided")
    assert train_parameters({"pgi": "lhg-icn", "loss": {"auxiliary": "lead-guided"}}, **recipe).loss == guided.loss
    with pytest.raises(ConfigError, match=r"loss\.auxiliary: 'independent' contradicts pgi: lhg-icn.*'lead-guided'"):
        train_parameters({"pgi": "lhg-icn", "loss": {"auxiliary": "independent"}}, **recipe)


def test_merge_is_deep_and_leaves_its_inputs_alone():
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}
    assert merge(base, over) == {"a": {"b": 9, "c": 2}, "d": 3}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_groups_are_immutable():
    loss = parse(Loss, {}, where="loss")
    with pytest.raises(ValueError, match="frozen"):
        loss.box = 1.0  # type: ignore[misc]


def test_the_shipped_params_file_is_valid_and_complete():
    params = params_module.load(ROOT / "params.yaml")
    assert params.variants
    given = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(given) == set(type(params).model_fields), "a group is missing from params.yaml"


def write(tmp_path: Path, change: dict) -> Path:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(merge(values, change)))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exprot": {}}, ["exprot", "export"]),
        ({"variants": ["yolov7-tny"]}, ["yolov7-tny", "yolov7-tiny"]),
        ({"per_variant": {"yolov7-tiny": {"epocs": 3}}}, ["per_variant.yolov7-tiny", "epocs", "epochs"]),
        ({"data": {"source": "coco"}}, ["data.coco"]),
        ({"data": {"digits": {"digits_per_image": [4, 2]}}}, ["digits_per_image"]),
        ({"train": {"preset": "p7"}}, ["preset", "p7"]),
        ({"train": {"pgi": "icm"}}, ["train.pgi: unknown part of PGI", "'icm'", "did you mean 'icn'"]),
        (
            {"per_variant": {"yolov7-tiny": {"rep_optimizer": "chain", "optimizer": {"name": "sgd"}}}},
            ["yolov7-tiny).rep_optimizer", "has none"],
        ),
        ({"per_variant": {"yolov7-tiny": {"pgi": "pan"}}}, ["yolov7-tiny).pgi", "needs the head of YOLOv9"]),
        ({"flow": {"retries": "many"}}, ["flow.retries", "many"]),
    ],
)
def test_a_mistake_anywhere_in_the_file_is_refused(tmp_path, change, words):
    with pytest.raises(ConfigError) as caught:
        params_module.load(write(tmp_path, change))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("variant", "recipe"), [("yolov7-tiny", "tiny"), ("yolov7-w6", "p6"), ("yolov7", "p5")])
def test_without_a_preset_a_variant_is_trained_by_its_recipe(variant, recipe):
    params = params_module.Params(variants=(variant,), train={"epochs": 3})
    assert params.train_for(variant) == train_parameters({"preset": recipe, "epochs": 3})


def test_a_variant_may_differ_from_the_common_training_parameters(tmp_path):
    path = write(tmp_path, {"per_variant": {"yolov7-tiny": {"epochs": 7, "optimizer": {"momentum": 0.5}}}})
    params = params_module.load(path)
    train = params.train_for("yolov7-tiny")
    assert (train.epochs, train.optimizer.momentum) == (7, 0.5)
    assert train.optimizer.name == "adamw"


def test_a_variant_without_an_entry_is_refused(tmp_path):
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    del values["per_variant"]["yolov7-x"]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**values, "variants": ["yolov7-x"]}))
    with pytest.raises(ConfigError, match=r"per_variant: no entry for 'yolov7-x'; add `yolov7-x: \{\}`"):
        params_module.load(path)


@pytest.mark.parametrize("variant", list_variants())
def test_another_variant_is_one_change(tmp_path, variant):
    params = params_module.load(write(tmp_path, {"variants": [variant]}))
    assert params.train_for(variant).preset == "small"


def test_the_variant_is_all_that_changes_for_another_family(tmp_path):
    params = params_module.load(write(tmp_path, {"variants": ["yolov9-t"], "per_variant": {"yolov9-t": {}}}))
    train = params.train_for("yolov9-t")
    assert isinstance(train.loss, AlignedLoss) and train.anchor_scale == 0.5  # without effect, as the training says


def test_a_part_of_pgi_may_be_named_for_any_size(tmp_path):
    path = write(tmp_path, {"variants": ["gelan-t", "yolov9-e"]})
    values = yaml.safe_load(path.read_text())
    values["per_variant"] = {"gelan-t": {"pgi": "icn"}, "yolov9-e": {"pgi": "none"}}
    path.write_text(yaml.safe_dump(values))
    trainings = params_module.load(path).trainings
    assert {name: train.pgi for name, train in trainings.items()} == {"gelan-t": "icn", "yolov9-e": "none"}


def test_without_a_preset_a_variant_trains_by_its_own_recipe(tmp_path):
    path = write(tmp_path, {"variants": ["yolov7-tiny", "yolov7-w6", "mine"]})
    values = yaml.safe_load(path.read_text())
    del values["train"]["preset"], values["train"]["image_size"]
    own = {"network": "small_detector:small_network"}
    values["per_variant"] = {"yolov7-tiny": {}, "yolov7-w6": {}, "mine": own}
    path.write_text(yaml.safe_dump(values))
    trainings = params_module.load(path).trainings
    assert {name: train.preset for name, train in trainings.items()} == {
        "yolov7-tiny": "tiny",
        "yolov7-w6": "p6",
        "mine": "p5",
    }
    assert (trainings["yolov7-w6"].image_size, trainings["yolov7-tiny"].optimizer.final_factor) == (1280, 0.01)


@pytest.mark.parametrize("text", ["- a list", "a: [", "\xff"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        params_module.load(path)
    with pytest.raises(ConfigError, match="no such file"):
        params_module.load(tmp_path / "absent.yaml")
