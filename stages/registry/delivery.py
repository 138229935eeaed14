"""Sends the events of a journal to MLflow, one by one, and knows which failures mean that the server is away."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.registry.server import experiment_id

log = logging.getLogger(__name__)

_BATCH = 100
"""Parameters that MLflow takes in one request."""


def unreachable() -> tuple[type[BaseException], ...]:
    """The exceptions of a tracking or artifact server that is away."""
    import requests
    import sqlalchemy.exc
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException

    return (
        MlflowException,
        requests.RequestException,
        OSError,
        sqlalchemy.exc.SQLAlchemyError,
        BotoCoreError,
        ClientError,
        Boto3Error,
        subprocess.TimeoutExpired,
    )


def run_exists(client: Any, run_id: str) -> bool:
    """True if the server has the run, and neither it nor its experiment is deleted."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
        if info.lifecycle_stage == "deleted":
            return False
        return client.get_experiment(info.experiment_id).lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def find_or_create_run(client: Any, head: Mapping[str, Any]) -> str:
    """The id of the run of a journal with this `head`."""
    experiment, mark = experiment_id(client, head["experiment"]), head["journal"]
    # A kill between the creation and our note of it must not make a second run.
    found = client.search_runs([experiment], f"tags.journal = '{mark}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {"journal": mark}
    run = client.create_run(experiment, start_time=head["start_time"], tags=tags, run_name=head["run_name"])
    return run.info.run_id


def send(client: Any, run_id: str, event: Mapping[str, Any]) -> None:
    """Send one event. Raises `MlflowException` if the server refuses it, and :func:`unreachable` if it is away."""
    from mlflow.entities import Metric, Param, RunTag

    match event["kind"]:
        case "parameters":
            items = [Param(key, value) for key, value in event["values"].items()]
            for start in range(0, len(items), _BATCH):
                client.log_batch(run_id, params=items[start : start + _BATCH])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in event["values"].items()])
        case "metrics":
            values = event["values"].items()
            client.log_batch(
                run_id, metrics=[Metric(key, value, event["time"], event["step"]) for key, value in values]
            )
        case "artifact" if file := _first_file(event.get("kept"), event["path"]):
            client.log_artifact(run_id, file, event["folder"] or None)
        case "artifact":
            log.warning("MLflow: %s is gone and was not uploaded", event["path"])
        case "end":
            client.set_terminated(run_id, event["status"], event["time"])
        case "reopen":
            client.update_run(run_id, status="RUNNING")


def _first_file(*paths: str | None) -> str | None:
    return next((path for path in paths if path and Path(path).exists()), None)
