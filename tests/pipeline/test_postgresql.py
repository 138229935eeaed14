"""A team's servers: Prefect and MLflow on PostgreSQL, artifacts and data in S3; the database fails in mid-run.

One run of the small project goes through all of them, with real credentials for each. Afterwards: nothing is lost, no
credential was written anywhere, and a backup restored into fresh servers and folders is whole.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from stages.registry.versions import CHAMPION
from tests.pipeline.export_folder import image_bytes
from tests.pipeline.postgresql import PASSWORD, Cluster, postgresql
from tests.pipeline.project import configure, with_real_registration
from tests.pipeline.servers import (
    S3_SECRET,
    answers,
    free_port,
    loopback_environment,
    running,
    s3_credentials,
    s3_server,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(2400)]
VARIANT = "yolov7-tiny"
STEPS = 30
SIGN_IN = ("somebody", "password-of-prefect")
PLANTED = {
    "the database": PASSWORD,
    "S3": S3_SECRET,
    "Prefect": SIGN_IN[1],
    "MLflow": "password-of-mlflow",
    "git": "password-of-the-git-remote",
}

# Logs a third of its steps, waits until the database is down, logs another, waits until it is back, and ends.
TRAIN = """
import json, pathlib, time
from stages.registry.journal import JOURNALS, RunJournal
def wait(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.1)
journal = RunJournal(JOURNALS / "yolov7-tiny-abc.jsonl", experiment="yolov7", run_name="yolov7-tiny")
journal.tags({"fingerprint": "abc"})
for step in range(30):
    journal.metrics({"train/loss": 1 / (step + 1)}, step)
    if step == 9:
        pathlib.Path("connected" if journal.run_id and not journal.due else "never connected").touch()
        wait("down")
    if step == 19:
        pathlib.Path("waiting" if journal.due else "never down").touch()
        wait("up")
journal.finish()
out = pathlib.Path("models/yolov7-tiny/train")
out.mkdir(parents=True, exist_ok=True)
run = {"variant": "yolov7-tiny", "fingerprint": "abc", "run_id": journal.run_id}
(out / "run.json").write_text(json.dumps(run))
"""


@dataclass
class Team:
    """The servers, and the project after its run."""

    folder: Path
    project: Path
    cluster: Cluster
    s3_port: int
    prefect: str
    mlflow: str
    env: dict[str, str]
    """The variables of a user of all the servers."""
    returncode: int
    log: Path


@contextmanager
def mlflow_server(folder: Path, database: str, s3_port: int) -> Iterator[str]:
    port, log = free_port(), folder / "mlflow.log"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", "s3://mlflow", "--host", "127.0.0.1", "--port", str(port)]
    env = loopback_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **s3_credentials(s3_port))
    with running(command, log, env=env, cwd=folder) as process:
        wait_for("MLflow server", answers(f"http://127.0.0.1:{port}/health"), 600, log, process)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def prefect_server(folder: Path, cluster: Cluster) -> Iterator[str]:
    port, log = free_port(), folder / "prefect.log"
    env = loopback_environment(
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_SERVER_UI_ENABLED="false",
        PREFECT_API_DATABASE_CONNECTION_URL=cluster.address("prefect", "postgresql+asyncpg"),
        PREFECT_SERVER_API_AUTH_STRING=":".join(SIGN_IN),
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, log, env=env, cwd=folder) as process:
        wait_for("Prefect server", answers(f"http://127.0.0.1:{port}/api/health"), 600, log, process)
        yield f"http://127.0.0.1:{port}/api"


def shipped_environment() -> dict[str, str]:
    """The variables that prefect.yaml sets for every run."""
    document = yaml.safe_load((Path(__file__).resolve().parents[2] / "prefect.yaml").read_text())
    env: dict[str, str] = document["definitions"]["work_pool"]["job_variables"]["env"]
    return {name: value for name, value in env.items() if name.startswith("PREFECT_")}


def do(command: list[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def prepare(project: Path, export: Path, env: dict[str, str]) -> None:
    configure(project, (VARIANT,), push=True)
    with_real_registration(project, export, image_bytes(), ap=0.5)
    document = yaml.safe_load((project / "dvc.yaml").read_text())
    document["stages"]["train"] |= {"cmd": "python train.py", "deps": ["data/index.json", "train.py"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (project / "train.py").write_text(TRAIN)
    for command in (
        [sys.executable, "-m", "dvc", "remote", "add", "--default", "team", "s3://dvc/project"],
        ["git", "remote", "add", "origin", f"https://somebody:{PLANTED['git']}@git.example/project.git"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "-m", "start"],
    ):
        do(command, project, env)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, project_template: Path, export: Path) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    project = Path(shutil.copytree(project_template, folder / "project"))
    with ExitStack() as stack:
        cluster = stack.enter_context(postgresql())
        for database in ("prefect", "mlflow"):
            cluster.tool("createdb", database)
        s3_port = stack.enter_context(s3_server(folder, "mlflow", "dvc"))
        mlflow = stack.enter_context(mlflow_server(folder, cluster.address("mlflow"), s3_port))
        prefect = stack.enter_context(prefect_server(folder, cluster))
        env = loopback_environment(
            PREFECT_API_URL=prefect,
            PREFECT_API_AUTH_STRING=":".join(SIGN_IN),
            PREFECT_HOME=str(folder / "client"),
            PREFECT_LOGGING_TO_API_ENABLED="true",
            **shipped_environment(),
            MLFLOW_TRACKING_URI=mlflow.replace("://", f"://somebody:{PLANTED['MLflow']}@"),
            MLFLOW_TRACKING_USERNAME="somebody",
            MLFLOW_TRACKING_PASSWORD=PLANTED["MLflow"],
            **s3_credentials(s3_port),
        )
        prepare(project, export, env)
        flow = [sys.executable, "-c", "from flows.train_variants import train_variants; train_variants()"]
        log = folder / "flow.log"
        with running(flow, log, env=env, cwd=project) as process:
            wait_for("a part of the training", lambda: (project / "connected").exists(), 600, log, process)
            cluster.stop()
            (project / "down").touch()
            wait_for("more of the training", lambda: (project / "waiting").exists(), 600, log, process)
            cluster.start()
            (project / "up").touch()
            returncode = process.wait(900)  # a model is some hundred small uploads
        yield Team(folder, project, cluster, s3_port, prefect, mlflow, env, returncode, log)


def history(team: Team, address: str) -> list[tuple[int, float]]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=address)
    version = client.get_model_version_by_alias(VARIANT, CHAMPION)
    points = client.get_metric_history(version.run_id, "train/loss")
    return sorted((point.step, point.value) for point in points)


def test_a_run_outlives_its_database(team: Team) -> None:
    assert team.returncode == 0, team.log.read_text()
    answer = httpx.post(f"{team.prefect}/flow_runs/filter", json={}, auth=SIGN_IN, timeout=60, trust_env=False)
    assert [run["state"]["type"] for run in answer.raise_for_status().json()] == ["COMPLETED"]
    wanted = {"artifacts": {"key": {"any_": ["train-variants"]}}}
    page = httpx.post(f"{team.prefect}/artifacts/filter", json=wanted, auth=SIGN_IN, timeout=60, trust_env=False)
    assert "7 of 7 stages ran" in page.json()[0]["data"]
    assert "MLflow cannot be reached" in team.log.read_text(), "the database was away while the training went on"
    expected = [(step, 1 / (step + 1)) for step in range(STEPS)]
    assert history(team, team.mlflow) == expected, "every step arrived, once"


def test_no_credential_was_written_anywhere(team: Team) -> None:
    dumps = {name: team.cluster.tool("pg_dump", name) for name in ("prefect", "mlflow")}
    assert "7 of 7 stages ran" in dumps["prefect"] and "train/loss" in dumps["mlflow"], "the dumps hold the run"
    assert "working on ingest" in dumps["prefect"], "what stages say is among the logs on the server"
    files = [path for path in team.folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    names = {path.name for path in files}
    assert {"mlflow.log", "prefect.log", "flow.log", "train@yolov7-tiny.log", "MLmodel", "dvc.lock"} <= names
    contents = {str(path): path.read_bytes() for path in files} | {k: v.encode() for k, v in dumps.items()}
    found = [(place, what) for place, text in contents.items() for what, one in PLANTED.items() if one.encode() in text]
    assert found == []


def test_a_backup_restored_elsewhere_is_whole(team: Team, tmp_path: Path) -> None:
    backup, rclone = tmp_path / "backup", shutil.which("rclone", path=team.env["PATH"])
    backup.mkdir()
    assert rclone is not None
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    do(["git", "add", "dvc.lock"], team.project, team.env)
    do(["git", *identity, "commit", "--quiet", "-m", "results"], team.project, team.env)

    # Back up, as in docs/operations.md.
    for name in ("mlflow", "prefect"):
        team.cluster.tool("pg_dump", "--format=custom", f"--dbname={name}", f"--file={backup}/{name}.dump")
    for bucket in ("mlflow", "dvc"):
        do([rclone, "sync", f"s3:{bucket}", str(backup / bucket)], tmp_path, rclone_environment(team.s3_port))
    do(["git", "push", "--quiet", "--mirror", str(bare(backup / "project.git"))], team.project, team.env)

    # Restore into servers and folders that have never seen the project.
    with ExitStack() as stack:
        cluster = stack.enter_context(postgresql())
        for name in ("mlflow", "prefect"):
            cluster.tool("createdb", name)
            cluster.tool("pg_restore", f"--dbname={name}", str(backup / f"{name}.dump"))
        s3_port = stack.enter_context(s3_server(tmp_path, "mlflow", "dvc"))
        for bucket in ("mlflow", "dvc"):
            do([rclone, "sync", str(backup / bucket), f"s3:{bucket}"], tmp_path, rclone_environment(s3_port))
        address = stack.enter_context(mlflow_server(tmp_path, cluster.address("mlflow"), s3_port))
        env = loopback_environment(MLFLOW_TRACKING_URI=address, **s3_credentials(s3_port))
        do(["git", "clone", "--quiet", str(backup / "project.git"), "project"], tmp_path, env)
        project = tmp_path / "project"
        said = do([sys.executable, "-m", "dvc", "repro", "--pull"], project, env)
        assert "Running stage" not in said, "everything came from the bucket"
        for name in (f"models/{VARIANT}/export/model.onnx", f"models/{VARIANT}/registered.json"):
            assert (project / name).read_bytes() == (team.project / name).read_bytes()

        assert history(team, address) == history(team, team.mlflow)
        query = "select count(*) from flow_run where state_type = 'COMPLETED'"
        assert cluster.tool("psql", "--dbname=prefect", "--tuples-only", f"--command={query}").strip() == "1"
        (project / "one.png").write_bytes(image_bytes())
        predict = [sys.executable, "-m", "yolov7.cli", "predict", "one.png", "--model", f"models:/{VARIANT}@{CHAMPION}"]
        do(predict, project, env)

        # What was restored with a changed byte is refused, not used.
        shutil.rmtree(project / ".local/models")
        (stored,) = (tmp_path / "buckets/mlflow").rglob("model.onnx")
        damaged = bytearray(stored.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        stored.write_bytes(damaged)
        done = subprocess.run(predict, cwd=project, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2 and "model.onnx: its bytes are not those" in done.stderr


def bare(folder: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", "--bare", str(folder)], check=True)
    return folder


def rclone_environment(port: int) -> dict[str, str]:
    keys = s3_credentials(port)
    settings = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": keys["AWS_ENDPOINT_URL"]}
    return loopback_environment(
        RCLONE_CONFIG=os.devnull, **{f"RCLONE_CONFIG_S3_{key}": value for key, value in settings.items()}, **keys
    )
