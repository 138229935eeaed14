"""A trial is a training of its own: resumed after a kill, never trained twice, and gone when it is pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_detector import SIDE
from small_training import training_data

import stages.trials.trial
from stages.project.params import Params
from stages.registry.journal import JOURNALS, RunJournal
from stages.trials.trial import Ending, Trial, TrialResult
from yolov7.errors import ConfigError
from yolov7.train.state import StateFolder

pytestmark = pytest.mark.slow
TRAIN = {
    "cache": "none",
    "preset": "small",
    "image_size": SIDE,
    "batch_size": 2,
    "epochs": 3,
    "evaluate_every": 1,
    "checkpoint_minutes": 0.0,
    "network": "small_rep:small_rep_network",
    "optimizer": {"nominal_batch": 4, "warmup_iterations": 2, "warmup_epochs": 0},
    "augment": {"mosaic": 0.0},
}
VARIANT = "small"
CPU = torch.device("cpu")
TIMES = {"seconds", "images_per_second"}


class Killed(BaseException):
    """Ends a training as a kill does."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("images"))


@pytest.fixture
def project(tmp_path: Path, images, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunJournal, "deliver", lambda self, force=False: False)
    monkeypatch.setattr(stages.trials.trial, "open_index", lambda split: images)
    monkeypatch.setattr(stages.trials.trial, "dataset_document", lambda: {"sha256": "d" * 64})
    monkeypatch.setattr(stages.trials.trial, "stage_code", lambda stage: "code 1")
    return Params.model_validate({"variants": (VARIANT,), "train": TRAIN, "per_variant": {VARIANT: {}}})


def run(params: Params, **more) -> tuple[Ending, TrialResult | None]:
    return Trial.of(VARIANT, params.training(VARIANT)).run(params, CPU, name="a trial", tags={"trial": 1}, **more)


def figures(result: TrialResult | None) -> list[dict]:
    assert result is not None
    return [{name: value for name, value in row.items() if name not in TIMES} for row in result.history]


def test_a_kill_costs_nothing_but_the_work_since_the_last_state(project, tmp_path, monkeypatch):
    whole = run(project)[1]
    trial = Trial.of(VARIANT, project.training(VARIANT))
    (trial.folder / "result.json").unlink()
    saved, saves = StateFolder.save, []

    def save(self, *arguments):
        saves.append(1)
        if len(saves) == 4:
            raise Killed
        return saved(self, *arguments)

    monkeypatch.setattr(StateFolder, "save", save)
    with pytest.raises(Killed):
        run(project)
    assert trial.result() is None and any(trial.folder.glob("state-*.safetensors"))
    monkeypatch.setattr(StateFolder, "save", saved)
    told: list[tuple[int, float]] = []
    ending, again = run(project, watch=lambda epoch, ap: told.append((epoch, ap)) or False)
    assert ending is Ending.FINISHED and figures(again) == figures(whole)
    assert [epoch for epoch, _ in told] == [0, 1, 2], "validations before the resume are told, too"
    assert not any(trial.folder.glob("state-*")) and not trial.weights.exists()
    end = json.loads((JOURNALS / f"trial-{VARIANT}-{trial.key}.jsonl").read_text().splitlines()[-1])
    assert (end["kind"], end["status"]) == ("end", "FINISHED")


def test_a_finished_trial_is_trained_again_only_for_other_code_or_lost_weights(project, monkeypatch):
    first = run(project, keep_weights=True)[1]
    trial = Trial.of(VARIANT, project.training(VARIANT))
    assert trial.result(weights=True) == first and trial.weights.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(stages.trials.trial, "trainer_of", lambda *_, **__: pytest.fail("trained again"))
        assert run(project, keep_weights=True) == (Ending.FINISHED, first)
    trial.weights.unlink()
    assert trial.result() == first and trial.result(weights=True) is None
    assert figures(run(project, keep_weights=True)[1]) == figures(first) and trial.weights.is_file()
    monkeypatch.setattr(stages.trials.trial, "stage_code", lambda stage: "code 2")
    assert Trial.of(VARIANT, project.training(VARIANT)).result() is None
    assert figures(run(project)[1]) == figures(first)


def test_a_pruned_trial_ends_at_once_and_leaves_nothing(project):
    told: list[int] = []
    ending, result = run(project, watch=lambda epoch, ap: told.append(epoch) or epoch == 1)
    assert (ending, result) == (Ending.PRUNED, None) and told == [0, 1]
    trial = Trial.of(VARIANT, project.training(VARIANT))
    assert sorted(path.name for path in trial.folder.iterdir()) == ["lock"]
    end = json.loads((JOURNALS / f"trial-{VARIANT}-{trial.key}.jsonl").read_text().splitlines()[-1])
    assert end["status"] == "KILLED"


def test_parameters_that_train_twice_are_refused(project):
    twice = project.model_copy(update={"train": {**TRAIN, "rep_optimizer": "chain", "optimizer": {"name": "sgd"}}})
    with pytest.raises(ConfigError, match=r"^small: .*train twice"):
        Trial.of(VARIANT, twice.training(VARIANT))
