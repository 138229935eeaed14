"""What the flows share: a DVC stage as a Prefect task, retries by kind of failure, accelerator slots, errors in words.

The tasks are never cached by Prefect: a cached task would mean a nightly run that trains nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL
from prefect.tasks import exponential_backoff

from flows.runner.pipeline import Log, Outcome, Pipeline, StageError, StageResult
from stages.project.params import Params
from stages.registry.errors import RegistryUnavailableError
from yolov7.errors import YoloError

DATA_STAGES = ("ingest", "validate")
GPU_LIMIT, PROMOTION_LIMIT = "gpu", "promotion"
"""Prefect's global concurrency limits, which hold for all flow runs of a server: `prefect gcl create gpu --limit N` and
`prefect gcl create promotion --limit 1`."""
_LEASE_SECONDS = 60.0
"""A slot whose holder is gone is free after this time; the least that Prefect's server takes."""


class Slots:
    """Accelerator slots: of this run by a semaphore, of all runs on a server by its `gpu` limit, where it has one.

    A limit in Prefect's own in-process database would be wrong for the first: a killed run would hold it for minutes.
    """

    def __init__(self, count: int):
        self._own = threading.Semaphore(count)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot."""
        with self._own, held(GPU_LIMIT):
            yield


@contextmanager
def held(limit: str) -> Iterator[None]:
    """Hold a slot of one of the server's limits; without a server, or where it has no such limit, at once."""
    if PREFECT_API_URL.value() is None:
        yield
        return
    # A lease that could not be renewed for a moment is no reason to throw a training away.
    options: dict[str, Any] = {"lease_duration": _LEASE_SECONDS, "raise_on_lease_renewal_failure": False}
    with concurrency(limit, occupy=1, strict=False, **options):
        yield


def alone() -> AbstractContextManager[None]:
    """One gate at a time moves aliases, over all runs of a server."""
    return held(PROMOTION_LIMIT)


def worth_retrying(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether to start a failed task again: not after a mistake that will be there the next time too."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StageError):
        return not error.lasting
    return isinstance(error, RegistryUnavailableError) or not isinstance(error, YoloError)


def retried(one: Any, params: Params) -> Any:
    """The task with the retries of params.yaml: the pause doubles each time."""
    flow_params = params.flow
    if not flow_params.retries:
        return one
    return one.with_options(
        retries=flow_params.retries, retry_delay_seconds=exponential_backoff(max(flow_params.retry_seconds, 1))
    )


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def run_stage(
    pipeline: Pipeline,
    stage: str,
    slots: Slots | None = None,
    fresh: bool = False,
    force: bool = False,
    pull: bool = False,
) -> StageResult:
    """One DVC stage; `fresh`: DVC has just found it and everything it depends on unchanged; `force`: run it even so;
    `pull`: take what the run cache of the remote holds.
    """
    log = get_run_logger()
    if fresh and not force:
        result = StageResult(stage, Outcome.UNCHANGED, 0.0)
    elif slots is None:
        result = pipeline.reproduce(stage, log, force=force, pull=pull)
    else:
        with slots.one():
            result = pipeline.reproduce(stage, log, force=force, pull=pull)
    log.info("%s: %s", result.stage, result.outcome)
    return result


def prepare_data(
    pipeline: Pipeline, params: Params, *, fresh: Collection[str] = (), refresh: bool = False
) -> tuple[list[StageResult], str | None]:
    """`ingest`, then `validate`; `refresh`: look at the source again although nothing here has changed.

    Returns the stages that are now up to date and, where one failed, why in one line.
    """
    done: list[StageResult] = []
    for stage in DATA_STAGES:
        force = refresh and stage == "ingest"
        # What an ingest anew brings may not be what DVC has called unchanged.
        known = stage in fresh and not refresh
        state = retried(run_stage, params)(pipeline, stage, fresh=known, force=force, return_state=True)
        result = result_of(state)
        if not isinstance(result, StageResult):
            return done, words(result, stage)
        done.append(result)
    return done, None


def fetch_reference(pipeline: Pipeline, log: Log) -> None:
    """Bring the statistics of the champion's data beside the rules of validation, before DVC says what is stale.

    A registry that is away, or holds no statistics, is no reason to stop: the reference stays as it is.
    """
    try:
        pipeline.run("data_reference", [sys.executable, "-m", "stages.data_reference"], log)
    except StageError as error:
        log.warning("%s; drift is judged by the reference there is", error)


def result_of(state: State[Any]) -> Any:
    """What a task returned, the exception it ended with, or why it never ran."""
    if state.is_completed() or state.is_failed() or state.is_crashed():
        return state.result(raise_on_failure=False)
    return state.message or state.name


def words(error: Any, name: str) -> str:
    """An error in one line; ours name the stage themselves."""
    if isinstance(error, StageError):
        return str(error)
    return f"{name}: {' '.join(str(error).split()) or type(error).__name__}"
