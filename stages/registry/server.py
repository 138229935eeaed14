"""The MLflow server, or the SQLite file that stands for one: its address, its clients and its experiments."""

from __future__ import annotations

import os
import posixpath
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.project.command import environment
from stages.project.home import STATE
from stages.project.locks import file_lock
from stages.project.redaction import redacted
from stages.registry.address import REGISTRY, SQLITE, TRACKING, registry_uri, sqlite_file, tracking_uri, unusable
from yolov7.errors import ConfigError, TrainingError

ARTIFACTS = Path("mlartifacts")
_LOCK = STATE / "mlflow.lock"
_LONGEST_NAME = 250
"""Characters of a metric's or parameter's name."""


def connect() -> Any:
    """An `MlflowClient` for :func:`tracking_uri`; a SQLite file that does not exist yet is created.

    Raises :class:`ConfigError` for an address that can never work.
    """
    # A server that is away must not hold up training: few, short attempts; the journal does the waiting.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    uri, registry = tracking_uri(), registry_uri()
    for address, variable in ((uri, TRACKING), (registry, REGISTRY)):
        if problem := unusable(address, variable):
            raise ConfigError(problem)
        ensure_database(address)
    mlflow.set_tracking_uri(uri)
    if os.environ.get(REGISTRY):
        mlflow.set_registry_uri(registry)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=registry)


def connect_marks() -> Any:
    """A client that sets tags and aliases of versions in one request each.

    `MlflowClient` first reads the whole registered model, with all its versions, to see that it is not a prompt: with
    a thousand versions that is most of a promotion's time. This class is MLflow's own, and private; it is used nowhere
    else.
    """
    from mlflow.tracking._model_registry.client import ModelRegistryClient

    return ModelRegistryClient(registry_uri(), tracking_uri())


def ensure_database(uri: str) -> None:
    """Create a SQLite database once, however many processes ask: creating it at once, they would crash each other."""
    path = sqlite_file(uri)
    if path is None or _has_content(path):
        return
    with file_lock(path.parent / _LOCK):
        if _has_content(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Built under another name and renamed: a half-built schema is never visible.
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"{SQLITE}{temporary}"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise TrainingError(f"{path}: the MLflow database could not be created: {redacted(lines[-1])}")
        temporary.replace(path)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def experiment_id(client: Any, name: str) -> str:
    """The id of an experiment, which is created if need be; a local database keeps its artifacts next to it."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(tracking_uri())
        local = None if file is None else file.resolve().parent / ARTIFACTS
        try:
            return client.create_experiment(name, local.as_uri() if local else None)
        except MlflowException:
            # Another process was quicker.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrainingError(_deleted(found))
    return found.experiment_id


def _deleted(experiment: Any) -> str:
    command = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    return (
        f"the MLflow experiment {experiment.name!r} is deleted: restore it with "
        f"`MLFLOW_TRACKING_URI={redacted(tracking_uri())} {command}`, or set registry.experiment"
    )


def metric_name(name: str) -> str:
    """`name` with everything MLflow refuses in the name of a metric or parameter replaced, cut to what it takes."""
    fit = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
    if posixpath.normpath(fit) != fit or fit.startswith(("/", "..")):
        fit = fit.replace("/", "_")  # MLflow takes names for paths: `a//b` and `a/../b` would be others
    return fit[:_LONGEST_NAME]


def parameter_names(names: Iterable[str]) -> dict[str, str]:
    """Names fit for MLflow, as :func:`metric_name`, and as different as before: classes may be called anything, and
    MLflow refuses two values of one parameter."""
    fit: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(names, key=lambda name: (metric_name(name) != name, name)):  # those that are fit keep theirs
        free, number = metric_name(name), 2
        while free in taken:
            end = f"_{number}"
            free, number = metric_name(name)[: _LONGEST_NAME - len(end)] + end, number + 1
        taken.add(free)
        fit[name] = free
    return fit
