"""The space of a search: mistakes in one line each, values as they are written and trained with."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from stages.project.params import Params
from stages.search.space import Space
from yolov7.config import parse
from yolov7.errors import ConfigError

SPACE = {"augment.mosaic": {"low": 0, "high": 1}}


def params(space: dict | None = None, *, variant: str = "yolov7-tiny", train: dict | None = None, **search) -> Params:
    values = {
        "variants": [variant],
        "per_variant": {variant: {}},
        "train": {"epochs": 30, "augment": {"close_mosaic_epochs": 10}, **(train or {})},
        "search": {"epochs": 9, "space": SPACE if space is None else space, **search},
    }
    return parse(Params, values, where="params.yaml")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"^params.yaml: search.space: empty; name parameters to vary"),
        (
            {"augment.mosaik": {"low": 0, "high": 1}},
            r"search.space.augment.mosaik: unknown key \(did you mean 'mosaic'",
        ),
        ({"augment.mosaic.x": {"low": 0, "high": 1}}, r"search.space.augment.mosaic: .*valid number"),
        ({"augment.mosaic": {"low": 0, "high": 2}}, r"search.space.augment.mosaic: .*less than or equal to 1.*got 2"),
        ({"augment.mosaic": {"low": 1, "high": 0.5}}, r"search.space.augment.mosaic: low 1 must be less than high 0.5"),
        ({"augment.mosaic": {"low": 0, "high": 1, "log": True}}, r"low 0 has no logarithm"),
        ({"augment.mosaic": {"low": 0}}, r"give `low` and `high`, or `choices`"),
        ({"augment.mosaic": {"choices": [0.5, 0.5]}}, r"two or more different values"),
        ({"augment.mosaic": {"choices": [0, 1], "low": 0}}, r"give either `choices`"),
        ({"augment.mosaic": {"lo": 0, "high": 1}}, r"search.space.augment.mosaic.lo: unknown key \(did you mean 'lo"),
        ({"optimizer.name": {"choices": ["sgd", "adamm"]}}, r"search.space.optimizer.name: "),
        ({"tf32": {"low": 0, "high": 1}}, r"search.space.tf32: an interval of numbers does not fit True"),
        ({"epochs": {"low": 1, "high": 9}}, r"search.space.epochs: not a parameter to vary: set search.epochs"),
        ({"seed": {"low": 1, "high": 9}}, r"search.space.seed: not a parameter to vary"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(space, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Space.of(params(space))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("pruner", "epochs", "least"), [("median", 2, 3), ("hyperband", 8, 9)])
def test_epochs_that_leave_nothing_to_prune_are_refused(pruner, epochs, least):
    with pytest.raises(ConfigError, match=f"search.epochs: {epochs} are too few for the pruner {pruner}, .* {least}"):
        Space.of(params(pruner=pruner, epochs=epochs))
    assert Space.of(params(pruner="none", epochs=epochs)).base.epochs == epochs
    assert Space.of(params(pruner=pruner, epochs=least)).base.epochs == least


def test_a_gain_of_another_family_is_refused():
    with pytest.raises(ConfigError, match=r"search.space.loss.assigner: "):
        Space.of(params({"loss.assigner": {"choices": ["ota", "plain"]}}, variant="yolov9-t"))


def test_trials_are_whole_runs_of_their_length():
    base = Space.of(params()).base
    assert (base.epochs, base.evaluate_every, base.patience, base.augment.close_mosaic_epochs) == (9, 1, 0, 3)


def test_kinds_of_values():
    space = {
        "optimizer.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
        "optimizer.warmup_iterations": {"low": 10, "high": 100},
        "optimizer.name": {"choices": ["sgd", "adamw"]},
    }
    found = Space.of(params(space)).distributions()
    assert found["optimizer.learning_rate"] == FloatDistribution(0.001, 0.1, log=True)
    assert found["optimizer.warmup_iterations"] == IntDistribution(10, 100)
    assert found["optimizer.name"] == CategoricalDistribution(("sgd", "adamw"))


def test_a_trial_trains_with_what_best_yaml_will_hold():
    space = Space.of(params({"augment.scale": {"low": 0.1, "high": 0.9}}))
    written = space.written({"augment.scale": 0.123456789})
    assert written == {"augment.scale": 0.1235}
    assert space.train({"augment.scale": 0.123456789}).augment.scale == 0.1235
    assert space.written({"augment.scale": 0.09999999}) == {"augment.scale": 0.1}, "never outside of the space"
    assert space.train({"augment.scale": 0.2}, seed=7).seed == 7


def test_the_present_setting_and_what_the_space_lacks_of_it():
    space = {"augment.scale": {"low": 0.1, "high": 0.4}, "optimizer.name": {"choices": ["sgd", "adam"]}}
    inside = Space.of(params(space, train={"augment": {"scale": 0.3}}))
    assert inside.default == {"augment.scale": 0.3, "optimizer.name": "sgd"} and inside.outside == []
    assert Space.of(params(space, train={"augment": {"scale": 0.5}})).outside == ["augment.scale"]


def test_identity_moves_with_what_makes_trials_differ_and_with_nothing_else():
    first = Space.of(params()).identity("d")
    assert Space.of(params(trials=99, pruner="none", confirm_seeds=3)).identity("d") == first
    other = {"augment.mosaic": {"low": 0, "high": 0.5}}
    for changed in (Space.of(params(other)), Space.of(params(train={"batch_size": 4})), Space.of(params(epochs=12))):
        assert changed.identity("d") != first
    assert Space.of(params()).identity("e") != first
