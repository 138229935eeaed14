"""Addresses that MLflow can never use are refused before anything is trained, with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.project.redaction import redacted
from stages.registry.address import unusable
from stages.registry.journal import RunJournal
from stages.registry.versions import ModelRegistry
from yolov7.errors import ConfigError

IMPOSSIBLE = {
    "mlruns": "no longer keeps runs in a folder",
    "./mlruns": "no longer keeps runs in a folder",
    "/srv/mlruns": "no longer keeps runs in a folder",
    "file:./mlruns": "no longer keeps runs in a folder",
    "file:///srv/mlruns": "no longer keeps runs in a folder",
    "localhost:5000": "no scheme",
    "127.0.0.1:5000": "no scheme",
    "htp://mlflow:5000": "did you mean 'http'",
    "postgres://u:p@db/mlflow": "did you mean 'postgresql'",
    "s3://bucket/mlflow": "unknown scheme 's3'",
    "http:/mlflow:5000": "no host",
    "http://": "no host",
    "http://mlflow:port": "http://HOST:5000",
    "http://[::1": "http://HOST:5000",
    "sqlite:mlflow.db": "sqlite:///mlflow.db",
    "sqlite://mlflow.db": "three slashes",
    "sqlite:///:memory:": "in memory",
    "sqlite://": "in memory",
    "sqlite:///~/mlflow.db": "~ is not expanded",
    "postgresql+nothing://db/mlflow": "Can't load plugin",
    "mysql+mysqldb://db/mlflow": "driver is not installed",
}


@pytest.mark.parametrize("address", IMPOSSIBLE)
def test_an_address_that_can_never_work(address):
    assert IMPOSSIBLE[address] in redacted(unusable(address) or "accepted"), "the advice, as a user sees it"


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:////srv/mlflow.db",
        "http://mlflow:5000",
        "https://u:p@mlflow.example.org/path",
        "postgresql+psycopg2://u:p@db/mlflow",
        "databricks",
        "databricks://profile",
    ],
)
def test_an_address_that_may_work(address):
    assert unusable(address) is None


def test_the_advice_passes_the_redaction():
    assert redacted(unusable("mlruns")).endswith("http://HOST:5000")


def test_passwords_are_not_shown():
    assert "secret-word" not in str(unusable("postgres://u:secret-word@db/mlflow"))


def test_folders_work_where_mlflow_is_told_to_take_them(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert unusable("mlruns") is None


@pytest.mark.parametrize("address", ["mlruns", "htp://mlflow:5000", "sqlite:mlflow.db"])
def test_a_training_and_a_registration_refuse_it_at_once(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    journal = RunJournal(Path("a.jsonl"), experiment="digits", run_name="tiny")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        journal.parameters({"epochs": 1})
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        ModelRegistry()
    assert [path.name for path in tmp_path.glob("ml*")] == []


def test_another_registry_is_checked_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "mlruns")
    with pytest.raises(ConfigError, match="MLFLOW_REGISTRY_URI=mlruns"):
        ModelRegistry()
