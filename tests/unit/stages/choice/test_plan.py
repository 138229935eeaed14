"""Rungs, survivors and limits of a choice."""

from __future__ import annotations

import pytest
import yaml

from stages.choice.plan import (
    LATENCY,
    MINUTES,
    SIZE,
    RuledOut,
    Standing,
    beyond,
    given_latencies,
    rungs_of,
    survivors,
    too_slow_to_train,
)
from stages.project import params as params_module
from stages.project.params import Params
from stages.project.params_search import Choice
from stages.trials.shorten import nested, short_run
from yolov7.config import parse
from yolov7.errors import ConfigError


def choice(**values) -> Choice:
    return parse(Choice, {"candidates": ["yolov7-tiny", "yolov9-t"], **values}, where="params.yaml: choice")


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(300, (34, 100, 300)), (33, (4, 11, 33)), (3, (1, 3)), (2, (1, 2)), (1, (1,))]
)
def test_rungs_rise_by_a_factor_of_three_to_the_whole_training(epochs, rungs):
    assert rungs_of(choice(), epochs) == rungs
    assert rungs_of(choice(rungs=[2, 5]), epochs) == (2, 5)


@pytest.mark.parametrize(
    ("keep", "left"), [(0.34, ["b", "a"]), (0.5, ["b", "a", "d"]), (1.0, list("badce")), (0.01, ["b"])]
)
def test_the_best_go_on_and_of_equals_the_first(keep, left):
    aps = {"a": 0.4, "b": 0.5, "c": 0.1, "d": 0.4, "e": 0.0}
    assert survivors([Standing(name, 3, ap, 1.0) for name, ap in aps.items()], keep)[: len(left)] == (
        left if keep < 1 else ["b", "a", "d", "c", "e"]
    )


def test_training_time_is_predicted_from_the_seconds_of_an_epoch():
    standings = [Standing("slow", 2, 0.5, 60.0), Standing("fast", 2, 0.4, 10.0)]
    assert too_slow_to_train(standings, 10, 0.0) == [], "0: any"
    (found,) = too_slow_to_train(standings, 10, 4.9)
    assert found == RuledOut("slow", MINUTES, "5.0 min for 10 epochs, 4.9 min allowed")
    assert too_slow_to_train(standings, 10, 5.0) == []


def test_limits_of_latency_and_size():
    limited = choice(budget={"latency_ms": 10, "size_mb": 20})
    assert beyond("v", 10.0, 20.0, limited) == [] and beyond("v", None, None, limited) == []
    assert [found.limit for found in beyond("v", 10.1, 20.1, limited)] == [LATENCY, SIZE]
    assert beyond("v", 1e9, 1e9, choice()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("- 1", "expected a mapping"),
        ("yolov7-tiny: 12", "no milliseconds for the candidate yolov9-t"),
        ("{yolov7-tiny: 12, yolov9-t: fast}", "'fast' instead of milliseconds for the candidate yolov9-t"),
        ("{yolov7-tiny: 12, yolov9-t: -1}", "-1 instead of milliseconds"),
        ("{yolov7-tiny: 12, yolov9-t: true}", "True instead of milliseconds"),
    ],
)
def test_a_file_of_latencies_that_does_not_serve(tmp_path, text, message):
    path = tmp_path / "jetson.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^params.yaml: choice.budget.latencies: .*jetson.yaml: {message}"):
        given_latencies(choice(budget={"latencies": str(path)}))


def test_a_file_of_latencies(tmp_path):
    path = tmp_path / "jetson.yaml"
    path.write_text(yaml.safe_dump({"yolov7-tiny": 12, "yolov9-t": 7.5, "yolov7-x": 80}))
    assert given_latencies(choice(budget={"latencies": str(path)})) == {"yolov7-tiny": 12.0, "yolov9-t": 7.5}
    assert given_latencies(choice()) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rungs": [5, 5]}, "rungs: epochs must rise from 1 on"),
        ({"rungs": [0, 5]}, "rungs: epochs must rise from 1 on"),
        ({"candidates": []}, "candidates: name different variants"),
        ({"candidates": ["yolov7-tiny", "yolov7-tiny"]}, "candidates: name different variants"),
        ({"keep": 0}, "choice.keep: "),
        ({"budget": {"latency": 3}}, r"choice.budget.latency: unknown key \(did you mean 'latency_ms'"),
    ],
)
def test_mistakes_in_the_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        choice(**values)


def test_unknown_candidates_and_names_are_refused_when_params_are_read(tmp_path):
    path = tmp_path / "params.yaml"
    for group, message in (
        ({"choice": {"candidates": ["yolov9-tt"]}}, "choice.candidates: unknown variant 'yolov9-tt'.*'yolov9-t'"),
        ({"choice": {"name": "a/b"}}, "choice.name: "),
        ({"search": {"variant": "yolov7-tinny"}}, "search.variant: unknown variant.*'yolov7-tiny'"),
    ):
        path.write_text(yaml.safe_dump({"variants": ["yolov7-tiny"], "per_variant": {"yolov7-tiny": {}}, **group}))
        with pytest.raises(ConfigError, match=message):
            params_module.load(path)


def test_a_short_run_is_a_whole_one_and_the_longest_rung_is_the_training_itself():
    params = parse(Params, {"train": {"epochs": 30, "augment": {"close_mosaic_epochs": 6}}}, where="params.yaml")
    train = params.training("yolov7-tiny")
    assert short_run(train, 30) == {}, "nothing changes, so the run is that of the train stage"
    short = params.training("yolov7-tiny", short_run(train, 10))
    assert (short.epochs, short.augment.close_mosaic_epochs, short.patience) == (10, 2, 0)


def test_dotted_names():
    assert nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
