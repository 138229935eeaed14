"""The Prefect flow `train-variants`: the data, then every variant from training to registration, then promotion.

DVC decides what has to run; Prefect adds order, retries, slots, schedules and a record.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows.comparison import compare_variants
from flows.promote import promote_model
from flows.report import RunReport, VariantReport, markdown
from flows.runner import remote as dvc_remote
from flows.runner.pipeline import CODE, Pipeline, StageOutcome, StageResult, only_run
from flows.tasks import (
    DATA_STAGES,
    Failure,
    Slots,
    attempt,
    fetch_reference,
    list_code,
    prepare_data,
    reproduce_stage,
    retried,
    wait_for,
    worth_retrying,
)
from flows.train_variant import train_elsewhere
from flows.validate_data import announce_data
from stages.preflight.check import check, demand
from stages.project import params as params_module
from stages.project.names import check_variant
from stages.project.params import Params
from yolov7.errors import ConfigError, YoloError, nearest

VARIANT_STAGES = ("train", "quantize", "export", "evaluate", "register")
REGISTERED = "yolov7.version.registered"
"""Event: a version waits for the gate, because its run does not judge. `prefect.yaml` starts the gate on it."""


class RunError(YoloError):
    """The flow has ended, and part of it has failed; the message lists the failures."""

    def __init__(self, report: RunReport):
        super().__init__(" / ".join(report.failures))
        self.report = report


THREADS: Any = ThreadPoolTaskRunner(max_workers=64)
"""Most threads wait, for the previous stage or for a slot."""


@flow(name="train-variants", task_runner=THREADS, persist_result=False)
def train_variants(variants: list[str] | None = None, promote_challengers: bool = True) -> RunReport:
    """Bring every variant up to date, register it, and promote it if it is better than the champion.

    Args:
        variants: names from `params.yaml: variants`; default: all of them.
        promote_challengers: run the promotion gate at the end.
    """
    params = params_module.load()
    chosen = _choose(params, variants)
    log, root, started = get_run_logger(), Path.cwd(), time.monotonic()
    timeout = params.flow.stage_timeout_hours * 3600
    with only_run(root, log), Pipeline(root, timeout_seconds=timeout, pull=params.flow.pull) as pipeline:
        if params.flow.fetch_reference:
            fetch_reference(pipeline, log)
        fresh, failure = _find_fresh(pipeline, params, chosen)
        failure = failure or _refusal(params, chosen, fresh)
        data: list[StageResult] = []
        if failure is None:
            data, failure = prepare_data(pipeline, params, fresh=fresh)
        reports = [VariantReport(variant) for variant in chosen]
        if failure is None:
            announce_data(root, log)
            reports = train_each(pipeline, params, chosen, fresh)
            failure = push(pipeline, params) if params.flow.push else None
            reports = promote_each(pipeline, params, reports) if promote_challengers else reports
        reports = [report.with_results(root) for report in reports]
        comparison = compare_variants(pipeline, reports, log)
        if not promote_challengers:
            announce_versions(params, reports)
    errors = [] if failure is None else [str(failure)]
    run = RunReport(data, reports, errors, comparison, time.monotonic() - started)
    create_markdown_artifact(markdown(run), key="train-variants", description=run.summary)
    log.info("%s", run.summary)
    if run.failures:
        raise RunError(run)
    return run


def _refusal(params: Params, variants: Sequence[str], fresh: Collection[str]) -> Failure | None:
    """Why not to start, if anything is to be trained: the training would refuse it after the data stages."""
    stale = [variant for variant in variants if f"train@{variant}" not in fresh]
    try:
        demand(check(params, stale, space=False)) if stale else None
    except ConfigError as error:
        return Failure("preflight", error)
    return None


def train_each(
    pipeline: Pipeline, params: Params, variants: Sequence[str], fresh: Collection[str]
) -> list[VariantReport]:
    """Run the stages of all variants at once; each stage waits for the previous one, and trainings also for a slot."""
    slots = Slots(params.flow.accelerator_slots)
    chains = [_start_chain(pipeline, params, variant, fresh, slots) for variant in variants]
    return [_finish_chain(variant, chain) for variant, chain in zip(variants, chains, strict=True)]


Chain = Mapping[str, PrefectFuture[StageResult]]
"""The stages of one variant by name, in order."""


def _start_chain(pipeline: Pipeline, params: Params, variant: str, fresh: Collection[str], slots: Slots) -> Chain:
    reproduce: Any = retried(reproduce_stage, params)
    elsewhere: Any = retried(train_elsewhere, params)
    chain: dict[str, PrefectFuture[StageResult]] = {}
    for stage in VARIANT_STAGES:
        name, before = f"{stage}@{variant}", list(chain.values())[-1:]
        if stage == "quantize" and params.quantization_for(variant).enabled:
            chain[name] = reproduce.submit(pipeline, name, slots, fresh=name in fresh, wait_for=before)
        elif stage != "train":
            chain[name] = reproduce.submit(pipeline, name, fresh=name in fresh, wait_for=before)
        elif params.flow.remote_training:
            chain[name] = elsewhere.submit(pipeline, params, name, fresh=name in fresh)
        else:
            chain[name] = reproduce.submit(pipeline, name, slots, fresh=name in fresh)
    return chain


def _finish_chain(variant: str, chain: Chain) -> VariantReport:
    results = [wait_for(future, name) for name, future in chain.items()]
    done = [result for result in results if isinstance(result, StageResult)]
    failures = [str(result) for result in results if isinstance(result, Failure)]
    # The stages after the first failure did not run because of it.
    return VariantReport(variant, done, error=failures[0] if failures else None)


def push(pipeline: Pipeline, params: Params) -> Failure | None:
    """Share the results."""
    return attempt(retried(push_results, params), pipeline)


@task(name="push", task_run_name="push", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def push_results(pipeline: Pipeline) -> None:
    """Push results and run cache to the DVC remote, for other machines and later runs."""
    dvc_remote.push(pipeline, get_run_logger())


def promote_each(pipeline: Pipeline, params: Params, reports: Sequence[VariantReport]) -> list[VariantReport]:
    """Let the gate judge every variant that has not failed."""
    return [report if report.error else _promote(pipeline, params, report) for report in reports]


def _promote(pipeline: Pipeline, params: Params, report: VariantReport) -> VariantReport:
    name = f"{params.registry.model_prefix}{report.variant}"
    result = attempt(retried(promote_model, params), pipeline, params, name, variant=report.variant)
    if isinstance(result, Failure):
        return replace(report, error=str(result))
    return replace(report, decision=result)


def announce_versions(params: Params, reports: Sequence[VariantReport]) -> None:
    """Send an event for every version registered by this run, so that someone else can judge it."""
    for report in reports:
        registered = [result for result in report.stages if result.stage.startswith("register@")]
        if report.version is None or not registered or registered[0].outcome is StageOutcome.UNCHANGED:
            continue
        name = f"{params.registry.model_prefix}{report.variant}"
        payload = {"model": name, "version": report.version, "variant": report.variant}
        emit_event(REGISTERED, resource={"prefect.resource.id": f"yolov7.model.{name}"}, payload=payload)


def _choose(params: Params, variants: list[str] | None) -> list[str]:
    known = list(params.variants)
    for name in variants or []:
        check_variant(name, where="variants")
        if name not in known:
            raise ConfigError(f"variants: {name!r} is not in params.yaml: variants{nearest(name, known)}")
    return list(dict.fromkeys(variants or known))


def _find_fresh(pipeline: Pipeline, params: Params, variants: Sequence[str]) -> tuple[set[str], Failure | None]:
    """Stages that need no `dvc repro` of their own: unchanged, with everything upstream of them unchanged too.

    The lists of code are brought up to date for this; if that fails, its failure.
    """
    chains = [[f"{stage}@{variant}" for stage in VARIANT_STAGES] for variant in variants]
    asked = [CODE, *DATA_STAGES, *(stage for stages in chains for stage in stages)]
    unchanged = pipeline.up_to_date(asked)
    if CODE not in unchanged:
        if (failure := list_code(pipeline, params)) is not None:
            return set(), failure
        unchanged = pipeline.up_to_date(asked) | {CODE}
    data = list(takewhile(unchanged.__contains__, DATA_STAGES))
    if len(data) < len(DATA_STAGES):
        return {CODE, *data}, None
    return {CODE, *data}.union(*(takewhile(unchanged.__contains__, stages) for stages in chains)), None
