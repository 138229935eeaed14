"""For every test: one thread per process, no telemetry, and the same examples every time.

Threads of OpenMP that wait for each other while other processes hold the cores make small tensors many times slower;
the suite runs in parallel processes instead. Children inherit both settings. Property-based tests draw the same
examples in every run, so that a change is judged by itself; `HYPOTHESIS_PROFILE=random` draws new ones.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from stages.project.command import NO_TELEMETRY
from stages.registry import server

settings.register_profile("same", derandomize=True, database=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

os.environ.update(NO_TELEMETRY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a long one that starts last would leave the other processes without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database to copy, made once for all test processes: its many migrations take a while."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "new-mlflow.db"
    server.ensure_database(f"sqlite:///{path}")  # once, by the first process
    return path
