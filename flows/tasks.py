"""The tasks that flows share: a DVC stage, retries by kind of failure, accelerator slots, failures as values.

Prefect never caches these tasks: a cached task would mean a nightly run that trains nothing.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, Protocol, TypeVar

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.tasks import exponential_backoff
from pydantic import Field

from flows.runner.pipeline import CODE, Log, Pipeline, StageError, StageOutcome, StageResult
from stages.project.params import Params
from stages.project.redaction import redacted
from stages.registry.errors import RegistryUnavailableError
from yolov7.errors import YoloError

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Hours = Annotated[float, Field(gt=0.0, le=10_000.0, allow_inf_nan=False)]
"""A time limit, as a parameter of a flow."""
DATA_STAGES = ("ingest", "validate")
GPU_LIMIT, PROMOTION_LIMIT = "gpu", "promotion"
"""Prefect's global concurrency limits, for all flow runs of a server: `prefect gcl create gpu --limit N` and
`prefect gcl create promotion --limit 1`."""
_LEASE_SECONDS = 60.0
"""The slot of a dead holder is free after this time; the least that Prefect's server accepts."""


class Slots:
    """Accelerator slots: a semaphore for this run, and the server's `gpu` limit, if it has one, for all runs.

    A limit in Prefect's in-process database would not do for the first: a killed run would hold it for minutes.
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
    """Hold a slot of one of the server's limits; without a server, or without that limit, proceed at once."""
    if PREFECT_API_URL.value() is None:
        yield
        return
    # A lease that could not be renewed for a moment must not abort a training.
    options: dict[str, Any] = {"lease_duration": _LEASE_SECONDS, "raise_on_lease_renewal_failure": False}
    with concurrency(limit, occupy=1, strict=False, **options):
        yield


def alone() -> AbstractContextManager[None]:
    """Let one gate at a time move aliases, over all runs of a server."""
    return held(PROMOTION_LIMIT)


def worth_retrying(task: Any, run: Any, state: State[Any]) -> bool:
    """Retry a failed task, unless a retry would fail the same way."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StageError):
        return not error.lasting
    return isinstance(error, RegistryUnavailableError) or not isinstance(error, YoloError)


def retried(task: Task[P, R], params: Params) -> Task[P, R]:
    """The task with the retries of params.yaml; the delay doubles each time."""
    flow_params = params.flow
    if not flow_params.retries:
        return task
    delay: Any = exponential_backoff(max(flow_params.retry_seconds, 1))
    return task.with_options(retries=flow_params.retries, retry_delay_seconds=delay)


@dataclass(frozen=True)
class Failure:
    """A task that returned nothing: the exception it ended with, or the reason why it never ran."""

    task: str
    """As its run is named: `promote@yolov7-tiny`."""
    error: Any

    def __str__(self) -> str:
        """One line; our own errors name the stage themselves."""
        if isinstance(self.error, StageError):
            return str(self.error)
        return f"{self.task}: {' '.join(redacted(self.error).split()) or type(self.error).__name__}"


class _Runnable(Protocol[P, R_co]):
    """A :class:`Task`, which itself is invariant in its result."""

    @property
    def fn(self) -> Callable[P, R_co]: ...


def attempt(task: _Runnable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | Failure:
    """Run a task to its end; its failure is a value and not an exception."""
    run: Any = task
    given = inspect.signature(task.fn).bind(*args, **kwargs).arguments
    return _result(run(*args, return_state=True, **kwargs), run.task_run_name.format(**given))


def wait_for(future: PrefectFuture[Any], name: str) -> Any:
    """The result of a submitted task, or its :class:`Failure`; `name` is that of its run."""
    future.wait()
    return _result(future.state, name)


def _result(state: State[Any], name: str) -> Any:
    if state.is_completed():
        return state.result()
    if state.is_failed() or state.is_crashed():
        return Failure(name, state.result(raise_on_failure=False))
    return Failure(name, state.message or state.name)


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def reproduce_stage(
    pipeline: Pipeline,
    stage: str,
    slots: Slots | None = None,
    fresh: bool = False,
    force: bool = False,
    pull: bool = False,
) -> StageResult:
    """Reproduce one DVC stage.

    `fresh`: DVC has just found it and everything upstream unchanged; `force`: run it anyway; `pull`: take the result
    from the run cache of the remote.
    """
    log = get_run_logger()
    if fresh and not force:
        result = StageResult(stage, StageOutcome.UNCHANGED, 0.0)
    elif slots is None:
        result = pipeline.reproduce(stage, log, force=force, pull=pull)
    else:
        with slots.one():
            result = pipeline.reproduce(stage, log, force=force, pull=pull)
    log.info("%s: %s", result.stage, result.outcome)
    return result


def list_code(pipeline: Pipeline, params: Params) -> Failure | None:
    """Bring the lists of code up to date, by which DVC finds the stages whose code has changed.

    Once per run, before the other stages: DVC refuses to write a list that a running stage depends on.
    """
    if not pipeline.has_stage(CODE):
        return None
    result = attempt(retried(reproduce_stage, params), pipeline, CODE)
    return result if isinstance(result, Failure) else None


def prepare_data(
    pipeline: Pipeline, params: Params, *, fresh: Collection[str] = (), refresh: bool = False
) -> tuple[list[StageResult], Failure | None]:
    """Bring `ingest` and `validate` up to date; `refresh`: read the source again even if nothing here has changed.

    The code comes first (:func:`list_code`), unless `fresh` has its stage. Returns the data stages that are up to date
    and, if one failed, its failure.
    """
    done: list[StageResult] = []
    if CODE not in fresh and (failure := list_code(pipeline, params)) is not None:
        return done, failure
    for stage in DATA_STAGES:
        force = refresh and stage == "ingest"
        # A forced ingest may bring other data than DVC has seen.
        known = stage in fresh and not refresh
        result = attempt(retried(reproduce_stage, params), pipeline, stage, fresh=known, force=force)
        if isinstance(result, Failure):
            return done, result
        done.append(result)
    return done, None


def fetch_reference(pipeline: Pipeline, log: Log) -> None:
    """Fetch the statistics of the champion's data for the drift rules, before DVC looks for stale stages.

    An unavailable registry, or one without statistics, is only a warning: the reference stays as it is.
    """
    try:
        pipeline.run("data_reference", [sys.executable, "-m", "stages.data_reference"], log)
    except StageError as error:
        log.warning("%s; drift is judged against the present reference", error)
