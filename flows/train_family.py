"""The Prefect flow `train-family`: data first, then every variant from training to registration, then promotion.

DVC decides what has to run; Prefect gives order, retries, slots, schedules and a record.
"""

from __future__ import annotations

import json
import time
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
from flows.promotion.judge import Decision, compared_now, describe, judge
from flows.report import FamilyReport, VariantReport, markdown
from flows.runner import remote as dvc_remote
from flows.runner.pipeline import Log, Outcome, Pipeline, StageResult, only_run
from flows.tasks import (
    DATA_STAGES,
    Slots,
    alone,
    fetch_reference,
    prepare_data,
    result_of,
    retried,
    run_stage,
    words,
    worth_retrying,
)
from flows.train_variant import train_elsewhere
from flows.validate_data import announce_data
from stages.project import params as params_module
from stages.project.params import Params
from stages.registry.versions import CHALLENGER, ModelRegistry
from yolov7.config import nearest
from yolov7.errors import ConfigError, YoloError

VARIANT_STAGES = ("train", "export", "evaluate", "register")
REGISTERED = "yolov7.version.registered"
"""Event: a version waits for the gate, because the run that made it does not judge. `prefect.yaml` promotes on it."""


class FamilyError(YoloError):
    """The flow has ended, and something in it has failed; the message says what."""

    def __init__(self, report: FamilyReport):
        super().__init__(" / ".join(report.failures))
        self.report = report


@task(name="promote", task_run_name="promote@{variant}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def promote(pipeline: Pipeline, params: Params, variant: str) -> Decision:
    """The promotion gate for one variant's registered model."""
    log = get_run_logger()
    ensure_registered(pipeline, variant, log)
    name = f"{params.registry.model_prefix}{variant}"
    compare = compared_now(pipeline, params)
    decision = judge(ModelRegistry(), name, rules=params.promotion, compare=compare, alone=alone)
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
    dvc_remote.push(pipeline, get_run_logger())


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
    with (
        only_run(root, get_run_logger()),
        Pipeline(root, timeout_seconds=_timeout(params), pull=params.flow.pull) as pipeline,
    ):
        if params.flow.fetch_reference:
            fetch_reference(pipeline, get_run_logger())
        fresh = _fresh(pipeline, chosen)
        report.data, failure = prepare_data(pipeline, params, fresh=fresh)
        if failure is not None:
            report.errors.append(failure)
        else:
            announce_data(root, get_run_logger())
            _train_variants(pipeline, params, fresh, report)
            if params.flow.push:
                _push(pipeline, params, report)
            if promote_challengers:
                _promote(pipeline, params, report)
        for variant in report.variants:
            variant.read_results(root)
        compare_variants(pipeline, report, get_run_logger())
        if not promote_challengers:
            announce(params, report)
    report.seconds = time.monotonic() - started
    create_markdown_artifact(markdown(report), key="train-family", description=report.summary)
    get_run_logger().info("%s", report.summary)
    if report.failures:
        raise FamilyError(report)
    return report


def announce(params: Params, report: FamilyReport) -> None:
    """One event for every version that is new here, for whoever judges it."""
    for variant in report.variants:
        registered = [one for one in variant.stages if one.stage.startswith("register@")]
        if variant.version is None or not registered or registered[0].outcome is Outcome.UNCHANGED:
            continue
        name = f"{params.registry.model_prefix}{variant.variant}"
        payload = {"model": name, "version": variant.version, "variant": variant.variant}
        emit_event(REGISTERED, resource={"prefect.resource.id": f"yolov7.model.{name}"}, payload=payload)


def _timeout(params: Params) -> float:
    return params.flow.stage_timeout_hours * 3600


def _choose(params: Params, variants: list[str] | None) -> list[str]:
    known = list(params.variants)
    for name in variants or []:
        if name not in known:
            raise ConfigError(f"variants: {name!r} is not in params.yaml: variants{nearest(name, known)}")
    return list(dict.fromkeys(variants or known))


def _fresh(pipeline: Pipeline, variants: list[str]) -> set[str]:
    """Stages that need not be asked about one by one: unchanged, with everything upstream of them unchanged too."""
    chains = [[f"{stage}@{variant}" for stage in VARIANT_STAGES] for variant in variants]
    unchanged = pipeline.up_to_date([*DATA_STAGES, *(stage for stages in chains for stage in stages)])
    data = list(takewhile(unchanged.__contains__, DATA_STAGES))
    if len(data) < len(DATA_STAGES):
        return set(data)
    return set(data).union(*(takewhile(unchanged.__contains__, stages) for stages in chains))


def _train_variants(pipeline: Pipeline, params: Params, fresh: set[str], report: FamilyReport) -> None:
    """Every variant's chain at once; each stage waits for the one before it, and training also for a slot."""
    slots = Slots(params.flow.accelerator_slots)
    stage_task, elsewhere = retried(run_stage, params), retried(train_elsewhere, params)
    chains: list[list[PrefectFuture[StageResult]]] = []
    for variant in report.variants:
        chain: list[PrefectFuture[StageResult]] = []
        for stage in VARIANT_STAGES:
            name, slot = f"{stage}@{variant.variant}", slots if stage == "train" else None
            if stage == "train" and params.flow.remote_training:
                chain.append(elsewhere.submit(pipeline, params, name, fresh=name in fresh))
            else:
                chain.append(stage_task.submit(pipeline, name, slot, fresh=name in fresh, wait_for=chain[-1:]))
        chains.append(chain)
    for variant, chain in zip(report.variants, chains, strict=True):
        for stage, future in zip(VARIANT_STAGES, chain, strict=True):
            future.wait()
            result = result_of(future.state)
            if isinstance(result, StageResult):
                variant.stages.append(result)
            elif variant.error is None:  # the later ones of the chain were not run, for this reason
                variant.error = words(result, f"{stage}@{variant.variant}")


def _push(pipeline: Pipeline, params: Params, report: FamilyReport) -> None:
    state = retried(push_results, params)(pipeline, return_state=True)
    report.pushed = state.is_completed()
    if not report.pushed:
        report.errors.append(words(result_of(state), "push"))


def _promote(pipeline: Pipeline, params: Params, report: FamilyReport) -> None:
    for variant in report.variants:
        if variant.error is not None:
            continue
        state = retried(promote, params)(pipeline, params, variant.variant, return_state=True)
        result = result_of(state)
        if isinstance(result, Decision):
            variant.decision = result
        else:
            variant.error = words(result, f"promote@{variant.variant}")
