"""A study in a real database, with trainings that only count: order, number, repetition, failures, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from optuna.trial import TrialState

from stages.project.command import Interrupted
from stages.project.params import Params
from stages.registry.journal import RunJournal
from stages.search import report
from stages.search.study import ParameterStudy, storage_at
from stages.trials.trial import Ending, Trial, TrialResult
from yolov7.config import parse
from yolov7.errors import ConfigError, TrainingError

CPU = torch.device("cpu")
SPACE = {"optimizer.learning_rate": {"low": 0.001, "high": 0.1, "log": True}, "augment.mosaic": {"low": 0, "high": 1}}


class Killed(BaseException):
    """Ends a worker as a kill does: nothing is told."""


class Trainings:
    """Stands for trainings: AP is a function of the parameters, and every call is kept."""

    def __init__(self) -> None:
        self.trained: list[Trial] = []
        self.next: BaseException | None = None
        self.good = True

    def run(self, trial: Trial, *_: object, watch=lambda epoch, ap: False, **__: object):
        self.trained.append(trial)
        if self.next is not None:
            error, self.next = self.next, None
            raise error
        ap = trial.train.augment.mosaic / 2 + trial.train.optimizer.learning_rate if self.good else 0.0
        for epoch in range(trial.train.epochs):
            if watch(epoch, ap * (epoch + 1) / trial.train.epochs):
                return Ending.PRUNED, None
        return Ending.FINISHED, TrialResult(ap, 2, 3, 1.0, [])


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    monkeypatch.chdir(tmp_path)
    found = Trainings()
    (tmp_path / "data/ingested").mkdir(parents=True)
    (tmp_path / "data/ingested/dataset.json").write_text('{"sha256": "d"}')
    monkeypatch.setattr(Trial, "run", lambda trial, *given, **more: found.run(trial, *given, **more))
    monkeypatch.setattr(RunJournal, "deliver", lambda self, force=False: False)  # MLflow is away
    return found


def params(**search) -> Params:
    values = {"epochs": 3, "trials": 5, "space": SPACE, "confirm_seeds": 0, **search}
    train = {"epochs": 3, "augment": {"mosaic": 0.5}}
    document = {"variants": ["yolov7-tiny"], "per_variant": {"yolov7-tiny": {}}, "train": train, "search": values}
    return parse(Params, document, where="params.yaml")


def worked(given: Params) -> ParameterStudy:
    study = ParameterStudy(given, "d")
    while study.work(CPU) is not None:
        pass
    return study


def test_the_present_setting_comes_first_and_the_number_is_kept(trainings):
    study = worked(params(pruner="none"))
    assert len(trainings.trained) == 5 and len(study.finished) == 5
    first = trainings.trained[0].train
    assert (first.augment.mosaic, first.optimizer.learning_rate) == (0.5, 0.01)
    assert study.default is not None and study.default.number == 0
    assert study.best is not None and study.best.value >= study.default.value
    assert worked(params(pruner="none", trials=7)).name == study.name, "more trials continue the study"
    assert len(trainings.trained) == 7


def test_the_same_seed_tries_the_same_and_another_seed_does_not(trainings, tmp_path, monkeypatch):
    def values(name: str, seed: int) -> list[dict]:
        (tmp_path / name / "data/ingested").mkdir(parents=True)
        (tmp_path / name / "data/ingested/dataset.json").write_text('{"sha256": "d"}')
        monkeypatch.chdir(tmp_path / name)
        return [trial.params for trial in worked(params(seed=seed, pruner="none")).trials]

    first = values("a", 0)
    assert values("b", 0) == first and values("c", 1)[1:] != first[1:]
    assert len({tuple(trial.values()) for trial in first}) == 5, "no two draws of one search are the same"


def test_a_present_setting_outside_of_the_space_is_said_and_left_out(trainings, caplog):
    space = {"augment.mosaic": {"low": 0.6, "high": 1.0}}
    study = worked(params(space=space, trials=2))
    assert "not compared with the present setting: the space does not contain its augment.mosaic" in caplog.text
    assert study.default is None and len(trainings.trained) == 2


@pytest.mark.parametrize("end", [Killed(), Interrupted("stopped")])
def test_a_trial_that_was_stopped_is_repeated_with_its_parameters(trainings, end):
    study = ParameterStudy(params(pruner="none"), "d")
    study.work(CPU)
    trainings.next = end
    with pytest.raises(type(end)):
        study.work(CPU)
    again = worked(params(pruner="none"))
    lost, repeated = trainings.trained[1:3]
    assert repeated.key == lost.key, "the same parameters, so the same state to resume from"
    assert len(trainings.trained) == 6 and len(again.finished) == 5
    assert [trial.state for trial in again.trials].count(TrialState.FAIL) == 1
    assert len({trial.key for trial in trainings.trained}) == 5, "it is repeated once"


def test_the_trial_of_a_living_worker_is_left_alone(trainings):
    study = ParameterStudy(params(pruner="none", trials=2), "d")
    seen: list[object] = []

    def meanwhile(trial: Trial, *_: object, **__: object):
        trainings.run = original
        seen.append(ParameterStudy(params(pruner="none", trials=1), "d").work(CPU))
        return original(trial)

    original, trainings.run = trainings.run, meanwhile
    study.work(CPU)
    assert seen == [None] and len(trainings.trained) == 1, "one of one is being trained: nothing is left"


def test_a_training_that_fails_is_a_trial_and_three_in_a_row_are_the_end(trainings):
    study = ParameterStudy(params(pruner="none"), "d")
    study.work(CPU)
    for number in range(3):
        trainings.next = TrainingError(f"20 losses were not finite ({number})")
        if number < 2:
            found = study.work(CPU)
            assert found is not None and "not finite" in found.user_attrs["error"]
        else:
            with pytest.raises(TrainingError, match=r"3 trials in a row have failed, .*not finite \(2\)"):
                study.work(CPU)
    assert len(study.finished) == 4


def test_trials_below_the_median_are_pruned(trainings):
    study = ParameterStudy(params(trials=12), "d")
    for _ in range(5):
        study.work(CPU)
    trainings.good = False
    found = study.work(CPU)
    assert found is not None and found.state is TrialState.PRUNED and len(found.intermediate_values) < 3


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("postgresql+psycopg2://me:geheim@127.0.0.1:9/studies", "the database does not answer"),
        ("postgres//nowhere", "not the address of a database"),
        ("nosuch://host/db", "not the address of a database"),
        ("sqlite:////nonexistent/folder/studies.db", "the database does not answer"),
    ],
)
def test_a_database_that_does_not_answer_is_one_line_without_secrets(storage, message):
    with pytest.raises(ConfigError, match=rf"^params.yaml: search.storage: .*{message}") as caught:
        storage_at(storage)
    assert "\n" not in str(caught.value) and "geheim" not in str(caught.value)


def test_the_report(trainings, tmp_path):
    study = worked(params(pruner="none", trials=6, confirm_seeds=1))
    monkey = {"default": 0.3, "best": 0.4}
    best = study.best
    assert best is not None
    for ap, train in zip(monkey.values(), report.settings(study, best, 1), strict=True):
        trial = Trial.of("yolov7-tiny", train)
        figures = {"ap": ap, "best_epoch": 2, "epochs": 3, "seconds": 1.0, "history": []}
        trial.folder.mkdir(parents=True, exist_ok=True)
        (trial.folder / "result.json").write_text(json.dumps({"code": trial.code, "figures": figures}))
    figures = report.write_report(study)
    assert figures["default_AP"] == pytest.approx(0.26) and figures["best_AP"] == best.value
    assert figures["confirmed"][1] == {"seed": 1, "default": 0.3, "best": 0.4}
    assert sum(figures["importances"].values()) == pytest.approx(1.0)
    patch = yaml.safe_load(report.BEST.read_text())
    assert patch["per_variant"]["yolov7-tiny"]["augment"]["mosaic"] == figures["best"]["augment.mosaic"]
    page = report.PAGE.read_text()
    assert "a seed it has not seen" in page and "+0.100" in page and page.count("<svg") == 4
    before = page
    report.write_report(study)
    assert report.PAGE.read_text() == before, "the same study gives the same page"


def test_the_patch_trains_with_what_the_best_trial_had(trainings, tmp_path):
    study = worked(params(pruner="none"))
    report.write_report(study)
    assert study.best is not None
    trained = next(t for t in trainings.trained if t.train == study.space.train(study.best.params))
    patch = yaml.safe_load(report.BEST.read_text())["per_variant"]["yolov7-tiny"]
    changed = study.params.training("yolov7-tiny", patch)
    assert changed.optimizer.learning_rate == trained.train.optimizer.learning_rate
    assert changed.augment.mosaic == trained.train.augment.mosaic
