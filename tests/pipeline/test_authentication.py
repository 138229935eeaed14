"""Servers that ask who is there: an anonymous client is refused, a known one gets in; both listen on loopback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from stages.registry.journal import RunJournal
from stages.registry.server import connect
from tests.pipeline.servers import answers, free_port, loopback_environment, running, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

USER, PASSWORD = "somebody", "a-password-of-the-test"


def status(url: str, auth: tuple[str, str] | None = None, **headers: str) -> int:
    return httpx.get(url, auth=auth, headers=headers, timeout=30, trust_env=False).status_code


def listening(pid: int, port: int) -> set[str]:
    """The addresses on which the process and its children take connections at `port`."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    connections = [connection for one in family for connection in one.net_connections(kind="inet")]
    return {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN and one.laddr.port == port}


@pytest.fixture(scope="module")
def guarded_prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, set[str]]]:
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    env = loopback_environment(
        PREFECT_HOME=str(home),
        PREFECT_SERVER_UI_ENABLED="false",
        PREFECT_SERVER_API_AUTH_STRING=f"{USER}:{PASSWORD}",
        # Who is let in does not depend on the database, and to make one takes longer than all the rest.
        PREFECT_API_DATABASE_MIGRATE_ON_START="false",
        PREFECT_API_BLOCKS_REGISTER_ON_START="false",
    )
    # No --host: the default address is part of the test.
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-services"]
    url, log = f"http://127.0.0.1:{port}/api", home / "server.log"
    with running(command, log, env=env, cwd=home) as process:
        wait_for("Prefect server", answers(f"{url}/health"), 240, log, process)
        yield url, listening(process.pid, port)


@pytest.fixture(scope="module")
def guarded_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, set[str], Path]]:
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    (folder / "basic_auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/users.db\n"
    )
    env = loopback_environment(
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_AUTH_CONFIG_PATH=str(folder / "basic_auth.ini"),
        MLFLOW_AUTH_ADMIN_USERNAME=USER,
        MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD,
        MLFLOW_FLASK_SERVER_SECRET_KEY="a-key-of-the-test",
        MLFLOW_SERVER_ALLOWED_HOSTS="mlflow:5000,127.0.0.1:*,localhost:*",
    )
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command += ["--port", str(port)]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with running(command, log, env=env, cwd=folder) as process:
        wait_for("MLflow server", answers(f"{url}/health"), 240, log, process)
        yield url, listening(process.pid, port), log


@pytest.mark.parametrize("path", ["/admin/version", "/admin/settings"])
def test_prefect_refuses_unknown_users(guarded_prefect, path):
    url, _ = guarded_prefect
    assert status(url + path) == 401
    assert status(url + path, (USER, "another-password")) == 401
    assert status(url + path, (USER, PASSWORD)) == 200


@pytest.mark.parametrize(
    "path", ["/flows/filter", "/deployments/", "/variables/", "/work_pools/local/get_scheduled_flow_runs"]
)
def test_prefect_takes_nothing_from_strangers(guarded_prefect, path):
    url, _ = guarded_prefect
    assert httpx.post(url + path, json={}, timeout=30, trust_env=False).status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/api/2.0/mlflow/registered-models/search",
        "/api/2.0/mlflow-artifacts/artifacts?path=",
        "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0",
    ],
)
def test_mlflow_refuses_unknown_users(guarded_mlflow, path):
    url, _, _ = guarded_mlflow
    assert status(url + path) == 401
    assert status(url + path, (USER, "another-password")) == 401
    assert status(url + path, (USER, PASSWORD)) == 200


def test_mlflow_answers_for_its_own_names_only(guarded_mlflow):
    url, _, _ = guarded_mlflow
    page = url + "/api/2.0/mlflow/experiments/search?max_results=1"
    assert status(page, (USER, PASSWORD), Host="mlflow:5000") == 200
    assert status(page, (USER, PASSWORD), Host="elsewhere.example:5000") == 403


def test_the_journal_waits_for_a_server_that_refuses_it(guarded_mlflow, tmp_path, monkeypatch):
    """A wrong password stops no training: records wait, and arrive once the environment names the right one."""
    url, _, log = guarded_mlflow
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
    journal = RunJournal(tmp_path / "run.jsonl", experiment="guarded", run_name="one")
    journal.metrics({"loss": 0.5}, step=1)
    assert journal.run_id is None and journal.due == 1
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    try:
        assert journal.finish()
        assert journal.run_id is not None and journal.due == 0
        history = connect().get_metric_history(journal.run_id, "loss")
    finally:
        import mlflow

        mlflow.set_tracking_uri(None)
    assert [(one.step, one.value) for one in history] == [(1, 0.5)]
    written = [log, *tmp_path.glob("run.*")]
    assert not any(PASSWORD in path.read_text(errors="replace") for path in written), "no password in logs or journals"


def test_servers_bind_to_loopback_unless_told_otherwise(guarded_prefect, guarded_mlflow):
    assert guarded_prefect[1] == {"127.0.0.1"}
    assert guarded_mlflow[1] == {"127.0.0.1"}
