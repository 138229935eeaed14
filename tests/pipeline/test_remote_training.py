"""A training on another machine: two clones with a worker each, which share git, S3 and the Prefect server."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flows import train_variant
from flows.runner import remote as dvc_remote
from flows.runner.pipeline import LOGS, Pipeline, StageError
from flows.runner.worktree import WORKTREES, commit_of
from stages.project.command import RESTORE_ONLY
from stages.registry.address import DATABASE
from stages.registry.journal import JOURNALS, RunJournal
from tests.pipeline.faulty_s3 import FaultyS3, faulty_s3
from tests.pipeline.project import configure, make_project
from tests.pipeline.servers import PrefectServer, loopback_environment, s3_credentials, s3_server, wait_for
from yolov7.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]
VARIANT, STAGE = "yolov7-tiny", "train@yolov7-tiny"
LOG = logging.getLogger("test")

# Notes beside the clones that it ran, and where; a stage that is only to be restored must not.
TRAIN = """
import os, pathlib, sys
counted, out, source = map(pathlib.Path, sys.argv[1:])
with counted.open("a") as file:
    file.write(os.getcwd() + chr(10))
if os.environ.get("{restore_only}"):
    sys.exit(2)
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text("trained on " + source.read_text())
"""


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyS3]:
    """An S3 server with a bucket `dvc`, behind a proxy that fails on demand."""
    with s3_server(tmp_path_factory.mktemp("s3"), "dvc") as port, faulty_s3(port) as proxy:
        yield proxy


@pytest.fixture
def clones(tmp_path: Path, store: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two clones of a project whose raw data only the first one has."""
    seed, counted = make_project(tmp_path / "seed"), tmp_path / "trained"
    configure(seed, (VARIANT,), remote_training="train-variant/by-revision")
    document = yaml.safe_load((seed / "dvc.yaml").read_text())
    stages = document["stages"]
    stages["train"] |= {"cmd": f"python train.py {counted} models/${{item.variant}}/train/run.json data/index.json"}
    stages["ingest"] |= {"cmd": "python stage.py ingest data/ingested.json raw/photo.txt", "deps": ["raw"]}
    (seed / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (seed / "train.py").write_text(TRAIN.format(restore_only=RESTORE_ONLY))
    (seed / ".gitignore").write_text("/raw/\n/.state/\n/.local/\n*.log\n")
    address = f"    url = s3://dvc/{tmp_path.name}\n    endpointurl = http://127.0.0.1:{store.port}\n"
    (seed / ".dvc/config").write_text(f"[core]\n    remote = s3\n['remote \"s3\"']\n{address}")
    git(seed, "add", "-A")
    git(seed, "commit", "-qm", "start")
    git(tmp_path, "clone", "-q", "--bare", str(seed), "origin.git")
    shutil.rmtree(seed)
    for name in ("asks", "trains"):
        git(tmp_path, "clone", "-q", "origin.git", name)
    (tmp_path / "asks/raw").mkdir()
    (tmp_path / "asks/raw/photo.txt").write_text("only here")
    credentials = s3_credentials(store.port)
    del credentials["AWS_ENDPOINT_URL"]
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    store.fail(None)
    return SimpleNamespace(asks=tmp_path / "asks", trains=tmp_path / "trains", counted=counted, variables=credentials)


def deploy(server: PrefectServer, folder: Path, flow: str, entrypoint: str, name: str, pool: str) -> str:
    """A deployment of a flow that works in `folder`; returns its id."""
    server.client.post("/work_pools/", json={"name": pool, "type": "process"})
    body: dict[str, Any] = {"name": name, "flow_id": server.ask("/flows/", {"name": flow})["id"]}
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}
    body |= {"entrypoint": entrypoint, "work_pool_name": pool, "pull_steps": [step]}
    return server.ask("/deployments/", body)["id"]


def flow_run(server: PrefectServer, number: str) -> dict[str, Any]:
    answer = server.client.get(f"/flow_runs/{number}")
    answer.raise_for_status()
    return answer.json()


def test_a_training_by_revision_on_another_machine_comes_back_by_the_run_cache(
    clones: SimpleNamespace, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an earlier training on that machine could not deliver.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    journal = RunJournal(clones.trains / JOURNALS / "earlier.jsonl", experiment="earlier", run_name="earlier")
    journal.metrics({"loss": 1.0}, step=0)
    assert journal.due == 1
    child = deploy(
        prefect_server, clones.trains, "train-variant", "flows.train_variant.train_variant", "by-revision", "trains"
    )
    parent = deploy(
        prefect_server, clones.asks, "train-variants", "flows.train_variants.train_variants", "asks", "asks"
    )
    with (
        prefect_server.worker(clones.asks, "asks", **clones.variables),
        prefect_server.worker(clones.trains, "trains", **clones.variables),
    ):
        body = {"parameters": {"promote_challengers": False}, "state": {"type": "SCHEDULED"}}
        number = prefect_server.ask(f"/deployments/{parent}/create_flow_run", body)["id"]
        final = ("COMPLETED", "FAILED", "CRASHED")
        log = clones.asks / "worker.log"
        wait_for("the variants", lambda: flow_run(prefect_server, number)["state_type"] in final, 600, log)
    run = flow_run(prefect_server, number)
    assert run["state_type"] == "COMPLETED", f"{run['state']['message']}\n{log.read_text()[-6000:]}"
    (where,) = clones.counted.read_text().splitlines()
    assert Path(where).is_relative_to(clones.trains / WORKTREES), "trained once, on the other machine"
    assert not Path(where).exists() and not (clones.trains / "models").exists(), "nothing is left there"
    kept = clones.trains / LOGS / f"by-revision/{VARIANT}/{STAGE}.log"
    assert "Running stage" in kept.read_text(), "what a message calls its log outlives the worktree"
    again = RunJournal(journal.path, experiment="earlier", run_name="earlier")
    assert again.due == 0 and (clones.trains / DATABASE).is_file(), "delivered, and not into the worktree"
    out = clones.asks / f"models/{VARIANT}"
    assert (out / "train/run.json").read_text().startswith("trained on ") and (out / "registered.json").is_file()
    (asked,) = prefect_server.ask("/flow_runs/filter", {"deployments": {"id": {"any_": [child]}}})
    assert asked["parameters"]["revision"] == git(clones.asks, "rev-parse", "HEAD")
    assert set(asked["parameters"]["data"]) == {"ingest", "validate"}, "data by hash"
    # As after a training of its own.
    with Pipeline(clones.asks) as pipeline:
        assert pipeline.up_to_date([STAGE, "validate"]) == {STAGE, "validate"}
    # A third machine restores it too.
    git(clones.asks.parent, "clone", "-q", "origin.git", "third")
    third = clones.asks.parent / "third"
    shutil.copytree(clones.asks / "raw", third / "raw")
    command = [sys.executable, "-m", "dvc", "repro", "--pull", STAGE]
    done = subprocess.run(command, cwd=third, env=loopback_environment(), capture_output=True, text=True, timeout=200)
    assert f"'{STAGE}' is cached - skipping run" in done.stdout, done.stdout + done.stderr
    assert clones.counted.read_text().count("\n") == 1


def test_time_is_counted_from_the_start_and_a_run_that_takes_too_long_is_cancelled(
    prefect_server: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_variant, "_POLL_SECONDS", 0.2)
    child = deploy(prefect_server, tmp_path, "train-variant", "flows.train_variant.train_variant", "waits", "nobody")
    parameters, hours = {"variant": VARIANT, "revision": "a" * 40}, 1 / 3600

    def runs() -> dict[str, str]:
        found = prefect_server.ask("/flow_runs/filter", {"deployments": {"id": {"any_": [child]}}})
        return {run["id"]: run["state_type"] for run in found}

    def ask() -> None:
        train_variant._request("train-variant/waits", parameters, STAGE, hours, LOG, asker="one")

    def set_state(number: str, kind: str) -> None:
        prefect_server.ask(f"/flow_runs/{number}/set_state", {"state": {"type": kind}, "force": True})

    with ThreadPoolExecutor(2) as pool:
        first, same = pool.submit(ask), pool.submit(ask)
        wait_for("it is asked for", runs, 60)
        time.sleep(2.5)
        assert not first.done() and not same.done() and list(runs().values()) == ["SCHEDULED"], "it waits in a queue"
        (number,) = runs()
        set_state(number, "RUNNING")
        for each in (first, same):
            with pytest.raises(StageError, match=r"did not end within .* h and was cancelled") as caught:
                each.result(60)
            assert not caught.value.lasting
        assert runs()[number] in ("CANCELLING", "CANCELLED")
        again = pool.submit(ask)
        wait_for("another is asked for", lambda: len(runs()) == 2, 60)
        (second,) = set(runs()) - {number}
        set_state(second, "COMPLETED")
        again.result(60)


def test_code_that_no_other_machine_can_have_is_not_asked_for(
    clones: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clones.asks)
    assert train_variant._committed(STAGE) == git(clones.asks, "rev-parse", "HEAD")
    (clones.asks / "stage.py").write_text("changed")
    with pytest.raises(ConfigError, match=r"needs a git revision, but stage\.py differ from the commit; commit and"):
        train_variant._committed(STAGE)
    git(clones.asks, "commit", "-qam", "not pushed")
    revision = git(clones.asks, "rev-parse", "HEAD")
    with pytest.raises(ConfigError, match=f"revision {revision} is not in this repository .*; push it"):
        commit_of(clones.trains, revision, fetch=True)
    git(clones.asks, "push", "-q", "origin", "HEAD")
    assert commit_of(clones.trains, revision, fetch=True) == revision
    with pytest.raises(ConfigError, match="not a git clone"):
        commit_of(clones.asks.parent, "HEAD")


@pytest.mark.parametrize(
    ("said", "words", "lasting"),
    [
        ("config file error: no remote specified in /p. Setup default remote", "no remote is configured", True),
        ("An error occurred (NoSuchBucket) when calling the PutObject operation", "there is no such bucket", True),
        ("ERROR: unexpected error - Unable to locate credentials", "no credentials: set AWS_ACCESS_KEY_ID", True),
        ("An error occurred (SlowDown) ... (reached max retries: 4)", "the server is overloaded (SlowDown)", False),
        ('Could not connect to the endpoint URL: "http://127.0.0.1:9/"', "cannot be reached", False),
        ("Connection was closed before we received a valid response", "cuts connections", False),
    ],
)
def test_messages_of_the_remote_are_classified(tmp_path: Path, said: str, words: str, lasting: bool) -> None:
    log = tmp_path / LOGS / "push.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"working\n{said}\nHaving any troubles?\n")
    pipeline = Pipeline(tmp_path)
    error = dvc_remote.explained(StageError("push failed", stage="push", log=log), pipeline)
    assert words in str(error) and str(error).endswith(f"; log: {LOGS}/push.log") and error.lasting is lasting
    log.write_text("something else")
    plain = StageError("push failed", stage="push", log=log)
    assert dvc_remote.explained(plain, pipeline) is plain


def test_a_remote_that_refuses_an_upload_is_named_in_one_line(clones: SimpleNamespace, store: FaultyS3) -> None:
    with Pipeline(clones.asks) as pipeline:
        pipeline.reproduce("ingest", LOG)
        store.fail("refuse")
        with pytest.raises(StageError) as refused:
            dvc_remote.push(pipeline, LOG, "ingest")
        assert refused.value.lasting and "\n" not in str(refused.value)
        message = "the server refuses the credentials or their rights (AccessDenied); log: .local/logs/push.log"
        assert str(refused.value) == f"stage push: the DVC remote: {message}"
        # Uploads that are cut are sent again by DVC itself.
        store.fail("cut", times=2)
        dvc_remote.push(pipeline, LOG, "ingest")
        assert store.times == 0
    assert os.environ["AWS_ACCESS_KEY_ID"] not in (clones.asks / LOGS / "push.log").read_text()
