"""Training on another machine, by git revision: the flow `train-variant`, and how `train-variants` requests it.

The two machines share a git remote, the DVC remote and the Prefect server, but no files. The requesting run pushes the
data it has prepared. The worker checks out the revision in a worktree, pulls that data by its hash, trains, and pushes
the outputs with DVC's run cache; the requesting run restores them from there as if it had trained itself.
"""

from __future__ import annotations

import itertools
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelling
from prefect.tasks import exponential_backoff

from flows.runner import remote as dvc_remote
from flows.runner.pipeline import CODE, LOGS, Log, Pipeline, StageError, StageOutcome, StageResult
from flows.runner.worktree import (
    DataHashes,
    added_files,
    bring,
    bring_files,
    commit_of,
    hashes_of,
    variants_at,
    worktree,
)
from flows.tasks import DATA_STAGES, Hours, Slots, reproduce_stage, retried, worth_retrying
from stages.project import params as params_module
from stages.project.command import RESTORE_ONLY
from stages.project.home import share_state
from stages.project.names import check_hashes, check_revision, check_variant
from stages.project.params import Params
from stages.project.provenance import DIRTY, UNKNOWN, git_changes, git_revision
from stages.registry.address import TRACKING, tracking_uri
from yolov7.errors import ConfigError

_SHARED_STATE = ("train", "mlflow")
"""Folders that outlive the worktree: states of unfinished trainings, and undelivered MLflow records."""
_POLL_SECONDS = 5.0
_FETCH_RETRIES, _FETCH_SECONDS = 4, 15
"""Retries if the git server is unavailable: the params.yaml with the number of retries is not fetched yet."""


@flow(name="train-variant", persist_result=False)
def train_variant(
    variant: str,
    revision: str = "HEAD",
    data: dict[str, dict[str, str]] | None = None,
    timeout_hours: Hours = 240.0,
) -> str:
    """Train one variant at a git revision, and return the outputs through the DVC remote.

    Args:
        variant: a name from `params.yaml: variants` at that revision.
        revision: a commit that this clone or one of its remotes has.
        data: DVC's hashes of the training data, stage -> path -> hash; default: those of dvc.lock at the revision.
        timeout_hours: time limit of the training.
    """
    check_variant(variant, where="variant")
    check_revision(revision, where="revision")
    if data is not None:
        check_hashes(data, DATA_STAGES, where="data")
    log, root = get_run_logger(), Path.cwd()
    commit = find_commit(root, revision)
    if variant not in variants_at(root, commit):
        raise ConfigError(f"variant: {variant!r} is not in params.yaml: variants of {commit[:12]}")
    stage = f"train@{variant}"
    with worktree(root, commit, f"{variant}-{commit[:12]}", log) as folder:
        params = params_module.load(folder / params_module.PARAMS_FILE)
        share_state(root, folder, _SHARED_STATE)
        # As this clone understands it: the worktree is removed, and its code may be older than the rule.
        variables = {TRACKING: tracking_uri()}
        logs = root / LOGS / "by-revision" / variant  # logs in the worktree would be removed with it
        with Pipeline(folder, timeout_seconds=timeout_hours * 3600, variables=variables, logs=logs) as pipeline:
            deliver(pipeline, log)
            retried(bring_data, params)(pipeline, variant, data or hashes_of(folder, DATA_STAGES))
            if pipeline.has_stage(CODE):
                retried(reproduce_stage, params)(pipeline, CODE)
            # Nothing is trained if the remote's run cache has the result already.
            try:
                result = retried(reproduce_stage, params)(pipeline, stage, Slots(1), pull=True)
            finally:
                deliver(pipeline, log)
            retried(push_training, params)(pipeline, stage)
    log.info("%s of %s %s; its outputs are in the DVC remote", stage, commit[:12], result.outcome)
    return str(result.outcome)


@task(
    name="fetch",
    task_run_name="fetch",
    cache_policy=NO_CACHE,
    retry_condition_fn=worth_retrying,
    retries=_FETCH_RETRIES,
    retry_delay_seconds=exponential_backoff(_FETCH_SECONDS),
)
def find_commit(root: Path, revision: str) -> str:
    """Full hash of a commit, fetched from a remote of this clone if necessary."""
    return commit_of(root, revision, fetch=True)


@task(name="bring", task_run_name="bring", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def bring_data(pipeline: Pipeline, variant: str, hashes: DataHashes) -> None:
    """Bring data and the files that the training starts from into the worktree, from DVC's cache or a remote."""
    bring_files(pipeline, variant, get_run_logger())
    bring(pipeline, hashes, get_run_logger())


@task(name="push", task_run_name="push", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def push_training(pipeline: Pipeline, stage: str) -> None:
    """Push the outputs of one stage and the run cache to the DVC remote."""
    dvc_remote.push(pipeline, get_run_logger(), stage)


def deliver(pipeline: Pipeline, log: Log) -> None:
    """Send the undelivered MLflow records of earlier trainings: no `register` stage does it on this machine.

    A server that is still unavailable is only a warning: the records wait for the next training.
    """
    # The revision in the worktree may be older than the module's name.
    module = "stages.deliver" if (pipeline.root / "stages/deliver.py").is_file() else "stages.tracking"
    try:
        pipeline.run("deliver", [sys.executable, "-m", module], log)
    except StageError as error:
        log.warning("%s", error)


@task(name="train-elsewhere", task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def train_elsewhere(pipeline: Pipeline, params: Params, stage: str, fresh: bool = False) -> StageResult:
    """Let `flow.remote_training` train, and restore its outputs. `fresh` as in :func:`reproduce_stage`."""
    log, started = get_run_logger(), time.monotonic()
    if fresh or pipeline.up_to_date([stage]):
        return StageResult(stage, StageOutcome.UNCHANGED, 0.0)
    revision = _committed(stage)
    variant = stage.partition("@")[2]
    wanted = (*DATA_STAGES, *added_files(pipeline.root, variant))
    dvc_remote.push(pipeline, log, *wanted, name=f"push-data@{variant}")  # other variants may push at the same time
    hours = params.flow.stage_timeout_hours
    parameters = {"variant": variant, "revision": revision, "timeout_hours": hours}
    parameters["data"] = hashes_of(pipeline.root, DATA_STAGES)
    _request(params.flow.remote_training, parameters, stage, hours, log, asker=str(flow_run.id or uuid.uuid4()))
    with Pipeline(pipeline.root, timeout_seconds=pipeline.timeout_seconds, variables={RESTORE_ONLY: "1"}) as restoring:
        result = restoring.reproduce(stage, log, pull=True)
    log.info("%s: trained by %s, %s", stage, params.flow.remote_training, result.outcome)
    return StageResult(stage, result.outcome, time.monotonic() - started)


def _committed(stage: str) -> str:
    revision = git_revision()
    if revision == UNKNOWN:
        raise ConfigError(
            "flow.remote_training: a worker gets the code by git revision, but this folder is not a git clone"
        )
    if revision.endswith(DIRTY):
        raise ConfigError(
            f"flow.remote_training: {stage} needs a git revision, but {', '.join(git_changes()[:5])} differ from "
            "the commit; commit and push them so that a worker can fetch them"
        )
    return revision


def _request(deployment: str, parameters: dict[str, Any], stage: str, hours: float, log: Log, *, asker: str) -> None:
    """Run the deployment to its end. Raises :class:`StageError`, lasting if the training itself has failed.

    `hours` count from the run's start: a queue may be long. A repeated request by the same `asker` returns to the run
    that is still in progress.
    """
    log.info("%s: asking %s to train revision %s", stage, deployment, parameters["revision"][:12])
    run = _run_of(deployment, parameters, f"{asker}-{stage}-{parameters['revision']}")
    with get_client(sync_client=True) as client:
        started: float | None = None
        while run.state is None or not run.state.is_final():
            if started is None and run.state is not None and (run.state.is_running() or run.state.is_cancelling()):
                started = time.monotonic()
            if started is not None and time.monotonic() - started > hours * 3600:
                client.set_flow_run_state(run.id, Cancelling(message=f"not finished after {hours:g} h"))
                message = f"{stage}: {deployment} ({run.name}) did not end within {hours:g} h and was cancelled"
                raise StageError(message, stage=stage)
            time.sleep(_POLL_SECONDS)
            run = client.read_flow_run(run.id)
    if not run.state.is_completed():
        # The run has made its own retries; one that was lost with its machine is requested again.
        cause = " ".join((run.state.message or run.state.name).split())
        message = f"{stage}: run {run.name!r} of {deployment} has ended {run.state.name}: {cause}"
        raise StageError(message, stage=stage, lasting=run.state.is_failed() or run.state.is_cancelled())


def _run_of(deployment: str, parameters: dict[str, Any], key: str) -> Any:
    """The run with that key, or a new one if it has failed."""
    for number in itertools.count():
        try:
            run: Any = run_deployment(deployment, parameters=parameters, timeout=0, idempotency_key=f"{key}-{number}")
        except ObjectNotFound:
            message = (
                f"flow.remote_training: no deployment {deployment!r} on this Prefect server; `prefect deploy --all`"
            )
            raise ConfigError(message) from None
        ended = run.state is not None and (run.state.is_final() or run.state.is_cancelling())
        if not ended or run.state.is_completed():
            return run
    raise AssertionError  # unreachable: count() is infinite
