"""Registration that is killed, runs in two clones at once, or sees the clock go back: nothing half is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.registry.journal import RunJournal
from stages.registry.server import ensure_database
from stages.registry.versions import CHALLENGER, ModelRegistry, download_model

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

REGISTER = """
import os, signal, sys
from pathlib import Path
import mlflow
from stages.registry.versions import ModelRegistry

def die(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)

owner, _, name = sys.argv[4].partition(".")
if name:
    setattr({"mlflow": mlflow, "client": mlflow.MlflowClient, "registry": ModelRegistry}[owner], name, die)
registry = ModelRegistry()
run = registry.run_for({"fingerprint": sys.argv[3]}, experiment="tests", name="x")
print(registry.register(Path(sys.argv[1]), name=sys.argv[2], run_id=run, origin={}, measured={"AP": 1})[0].number)
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    ensure_database(uri)
    return uri


@pytest.fixture(autouse=True)
def here(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    root = Path(__file__).resolve().parents[2]
    variables = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", REGISTER, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    "point",
    [
        "mlflow.register_model",  # the files are logged
        "client._create_model_version",  # the model exists, its version does not
        "registry._sign",  # the version exists, nothing points to it
        "registry.set_aliases",
        "registry.by_number",  # all is done but the record
    ],
)
def test_a_registration_killed_anywhere_is_completed_by_the_next(point: str, export: Path, tmp_path: Path) -> None:
    name = f"killed-{point.replace('.', '-')}"
    killed = start(tmp_path, export, name, "mark", point)
    _, errors = killed.communicate(timeout=200)
    assert killed.returncode == -signal.SIGKILL, errors
    registry = ModelRegistry()
    run = registry.run_for({"fingerprint": "mark"}, experiment="tests", name="x")
    version, _ = registry.register(export, name=name, run_id=run, origin={}, measured={"AP": 1})
    again, new = registry.register(export, name=name, run_id=run, origin={}, measured={"AP": 1})
    assert version.number == again.number == 1 and not new
    assert registry.aliases(name) == {CHALLENGER: 1}
    assert (download_model(f"models:/{name}@{CHALLENGER}") / "model.onnx").read_bytes()
    assert registry.client.get_run(run).info.status == "FINISHED"


def test_two_clones_on_one_server_each_register_whole_versions(export: Path, tmp_path: Path) -> None:
    clones = [start(tmp_path / place, export, "clones", place, "") for place in ("one", "two")]
    answers = [clone.communicate(timeout=200) for clone in clones]
    assert [clone.returncode for clone in clones] == [0, 0], answers
    registry = ModelRegistry()
    numbers = {int(out.split()[-1]) for out, _ in answers}
    assert registry.aliases("clones")[CHALLENGER] in numbers
    for number in numbers:
        assert (download_model(f"models:/clones/{number}") / "model.json").is_file()


def test_two_trainings_of_two_clones_are_two_runs(tmp_path: Path) -> None:
    runs = []
    for place in ("one", "two"):
        journal = RunJournal(tmp_path / place / "v-samekey.jsonl", experiment="clones", run_name="v")
        journal.metrics({"loss": 1.0}, step=1)
        journal.finish()
        assert journal.deliver(force=True)
        runs.append(journal.run_id)
    assert len(set(runs)) == 2 and None not in runs


def test_a_clock_that_goes_back_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    journal = RunJournal(tmp_path / "v-clock.jsonl", experiment="clock", run_name="v")
    for step in range(3):
        journal.metrics({"loss": float(step)}, step=step)
    journal.finish()
    delivered = journal.deliver(force=True)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert delivered and journal.run_id is not None
