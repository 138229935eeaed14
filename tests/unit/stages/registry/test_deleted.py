"""Experiments deleted during or after a training, and names that others have: the advice of the messages works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from stages.registry.journal import RunJournal, flush
from stages.registry.names import foreign
from stages.registry.versions import ModelRegistry
from yolov7.errors import ModelError, TrainingError


@pytest.fixture
def registry(tmp_path, monkeypatch, new_database):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    yield ModelRegistry()
    mlflow.set_tracking_uri(None)


def trained(registry: ModelRegistry) -> dict[str, object]:
    """The `run.json` of a training whose experiment is deleted afterwards."""
    journal = RunJournal(Path(".state/mlflow/tiny-1.jsonl"), experiment="old", run_name="tiny")
    journal.metrics({"loss": 0.5}, step=0)
    journal.finish()
    registry.client.delete_experiment(registry.client.get_experiment_by_name("old").experiment_id)
    return {"run_id": journal.run_id, "fingerprint": "1", "variant": "tiny"}


def test_a_registration_names_the_command_that_restores_the_experiment(registry):
    run = trained(registry)
    with pytest.raises(TrainingError, match="mlflow experiments restore --experiment-id") as caught:
        registry.run_for(run, experiment="old", name="tiny")
    number = str(caught.value).split("--experiment-id ")[1].split("`")[0]
    registry.client.restore_experiment(number)  # what the command calls
    assert registry.run_for(run, experiment="old", name="tiny") == run["run_id"]


def test_another_experiment_helps_as_the_message_says(registry):
    run = trained(registry)
    created = registry.run_for(run, experiment="new", name="tiny")
    assert created != run["run_id"]
    assert registry.run_for(run, experiment="new", name="tiny") == created


def test_a_resumed_training_moves_to_the_new_experiment(registry):
    trained(registry)
    resumed = RunJournal(Path(".state/mlflow/tiny-1.jsonl"), experiment="new", run_name="tiny")
    resumed.reopen()
    assert resumed.deliver(force=True) and resumed.due == 0
    moved = registry.client.get_run(resumed.run_id)
    assert registry.client.get_experiment(moved.info.experiment_id).name == "new"
    assert moved.data.metrics == {"loss": 0.5}, "with all its records"


def test_records_for_a_deleted_experiment_do_not_hold_up_the_others(registry, monkeypatch, caplog):
    trained(registry)
    for name, experiment in (("a", "old"), ("b", "alive")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        journal = RunJournal(Path(f".state/mlflow/{name}.jsonl"), experiment=experiment, run_name=name)
        journal.metrics({"loss": 0.1}, step=0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert flush() == 1
    assert "'old' is deleted" in caplog.text
    assert registry.client.get_experiment_by_name("alive") is not None


def test_a_name_that_others_have_taken_is_refused(registry):
    client = registry.client
    client.create_registered_model("scores")
    assert foreign(client, "free") is None and foreign(client, "scores") is None, "free, or without a version"
    client.create_model_version("scores", source="s3://elsewhere/model")
    assert "1 versions of something else" in str(foreign(client, "scores"))
    client.register_prompt("greeting", "hello")
    assert "a prompt" in str(foreign(client, "greeting"))
    ours = client.create_model_version("scores", source="s3://elsewhere/model", tags={"manifest_sha256": "1"})
    assert foreign(client, ours.name) is None, "shared by agreement"


@pytest.mark.parametrize("state", ["restored from a cache", "never registered", "no project"])
def test_a_missing_model_gets_the_advice_that_helps_there(registry, state):
    if state != "no project":
        for name in ("params.yaml", "dvc.yaml"):
            Path(name).write_text("{}\n")
    if state == "restored from a cache":
        Path("models/yolov7-tiny").mkdir(parents=True)
        Path("models/yolov7-tiny/registered.json").write_text(json.dumps({"name": "team-tiny", "version": 3}))
    advice = {
        "restored from a cache": "`dvc repro --force --single-item register@yolov7-tiny`",
        "never registered": "`dvc repro`",
        "no project": "MLFLOW_TRACKING_URI",
    }
    with pytest.raises(ModelError) as caught:
        registry.resolve("models:/team-tiny@challenger")
    assert advice[state] in str(caught.value)


def test_without_a_champion_the_gate_is_named(registry):
    registry.client.create_registered_model("tiny")
    registry.client.create_model_version("tiny", source="s3://elsewhere/model")
    registry.set_aliases("tiny", {"challenger": 1})
    with pytest.raises(ModelError, match=r"challenger \(version 1\); `python -m flows.promote tiny`"):
        registry.resolve("models:/tiny@champion")
