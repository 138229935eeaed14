"""MLflow before the first epoch: a server that is away is waited for, one that refuses is not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import mlflow
import pytest

from stages.preflight.findings import Findings
from stages.preflight.records import check_records
from stages.project.params import Params
from stages.registry import server as server_module
from stages.registry.address import sqlite_file
from stages.registry.server import connect


@pytest.fixture
def workspace(tmp_path, monkeypatch, new_database):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copyfile(new_database, tmp_path / "mlflow.db")
    yield tmp_path
    mlflow.set_tracking_uri(None)


def checked() -> Findings:
    found = Findings()
    check_records(Params(), ["yolov7-tiny"], found)
    return found


@contextmanager
def server(status: int, body: str) -> Iterator[str]:
    """Address of a server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        httpd.server_close()


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, "You are not authenticated.", "MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "403"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "Invalid Host"),
        (404, "Not Found", "is this MLflow's address?"),
        (404, '{"detail": "Not Found"}', "MLflow"),
        (200, "<html>Log in</html>", "is this MLflow's address?"),
    ],
)
def test_a_server_that_refuses_is_a_problem(workspace, monkeypatch, status, body, says):
    with server(status, body) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        found = checked()
    assert len(found.problems) == 1 and says in found.problems[0], found


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_in_trouble_is_a_warning(workspace, monkeypatch, status):
    with server(status, "try later") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        found = checked()
    assert found.problems == [] and "records of the training wait" in found.warnings[0]


def test_a_server_that_is_away_is_a_warning(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = checked()
    assert found.problems == [] and "records of the training wait" in found.warnings[0]


def test_a_good_database_leaves_no_trace(workspace):
    found = checked()
    assert (found.problems, found.warnings) == ([], [])
    assert [path for path in (workspace / "mlartifacts").rglob("*") if path.is_file()] == []
    assert connect().search_runs([connect().get_experiment_by_name("yolov7").experiment_id]) == []


def test_a_database_that_does_not_exist_yet_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert checked().problems == [] and not Path("mlflow.db").exists()
    Path("file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///file/mlflow.db")
    assert "cannot be made" in checked().problems[0]


def test_a_file_that_is_no_database(workspace):
    (workspace / "mlflow.db").write_text("not a database" * 100)
    assert "file is not a database" in checked().problems[0]


def test_a_deleted_experiment(workspace):
    client = connect()
    client.delete_experiment(client.create_experiment("yolov7"))
    assert "mlflow experiments restore --experiment-id" in checked().problems[0]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("file:///elsewhere/project/mlartifacts", "the project was moved"),
        ("s3://bucket/mlflow", "Unable to locate credentials"),
    ],
)
def test_artifacts_that_cannot_be_stored(workspace, monkeypatch, location, says):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    connect().create_experiment("yolov7", location)
    assert says in checked().problems[0]


def test_artifacts_where_a_file_is_in_the_way(workspace):
    (workspace / "mlartifacts").write_text("")
    assert "mlartifacts" in checked().problems[0]


def test_a_name_that_others_have_taken(workspace):
    client = connect()
    client.create_registered_model("yolov7-tiny")
    client.create_model_version("yolov7-tiny", source="s3://elsewhere/model")
    assert "registry.model_prefix" in checked().problems[0]


@pytest.fixture
def quick_databases(monkeypatch, new_database):
    """A database is made as a copy of one that was made: the migrations take seconds."""
    plain = subprocess.run

    def run(command, **more):
        if "upgrade" not in command:
            return plain(command, **more)
        shutil.copyfile(new_database, sqlite_file(command[-1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(server_module.subprocess, "run", run)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.usefixtures("quick_databases")
def test_a_registry_of_its_own(workspace, monkeypatch, fresh):
    if fresh:
        (workspace / "mlflow.db").unlink()
    (workspace / "file").write_text("")
    (workspace / "junk.db").write_text("not a database" * 100)
    for address, problem, warning in (
        ("sqlite:///registry.db", "", ""),
        ("sqlite:///file/registry.db", "MLFLOW_REGISTRY_URI: ", ""),
        ("sqlite:///junk.db", "the registry at sqlite:", ""),
        ("http://127.0.0.1:9", "", "the registry at http://127.0.0.1:9"),
    ):
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", address)
        found = checked()
        for lines, wanted in ((found.problems, problem), (found.warnings, warning)):
            assert wanted in lines[0] if wanted else not lines, (address, lines)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"MLFLOW_TRACKING_INSECURE_TLS": "true", "MLFLOW_TRACKING_SERVER_CERT_PATH": "/c.pem"}, "must not be set"),
        ({"MLFLOW_TRACKING_SERVER_CERT_PATH": "/nonexistent"}, "/nonexistent"),
        ({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "many"}, "MLFLOW_HTTP_REQUEST_MAX_RETRIES"),
    ],
)
def test_settings_of_mlflow_that_never_work(workspace, monkeypatch, settings, says):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://127.0.0.1:9")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = checked()
    assert says in found.problems[0] and not found.warnings
