"""Real servers on loopback, each with its state in a temporary folder, and a small DVC project."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.project.locks import file_lock
from stages.registry.versions import ModelRegistry
from tests.pipeline.project import make_project
from tests.pipeline.servers import (
    PrefectServer,
    answers,
    free_port,
    loopback_environment,
    prefect_serving,
    running,
    wait_for,
)
from yolov7.signature import SIGNING_KEY, VERIFY_KEY

# Prefect reads its settings when it is imported, and its background threads look at no others.
PREFECT_PORT = free_port()
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{PREFECT_PORT}/api"
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
os.environ["PREFECT_HOME"] = str(Path(tempfile.gettempdir()) / f"prefect-of-test-{os.getpid()}")


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def project(project_template: Path, tmp_path: Path) -> Path:
    """A copy of the small project with both variants."""
    return Path(shutil.copytree(project_template, tmp_path / "project"))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server with a SQLite file. Flows called in this process report to it."""
    with prefect_serving(tmp_path_factory.mktemp("prefect"), PREFECT_PORT) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_file(tmp_path_factory: pytest.TempPathFactory, new_database: Path) -> str:
    """Address of a fresh MLflow database in a SQLite file."""
    path = tmp_path_factory.mktemp("mlflow-file") / "mlflow.db"
    shutil.copyfile(new_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def registry(mlflow_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelRegistry]:
    """A registry in a SQLite file, seen from an empty folder, without keys to sign or verify with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # a server that a test takes away does not come back
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
    for name in (SIGNING_KEY, VERIFY_KEY):
        monkeypatch.delenv(name, raising=False)
    yield ModelRegistry()
    import mlflow

    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, new_database: Path) -> Iterator[str]:
    """Address of an MLflow server with a SQLite file behind it, which also passes the artifacts on."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    database = f"sqlite:///{folder}/mlflow.db"
    shutil.copyfile(new_database, folder / "mlflow.db")
    # Its job runner is eight more processes, which nothing here uses.
    env = loopback_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with running(command, log, env=env, cwd=folder) as process:
        wait_for("MLflow server", answers(f"{url}/health"), 120, log, process)
        yield url


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder of a small, untrained network, made once for all test processes: tracing it takes a while."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with file_lock(shared / "export.lock"):
        folder = shared / "model/export"
        if not (folder / "model.json").is_file():
            from tests.pipeline.export_folder import make_export

            make_export(folder)
    return folder
