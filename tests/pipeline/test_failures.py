"""Failures of a team's machines, on real servers: a machine is lost, S3 or MLflow is unavailable, a disk is full."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from flows.tasks import GPU_LIMIT
from stages.registry.journal import RunJournal
from stages.registry.server import ensure_database
from stages.training import s3_store
from stages.training.state_remote import NEWEST, SWITCH, StateRemote, open_store
from tests.pipeline.faulty_s3 import FaultyS3, faulty_s3
from tests.pipeline.project import configure
from tests.pipeline.servers import (
    PrefectServer,
    answers,
    free_port,
    loopback_environment,
    running,
    s3_credentials,
    s3_server,
    wait_for,
)
from yolov7.train.state import StateFolder, TrainingState, newest_iteration

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
VARIANT, KEY = "yolov7-tiny", "0123456789ab"
TWO_MINUTES, SLACK = 120.0, 15.0
"""Seconds in which a lost machine is noticed, and those by which a server whose cores others hold may be late."""


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="module")
def store(buckets: Path) -> Iterator[FaultyS3]:
    """An S3 server with a bucket `states`, behind a proxy that fails on demand."""
    with s3_server(buckets, "states") as port, faulty_s3(port) as proxy:
        yield proxy


# The worker and all its children are killed ---------------------------------------------------------------------------

# Real states and real copies of them, and steps that take no time: the first run would never end.
TRAIN = """
import json, os, pathlib, time
import torch
from stages.project.params import Flow
from stages.training.state_remote import state_remote
from yolov7.train.state import StateFolder, TrainingState, newest_iteration
folder = pathlib.Path(".state/train/{variant}/{key}")
remote = state_remote(Flow(state_every_minutes=0), folder, pathlib.Path(".state/journal.jsonl"))
states = StateFolder(folder, {{}}, on_saved=remote.offer)
here = newest_iteration(folder)
resumed = remote.bring()
state = states.newest()
step = state.values["step"] if state else 0
with open("{notes}", "a") as file:
    file.write(json.dumps({{"pid": os.getpid(), "here": here, "resumed": resumed, "step": step}}) + chr(10))
while not resumed:
    step += 1
    states.save(TrainingState({{"w": torch.full((4,), float(step))}}, {{"step": step}}), step)
    time.sleep(0.2)
remote.close(finished=True)
out = pathlib.Path("models/{variant}/train/run.json")
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(json.dumps({{"step": step, "w": state.tensors["w"].tolist()}}))
"""


@pytest.fixture
def nightly(project: Path, prefect_server: PrefectServer) -> Iterator[dict[str, Any]]:
    """The shipped deployment, which starts again at once, and the shipped automation; one slot for all trainings."""
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (one,) = (each for each in document["deployments"] if each["name"] == "nightly")
    one["schedules"], one["parameters"]["promote_challengers"] = [], False
    assert one["triggers"][0].pop("schedule_after") == 300
    (project / "prefect.yaml").write_text(yaml.safe_dump({**document, "deployments": [one]}))
    configure(project, (VARIANT,))
    notes = project.parent / "notes.jsonl"
    (project / "train.py").write_text(TRAIN.format(variant=VARIANT, key=KEY, notes=notes))
    stages = yaml.safe_load((project / "dvc.yaml").read_text())
    stages["stages"]["train"]["cmd"] = "python train.py"
    (project / "dvc.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    prefect_server.client.post("/work_pools/", json={"name": "local", "type": "process"})
    prefect_server.command(project, "deploy", "--all")
    (automation,) = yaml.safe_load((ROOT / "flows/automations.yaml").read_text())["automations"]
    made = prefect_server.client.post("/automations/", json=automation).json()["id"]
    limit = prefect_server.ask("/v2/concurrency_limits/", {"name": GPU_LIMIT, "limit": 1})["id"]
    found = prefect_server.ask("/deployments/filter", {"deployments": {"name": {"any_": ["nightly"]}}})
    yield {"id": found[0]["id"], "folder": project, "notes": notes}
    for path in (f"/automations/{made}", f"/v2/concurrency_limits/{limit}", f"/deployments/{found[0]['id']}"):
        prefect_server.client.delete(path)


def silence(server: PrefectServer, run: str) -> float:
    """Seconds from the last sign of life to the state Crashed, both by the server's record."""
    events = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    beats = server.ask("/events/filter", {"filter": events})["events"]
    crashed = server.client.get(f"/flow_runs/{run}").raise_for_status().json()["state"]["timestamp"]
    last = max(datetime.fromisoformat(beat["occurred"]) for beat in beats)
    return (datetime.fromisoformat(crashed) - last).total_seconds()


def noted(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_lost_machine_is_noticed_and_its_training_resumes_elsewhere(
    nightly: dict[str, Any], prefect_server: PrefectServer, store: FaultyS3, buckets: Path
) -> None:
    folder, notes = nightly["folder"], nightly["notes"]
    variables = {**s3_credentials(store.port), SWITCH: "s3://states/lost"}
    copies = buckets / f"buckets/states/lost/{VARIANT}/{KEY}" / NEWEST

    def copied() -> int:
        try:
            return json.loads(copies.read_text())["iteration"]
        except (OSError, ValueError):  # not there yet, or just being written
            return 0

    def runs() -> dict[str, str]:
        wanted = {"deployments": {"id": {"any_": [nightly["id"]]}}}
        return {run["id"]: run["state_type"] for run in prefect_server.ask("/flow_runs/filter", wanted)}

    def taken() -> int:
        answer = prefect_server.client.get(f"/v2/concurrency_limits/{GPU_LIMIT}")
        return answer.raise_for_status().json()["active_slots"]

    with prefect_server.worker(folder, "local", **variables) as worker:
        first = prefect_server.ask(f"/deployments/{nightly['id']}/create_flow_run", {})["id"]
        wait_for("states reach the remote", lambda: copied() >= 3, 200, folder / "worker.log", worker)
        assert taken() == 1
        # Power failure: worker, run, DVC and training die in an order that lets none of them send a message.
        family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        assert noted(notes)[0]["pid"] in [one.pid for one in family]
        for one in family:
            one.suspend()
        for one in family:
            one.kill()
    saved = copied()
    assert runs()[first] == "RUNNING", "nobody has told the server"
    shutil.rmtree(folder / ".state")  # another machine knows nothing of it
    with prefect_server.worker(folder, "local", **variables) as worker:
        log = folder / "worker.log"
        wait_for("the run is seen as crashed", lambda: runs()[first] == "CRASHED", 250, log, worker)
        assert silence(prefect_server, first) <= TWO_MINUTES + SLACK
        wait_for("another run is started by itself", lambda: len(runs()) == 2, 120, log, worker)
        (second,) = set(runs()) - {first}
        wait_for("it ends", lambda: runs()[second] in ("COMPLETED", "FAILED", "CRASHED"), 250, log, worker)
        assert runs()[second] == "COMPLETED", log.read_text()[-4000:]
    before, after = noted(notes)
    assert (before["here"], before["resumed"], before["step"]) == (-1, False, 0)
    assert (after["here"], after["resumed"]) == (-1, True) and after["step"] >= saved >= 3
    result = json.loads((folder / f"models/{VARIANT}/train/run.json").read_text())
    assert result == {"step": after["step"], "w": [float(after["step"])] * 4}
    assert (folder / f"models/{VARIANT}/registered.json").is_file() and taken() == 0


# S3 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["overload", "cut", "hold", "refuse"])
def test_failed_uploads_do_not_stop_a_training_and_are_logged_once(
    fault: Any, store: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(s3_store, "_TIMEOUT", 1)
    monkeypatch.setattr(s3_store, "_TRIES", 1)  # its pauses are long; those between our own attempts are none here
    for name, value in s3_credentials(store.port).items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.INFO)
    folder = tmp_path / "v" / KEY
    folder.mkdir(parents=True)
    address = f"s3://states/{fault}"
    remote = StateRemote(open_store(address), folder, tmp_path / "j.jsonl", every=0.0, first_pause=0.01)
    states = StateFolder(folder, {}, on_saved=remote.offer)

    def save(step: int) -> None:
        states.save(TrainingState({"w": torch.full((200_000,), float(step))}, {"step": step}), step)
        with remote._changed:
            assert remote._changed.wait_for(lambda: remote._waiting is None and not remote._busy, 120)

    def told() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == "stages.training.state_remote"]

    # For a while: tried again, or, where it would be refused again, left to the next save.
    store.release.clear()
    store.fail(fault, times=1 if fault in ("hold", "refuse") else 3)
    save(1)
    if fault == "refuse":
        (said,) = told()
        assert f"could not be copied to {address}: the credentials may not do that (AccessDenied); the train" in said
        save(2)
        assert told()[-1] == f"{address}: copies of the training state arrive again"
    else:
        assert told() == [], "nothing to tell where another try did it"
    # For good.
    tries = len(store.seen)
    store.fail(fault)
    if fault != "hold":  # it would take its time
        caplog.clear()
        save(3)
        save(4)
        (said,) = told()
        assert "the next save tries again" in said
        assert len(store.seen) - tries >= (2 if fault == "refuse" else 10)
        assert newest_iteration(folder) == 4
    store.fail(None)
    store.release.set()
    save(5)
    elsewhere = tmp_path / "elsewhere/v" / KEY
    elsewhere.mkdir(parents=True)
    assert StateRemote(open_store(address), elsewhere, tmp_path / "other.jsonl", every=0.0).bring()
    assert StateFolder(elsewhere, {}).newest().values == {"step": 5}  # type: ignore[union-attr]
    remote.close(finished=True)


# MLflow ---------------------------------------------------------------------------------------------------------------


def test_mlflow_that_is_away_for_a_while_gets_everything_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, port = f"sqlite:///{tmp_path}/mlflow.db", free_port()
    ensure_database(database)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    env, log = loopback_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"), tmp_path / "server.log"
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    # A request given up by a slow machine may have been done: no such thing here.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    monkeypatch.chdir(tmp_path)
    journal = RunJournal(tmp_path / "a.jsonl", experiment="away", run_name="tiny")
    (tmp_path / "weights").write_bytes(b"weights")
    with running(command, log, env=env, cwd=tmp_path) as process:
        wait_for("MLflow server", answers(f"{url}/health"), 150, log, process)
        journal.parameters({"epochs": 4})
        journal.metrics({"loss": 4.0}, step=0)
        wait_for("the first records arrive", lambda: journal.deliver(force=True), 150, log, process)
    for step in (1, 2):
        journal.metrics({"loss": 4.0 - step}, step=step)
    journal.artifact(tmp_path / "weights")
    assert journal.due == 3
    # The training is killed as well, and resumed.
    journal = RunJournal(tmp_path / "a.jsonl", experiment="away", run_name="tiny")
    with running(command, log, env=env, cwd=tmp_path) as process:
        wait_for("MLflow server, again", answers(f"{url}/health"), 150, log, process)
        journal.metrics({"loss": 1.0}, step=3)
        journal.finish()
        wait_for("everything arrives", lambda: journal.deliver(force=True), 150, log, process)
        client = mlflow.MlflowClient(tracking_uri=url)
        points = client.get_metric_history(journal.run_id, "loss")
        assert [(one.step, one.value) for one in points] == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)]
        times = [one.timestamp for one in points]
        assert times == sorted(times), "the times at which they arose"
        assert client.get_run(journal.run_id).info.status == "FINISHED"
        assert [one.path for one in client.list_artifacts(journal.run_id)] == ["weights"]
        found = client.search_runs([client.get_experiment_by_name("away").experiment_id])
        assert len(found) == 1, "one run, however often it was interrupted"
    mlflow.set_tracking_uri(None)


# Disk full, and the real training stage on another machine ------------------------------------------------------------


# A network of the user's own, which can also be told to end its process, as the system does, once a copy is complete.
NETWORK = """
import os, signal
from small_detector import small_network
from stages.training.state_remote import StateRemote

upload = StateRemote._upload

def upload_and_die(remote, snapshot):
    upload(remote, snapshot)
    os.kill(os.getpid(), signal.SIGKILL)

def network():
    if "DIE_AFTER_COPY" in os.environ:
        StateRemote._upload = upload_and_die
    return small_network()
"""


def stage(folder: Path, *arguments: str, limit: int | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """A stage of the real pipeline; `limit`: the largest file in bytes that the system lets it write."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    paths = os.pathsep.join([str(folder.parent), str(ROOT / "tests/support"), str(ROOT)])
    env = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**env, **more},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limited,
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A project with data, whose training of a small network takes seconds and copies its states to a folder."""
    folder = tmp_path / "project"
    (folder / "datasets").mkdir(parents=True)
    shutil.copytree(ROOT / "validation", folder / "validation")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["data"]["digits"] |= {"image_size": 96, "train_images": 12, "val_images": 4, "test_images": 2}
    values["validation"] |= {"sample_pictures": 1, "severity": {"class-has-enough-training-boxes": "off"}}
    values["train"] |= {"epochs": 4, "batch_size": 4, "image_size": 96, "evaluate_every": 1, "checkpoint_minutes": 0.0}
    values["train"] |= {"anchors": "keep", "network": "mine:network"}
    values["flow"] |= {"state_remote": str(tmp_path / "share"), "state_every_minutes": 0.0}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "mine.py").write_text(NETWORK)
    for name in ("stages.ingest", "stages.validate"):
        done = stage(folder, name)
        assert done.returncode == 0, done.stderr
    return folder


def states(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(f".state/train/{VARIANT}/*/state-*.safetensors")}


def test_a_full_disk_keeps_the_state_and_another_machine_ends_with_the_same_bits(small: Path, tmp_path: Path) -> None:
    train = ("stages.train", "--variant", VARIANT)
    straight = Path(shutil.copytree(small, tmp_path / "straight"))
    elsewhere = Path(shutil.copytree(small, tmp_path / "elsewhere"))
    done = stage(straight, *train)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "share")

    killed = stage(small, *train, DIE_AFTER_COPY="1")
    before = states(small)
    assert killed.returncode == -signal.SIGKILL and before, killed.stderr
    (copy,) = (tmp_path / "share").rglob(NEWEST)
    assert json.loads(copy.read_text())["iteration"] < 12, "the training was not at its end"

    full = stage(small, *train, limit=64 * 1024)
    assert full.returncode == 2, full.stderr
    (line,) = (one for one in full.stderr.splitlines() if one.startswith("error: "))
    assert "the training state could not be saved: the system refuses files of" in line
    assert "raise the limit (ulimit -f). The state before it is intact" in line
    assert states(small) == before

    shutil.rmtree(small)
    done = stage(elsewhere, *train)
    assert done.returncode == 0, done.stderr
    assert "holds a newer state (iteration" in done.stderr and "resuming at epoch" in done.stderr
    for name in ("best.safetensors", "last.safetensors"):
        ours, theirs = (load_file(one / "models" / VARIANT / "train" / name) for one in (elsewhere, straight))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
