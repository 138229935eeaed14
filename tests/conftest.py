"""For every test: one thread per process, no telemetry, and the same examples every time.

Threads of OpenMP that wait for each other while other processes hold the cores make small tensors many times slower;
the suite runs in parallel processes instead. Children inherit both settings. Property-based tests draw the same
examples in every run, so that a change is judged by itself; `HYPOTHESIS_PROFILE=random` draws new ones.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from stages.project.command import NO_TELEMETRY
from stages.registry import server

# With all that is imported here Python looks for garbage too often: up to a quarter of the time of a test of networks.
gc.set_threshold(20_000, 20, 20)

settings.register_profile("same", derandomize=True, database=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

os.environ.update(NO_TELEMETRY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a long one that starts last would leave the other processes without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


SET_BY_CLIENTS = (
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
)


@pytest.fixture(autouse=True)
def _each_test_meets_mlflow_afresh() -> Iterator[None]:
    """Clients choose their patience for a whole process: no test waits as long as the client of another chose."""
    before = {name: os.environ.get(name) for name in SET_BY_CLIENTS}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# These start a Prefect server of their process: one process runs them all.
TOGETHER = ("tests/pipeline/test_flow.py", "tests/pipeline/test_search_flow.py")


class _Files(LoadFileScheduling):
    """Each file is one process's, and so are those that share a server."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return TOGETHER[0] if file in TOGETHER else file


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _Files | None:
    return _Files(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database to copy, made once for all test processes: its many migrations take a while.

    Several ask for it at the same time, as tests/unit/stages/registry/test_journal.py wants it.
    """
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "new-mlflow.db"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(server.ensure_database, [f"sqlite:///{path}"] * 3))
    return path
