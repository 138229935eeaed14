"""The Prefect flow `train-family`: data first, then every variant from training to registration, then promotion.

DVC decides what has to run; Prefect gives order, retries, slots, schedules and a record. The tasks are never cached
by Prefect: a cached task would mean a nightly run that trains nothing.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from flows.pipeline import Log, Outcome, Pipeline, StageError, StageResult, only_run
from flows.promote import Decision, compared_now, describe, judge
from flows.report import FamilyReport, VariantReport, markdown
from stages import params as params_module
from stages.params import Params
from stages.registry import CHALLENGER, ModelRegistry, RegistryUnavailableError
from yolov7.config import nearest
from yolov7.errors import ConfigError, YoloError

DATA_STAGES = ("ingest", "validate")
VARIANT_STAGES = ("train", "export", "evaluate", "register")
GPU_LIMIT = "gpu"
"""Prefect's global concurrency limit that holds for all flow runs of a server: `prefect gcl create gpu --limit N`."""


class FamilyError(YoloError):
    """The flow has ended, and something in it has failed; the message says what."""

    def __init__(self, report: FamilyReport):
        super().__init__(" / ".join(report.failures))
        self.report = report


class Slots:
    """Accelerator slots: of this run by a semaphore, of all runs on a server by its `gpu` limit, where it has one.

    A limit in Prefect's own in-process database would be wrong for the first: a killed run would hold it for minutes.
    """

    def __init__(self, count: int):
        self._own = threading.Semaphore(count)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot."""
        with self._own:
            if PREFECT_API_URL.value() is None:
                yield
                return
            # A lease that could not be renewed for a moment is no reason to throw a training away.
            with concurrency(GPU_LIMIT, occupy=1, strict=False, raise_on_lease_renewal_failure=False):
                yield


def worth_retrying(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether to start a failed task again: not after a mistake that will be there the next time too."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, StageError):
        return not error.lasting
    return isinstance(error, RegistryUnavailableError) or not isinstance(error, YoloError)


@task(name="stage", task_run_name="{stage}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def run_stage(pipeline: Pipeline, stage: str, slots: Slots | None = None, fresh: bool = False) -> StageResult:
    """One DVC stage; `fresh`: DVC has just found it and everything it depends on unchanged."""
    log = get_run_logger()
    if fresh:
        result = StageResult(stage, Outcome.UNCHANGED, 0.0)
    elif slots is None:
        result = pipeline.reproduce(stage, log)
    else:
        with slots.one():
            result = pipeline.reproduce(stage, log)
    log.info("%s: %s", result.stage, result.outcome)
    return result


@task(name="promote", task_run_name="promote@{variant}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def promote(pipeline: Pipeline, params: Params, variant: str) -> Decision:
    """The promotion gate for one variant's registered model."""
    log = get_run_logger()
    ensure_registered(pipeline, variant, log)
    name = f"{params.registry.model_prefix}{variant}"
    decision = judge(ModelRegistry(), name, rules=params.promotion, compare=compared_now(pipeline, params))
    log.info("%s", describe(decision))
    return decision


def ensure_registered(pipeline: Pipeline, variant: str, log: Log) -> None:
    """Make the challenger what `registered.json` says it is.

    DVC restores that file from its cache without asking MLflow, whose database may be another one, or whose alias may
    have moved on to a version that is no longer the present result.
    """
    record = json.loads((pipeline.root / "models" / variant / "registered.json").read_text(encoding="utf-8"))
    registry = ModelRegistry()
    present = registry.by_alias(record["name"], CHALLENGER)
    if present is None or present.tags.get("manifest_sha256") != record["manifest_sha256"]:
        log.info("the present artefact of %s is not the challenger in this MLflow; registering it", record["name"])
        pipeline.reproduce(f"register@{variant}", log, force=True)


@task(name="push", task_run_name="push", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def push_results(pipeline: Pipeline) -> None:
    """Results and run cache to the DVC remote, for whoever works on next."""
    pipeline.push(get_run_logger())


_THREADS: Any = ThreadPoolTaskRunner(max_workers=64)
"""Most of them wait: for the stage before, or for a slot."""


@flow(name="train-family", task_runner=_THREADS, persist_result=False)
def train_family(variants: list[str] | None = None, promote_challengers: bool = True) -> FamilyReport:
    """Bring every variant up to date, register it, and promote what is better.

    Args:
        variants: names from `params.yaml: variants`; all of them where none are given.
        promote_challengers: whether the gate runs at the end.
    """
    params = params_module.load()
    chosen = _choose(params, variants)
    started = time.monotonic()
    report = FamilyReport(variants=[VariantReport(variant) for variant in chosen])
    root = Path.cwd()
    with only_run(root, get_run_logger()), Pipeline(root, timeout_seconds=_timeout(params)) as pipeline:
        if params.flow.fetch_reference:
            fetch_reference(pipeline, get_run_logger())
        fresh = _fresh(pipeline, chosen)
        if _prepare_data(pipeline, params, fresh, report):
            _train_variants(pipeline, params, fresh, report)
            if params.flow.push:
                _push(pipeline, params, report)
            if promote_challengers:
                _promote(pipeline, params, report)
        for variant in report.variants:
            variant.read_results(root)
    report.seconds = time.monotonic() - started
    create_markdown_artifact(markdown(report), key="train-family", description=report.summary)
    get_run_logger().info("%s", report.summary)
    if report.failures:
        raise FamilyError(report)
    return report


def _timeout(params: Params) -> float:
    return params.flow.stage_timeout_hours * 3600


def _choose(params: Params, variants: list[str] | None) -> list[str]:
    known = list(params.variants)
    for name in variants or []:
        if name not in known:
            raise ConfigError(f"variants: {name!r} is not in params.yaml: variants{nearest(name, known)}")
    return list(dict.fromkeys(variants or known))


def _retried(one: Any, params: Params) -> Any:
    """The task with the retries of params.yaml: the pause doubles each time."""
    flow_params = params.flow
    if not flow_params.retries:
        return one
    return one.with_options(
        retries=flow_params.retries, retry_delay_seconds=exponential_backoff(max(flow_params.retry_seconds, 1))
    )


def _fresh(pipeline: Pipeline, variants: list[str]) -> set[str]:
    """Stages that need not be asked about one by one: unchanged, with everything upstream of them unchanged too."""
    chains = [[f"{stage}@{variant}" for stage in VARIANT_STAGES] for variant in variants]
    unchanged = pipeline.up_to_date([*DATA_STAGES, *(stage for stages in chains for stage in stages)])
    data = list(takewhile(unchanged.__contains__, DATA_STAGES))
    if len(data) < len(DATA_STAGES):
        return set(data)
    return set(data).union(*(takewhile(unchanged.__contains__, stages) for stages in chains))


def fetch_reference(pipeline: Pipeline, log: Log) -> None:
    """Bring the statistics of the champion's data beside the rules of validation, before DVC says what is stale.

    A registry that is away, or holds no statistics, is no reason to stop: the reference stays as it is.
    """
    try:
        pipeline.run("data_reference", [sys.executable, "-m", "stages.data_reference"], log)
    except StageError as error:
        log.warning("%s; drift is judged by the reference there is", error)


def _prepare_data(pipeline: Pipeline, params: Params, fresh: set[str], report: FamilyReport) -> bool:
    for stage in DATA_STAGES:
        state = _retried(run_stage, params)(pipeline, stage, fresh=stage in fresh, return_state=True)
        result = _result(state)
        if not isinstance(result, StageResult):
            report.errors.append(_words(result, stage))
            return False
        report.data.append(result)
    return True


def _train_variants(pipeline: Pipeline, params: Params, fresh: set[str], report: FamilyReport) -> None:
    """Every variant's chain at once; each stage waits for the one before it, and training also for a slot."""
    slots = Slots(params.flow.accelerator_slots)
    stage_task = _retried(run_stage, params)
    chains: list[list[PrefectFuture[StageResult]]] = []
    for variant in report.variants:
        chain: list[PrefectFuture[StageResult]] = []
        for stage in VARIANT_STAGES:
            name, slot = f"{stage}@{variant.variant}", slots if stage == "train" else None
            chain.append(stage_task.submit(pipeline, name, slot, fresh=name in fresh, wait_for=chain[-1:]))
        chains.append(chain)
    for variant, chain in zip(report.variants, chains, strict=True):
        for stage, future in zip(VARIANT_STAGES, chain, strict=True):
            future.wait()
            result = _result(future.state)
            if isinstance(result, StageResult):
                variant.stages.append(result)
            elif variant.error is None:  # the later ones of the chain were not run, for this reason
                variant.error = _words(result, f"{stage}@{variant.variant}")


def _push(pipeline: Pipeline, params: Params, report: FamilyReport) -> None:
    state = _retried(push_results, params)(pipeline, return_state=True)
    report.pushed = state.is_completed()
    if not report.pushed:
        report.errors.append(_words(_result(state), "push"))


def _promote(pipeline: Pipeline, params: Params, report: FamilyReport) -> None:
    for variant in report.variants:
        if variant.error is not None:
            continue
        state = _retried(promote, params)(pipeline, params, variant.variant, return_state=True)
        result = _result(state)
        if isinstance(result, Decision):
            variant.decision = result
        else:
            variant.error = _words(result, f"promote@{variant.variant}")


def _result(state: State[Any]) -> Any:
    """What a task returned, the exception it ended with, or why it never ran."""
    if state.is_completed() or state.is_failed() or state.is_crashed():
        return state.result(raise_on_failure=False)
    return state.message or state.name


def _words(error: Any, name: str) -> str:
    """An error in one line; ours name the stage themselves."""
    if isinstance(error, StageError):
        return str(error)
    return f"{name}: {' '.join(str(error).split()) or type(error).__name__}"
