"""The champion's statistics come from a real MLflow to the rules; an unavailable registry blocks nothing."""

from __future__ import annotations

import argparse
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import tasks
from flows.runner.pipeline import StageError
from stages import register
from stages.data_reference import fetch_reference, main
from stages.project.command import Interrupted
from stages.project.params import Params
from stages.registry.versions import CHAMPION, DATA_STATISTICS, ModelRegistry, Version
from stages.validation.statistics import QUANTITIES, read_statistics
from tests.pipeline.servers import free_port
from yolov7.errors import ModelError
from yolov7.files import write_json

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


@pytest.fixture
def registry(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModelRegistry]:
    """A real one in a SQLite file, seen from an empty project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_file"))
    yield ModelRegistry()
    import mlflow

    mlflow.set_tracking_uri(None)


def new_version(registry: ModelRegistry, name: str) -> Version:
    """A version without a model, which no test here needs."""
    run_id = registry.run_for({"run_id": None, "fingerprint": name}, experiment="reference", name=name)
    if not registry.client.search_registered_models(f"name = '{name}'"):
        registry.client.create_registered_model(name)
    made = registry.client.create_model_version(name, source=f"runs:/{run_id}/model", run_id=run_id)
    return registry.resolve(f"models:/{name}/{made.version}")


def write_statistics(sha256: str) -> dict:
    histograms = {quantity.name: [1] * quantity.bins for quantity in QUANTITIES}
    part = {"images": 4, "boxes": 7, "classes": {"cat": 4, "dog": 3}, "histograms": histograms}
    document = {"format": 1, "data_sha256": sha256, "splits": {"train": part}}
    write_json(register.STATISTICS, document)
    return document


def test_data_statistics_are_kept_with_the_model_and_fetched_for_the_champion(registry, tmp_path, caplog):
    caplog.set_level("INFO")
    target = tmp_path / "validation/reference.json"
    first = new_version(registry, "watched")
    register._keep_statistics(registry, first)
    assert "cannot be judged later" in caplog.text, "a project without the report registers all the same"
    assert fetch_reference(["unheard-of", "watched"], target) is None and not target.exists()

    registry.set_aliases("watched", {CHAMPION: first.number})
    assert fetch_reference(["watched"], target) is None and "without statistics" in caplog.text
    document = write_statistics("a" * 64)
    register._keep_statistics(registry, first)
    fetched = fetch_reference(["unheard-of", "watched"], target)
    assert fetched is not None and fetched == read_statistics(target)
    assert json.loads(target.read_text()) == {**document, "champion": "watched version 1"}

    second = new_version(registry, "watched")
    write_statistics("b" * 64)
    register._keep_statistics(registry, second)
    assert read_statistics(target).data_sha256 == "a" * 64
    registry.set_aliases("watched", {CHAMPION: second.number})
    fetch_reference(["watched"], target)
    assert read_statistics(target).data_sha256 == "b" * 64
    assert read_statistics(target).champion == "watched version 2"

    registry.record(second, "data/other.json", {"format": 1})
    registry.set_tags(second, {DATA_STATISTICS: "data/other.json"})
    with pytest.raises(ModelError, match=r"watched version 2: data/other\.json of its run is not a valid statistics"):
        fetch_reference(["watched"], target)
    registry.set_tags(second, {DATA_STATISTICS: "data/gone.json"})
    assert fetch_reference(["watched"], target) is None
    assert read_statistics(target).data_sha256 == "b" * 64, "what stood there stays"


@pytest.mark.parametrize("hangs", [False, True])
def test_a_registry_that_is_away_is_not_waited_for(tmp_path, monkeypatch, hangs):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "0" if name.endswith("RETRIES") else "100")
    with socket.socket() as server:
        port = free_port()
        if hangs:  # takes the connection and never answers
            server.bind(("127.0.0.1", 0))
            server.listen()
            port = server.getsockname()[1]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        with pytest.raises(Interrupted, match="did not answer within 2 s" if hangs else "cannot be reached|MLflow at"):
            main(Params(), argparse.Namespace(model=None, timeout=2.0 if hangs else 60.0))
    assert not (tmp_path / "validation/reference.json").exists()


def test_a_flow_continues_without_a_reference(caplog):
    class Away:
        def run(self, name, command, log):
            assert command[1:] == ["-m", "stages.data_reference"]
            raise StageError("MLflow did not answer", stage=name)

    tasks.fetch_reference(Away(), logging.getLogger("flow"))
    assert "MLflow did not answer; drift is judged against the present reference" in caplog.text
