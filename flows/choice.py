"""The Prefect flow `choose-model`: which network is best on this data, within the limits of `params.yaml: choice`.

All candidates train shortly, the best of them longer (successive halving, :mod:`stages.choice.plan`); the exported
files of the last are measured side by side, one is recommended and registered under one name, and the gate judges it
against the champion, of whatever variant that is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from flows.markdown import bullets, section, table
from flows.promote import promote_model
from flows.promotion.judge import Decision
from flows.promotion.models import measure
from flows.report import decision_lines
from flows.runner.pipeline import Pipeline, only_run
from flows.tasks import Failure, Slots, attempt, prepare_data, retried, wait_for, worth_retrying
from stages.choice.plan import (
    RuledOut,
    Standing,
    beyond,
    check_choice,
    given_latencies,
    rungs_of,
    survivors,
    too_slow_to_train,
)
from stages.project import params as params_module
from stages.project.params import Params
from yolov7.documents import load_json
from yolov7.errors import YoloError
from yolov7.files import write_json

PLAN = Path(".state/choice/plan.json")
PAGE, FIGURES = Path("reports/choice/index.html"), Path("reports/choice/choice.json")
TRAIN, PROBE, CHOOSE = "stages.train_candidate", "stages.probe_candidates", "stages.choose"
THREADS: Any = ThreadPoolTaskRunner(max_workers=64)


@dataclass
class ChoiceReport:
    """The result of a choice."""

    figures: dict[str, Any]
    """As `choice.json` holds them."""
    errors: list[str] = field(default_factory=list)
    """Candidates that could not be trained; the others were compared."""
    decision: Decision | None = None

    @property
    def summary(self) -> str:
        """One sentence."""
        found = self.figures
        chosen = next(each for each in found["measured"] if each["variant"] == found["recommended"])
        return (
            f"{chosen['variant']} is recommended: test AP {chosen['ap']:.4f} (95 % interval {chosen['ap_low']:.4f} to "
            f"{chosen['ap_high']:.4f}), {chosen['latency_ms']:.1f} ms an image, {chosen['size_mb']:.1f} MB."
        )


class ChoiceError(YoloError):
    """The flow has ended without a recommendation, or its model could not be judged; the message says why."""


@dataclass
class Progress:
    """What is known after the rungs so far."""

    candidates: list[str]
    """Those still in the running."""
    standings: list[Standing] = field(default_factory=list)
    ruled_out: list[RuledOut] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@task(
    name="train-candidate", task_run_name="{variant}-{epochs}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying
)
def train_candidate(pipeline: Pipeline, slots: Slots, variant: str, epochs: int) -> Standing:
    """Train a candidate for a rung; one that is trained already returns at once."""
    command = [TRAIN, "--variant", variant, "--epochs", str(epochs)]
    with slots.one():
        found = measure(pipeline, f"choice-{variant}-{epochs}", command, get_run_logger(), resumable=True)
    return Standing(**found)


@task(name="probe", task_run_name="probe-{epochs}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def probe(pipeline: Pipeline, variants: Sequence[str], epochs: int) -> dict[str, dict[str, float]]:
    """Latency and size of the candidates of a rung."""
    return measure(pipeline, f"choice-probe-{epochs}", [PROBE, "--epochs", str(epochs), *variants], get_run_logger())


@task(name="choose", task_run_name="choose", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def choose(pipeline: Pipeline, progress: Progress, epochs: int) -> dict[str, Any]:
    """Export and measure the finalists, recommend one, and register it."""
    plan = {"epochs": epochs, "finalists": progress.candidates}
    plan["standings"] = [asdict(each) for each in progress.standings]
    plan["ruled_out"] = [asdict(each) for each in progress.ruled_out]
    write_json(pipeline.root / PLAN, plan)
    pipeline.run("choose", [sys.executable, "-m", CHOOSE, "--plan", str(PLAN)], get_run_logger())
    figures: dict[str, Any] = load_json(pipeline.root / FIGURES)
    return figures


@flow(name="choose-model", task_runner=THREADS, persist_result=False)
def choose_model(promote_challenger: bool = True) -> ChoiceReport:
    """Choose the network for the current data within `params.yaml: choice`, and register it under one name.

    A run that was killed continues: trained candidates are kept, the one in training resumes.

    Args:
        promote_challenger: run the promotion gate at the end.
    """
    params = params_module.load()
    check_choice(params)
    log, root = get_run_logger(), Path.cwd()
    timeout = params.flow.stage_timeout_hours * 3600
    with only_run(root, log), Pipeline(root, timeout_seconds=timeout, pull=params.flow.pull) as pipeline:
        _, failure = prepare_data(pipeline, params)
        if failure is not None:
            raise ChoiceError(str(failure))
        report = _choose(pipeline, params)
        if promote_challenger:
            judged = attempt(retried(promote_model, params), pipeline, params, report.figures["model"])
            if isinstance(judged, Failure):
                report.errors.append(str(judged))
            else:
                report.decision = judged
    create_markdown_artifact(markdown(report), key="choose-model", description=report.summary)
    log.info("%s %s", report.summary, PAGE)
    if report.errors:
        raise ChoiceError(" / ".join([report.summary, *report.errors]))
    return report


def _choose(pipeline: Pipeline, params: Params) -> ChoiceReport:
    """All rungs, then the measurement of those left."""
    choice = params.choice
    given = given_latencies(choice)
    progress = Progress(list(choice.candidates))
    for variant, latency in given.items():
        _rule_out(progress, beyond(variant, latency, None, choice))
    # All candidates train for the same epochs in a rung; a recipe may set others than `train.epochs` by default.
    rungs = rungs_of(choice, max(params.training(variant).epochs for variant in choice.candidates))
    for number, epochs in enumerate(rungs):
        _require_one(progress)
        standings = _train(pipeline, params, progress, epochs)
        if epochs == rungs[-1]:
            break
        if number == 0:
            _probe(pipeline, params, progress, epochs, measured_here=not given)
        _rule_out(progress, too_slow_to_train(standings, rungs[-1], choice.budget.training_minutes))
        _require_one(progress)
        progress.candidates = survivors([s for s in standings if s.variant in progress.candidates], choice.keep)
        get_run_logger().info("after %d epochs: %s go on", epochs, ", ".join(progress.candidates))
    figures = attempt(retried(choose, params), pipeline, progress, rungs[-1])
    if isinstance(figures, Failure):
        raise ChoiceError(str(figures))
    return ChoiceReport(figures, progress.errors)


def _train(pipeline: Pipeline, params: Params, progress: Progress, epochs: int) -> list[Standing]:
    """Train the candidates for a rung; one that fails is left out."""
    slots = Slots(params.flow.accelerator_slots)
    train: Any = retried(train_candidate, params)
    futures = {variant: train.submit(pipeline, slots, variant, epochs) for variant in progress.candidates}
    ended = {variant: wait_for(future, f"{variant}-{epochs}") for variant, future in futures.items()}
    standings = [each for each in ended.values() if isinstance(each, Standing)]
    progress.errors += [str(each) for each in ended.values() if isinstance(each, Failure)]
    progress.candidates = [standing.variant for standing in standings]
    progress.standings += standings
    return standings


def _probe(pipeline: Pipeline, params: Params, progress: Progress, epochs: int, *, measured_here: bool) -> None:
    """Rule out what is beyond the limits of latency and size, if there are any to measure for."""
    budget = params.choice.budget
    if not progress.candidates or not (budget.size_mb or (budget.latency_ms and measured_here)):
        return
    found = attempt(retried(probe, params), pipeline, progress.candidates, epochs)
    if isinstance(found, Failure):
        raise ChoiceError(str(found))
    for variant, figures in found.items():
        latency = figures["latency_ms"] if measured_here else None
        _rule_out(progress, beyond(variant, latency, figures["size_mb"], params.choice))


def _rule_out(progress: Progress, found: Sequence[RuledOut]) -> None:
    progress.ruled_out += found
    out = {each.variant for each in found}
    progress.candidates = [variant for variant in progress.candidates if variant not in out]
    for each in found:
        get_run_logger().info("%s is ruled out by the limit of %s: %s", each.variant, each.limit, each.finding)


def _require_one(progress: Progress) -> None:
    if not progress.candidates:
        reasons = [f"{each.variant}: {each.limit}, {each.finding}" for each in progress.ruled_out]
        raise ChoiceError("no candidate is left: " + "; ".join([*reasons, *progress.errors]))


def markdown(report: ChoiceReport) -> str:
    """The run's page: the recommendation, its reasons, the finalists, the gate's decision."""
    found = report.figures
    lines = ["# choose-model", "", report.summary, "", f"Page: `{PAGE}`, and among the artifacts of the model's run."]
    lines += section("Why", bullets(found["reasons"]))
    rows = [
        (
            each["variant"],
            f"{each['ap']:.4f} ({each['ap_low']:.4f} to {each['ap_high']:.4f})",
            f"{each['latency_ms']:.1f}",
            f"{each['size_mb']:.1f}",
            f"{each['training_minutes']:.1f}",
        )
        for each in found["measured"]
    ]
    columns = ("variant", "test AP (95 %)", "ms an image", "MB", "minutes of training")
    lines += section("Finalists", table(columns, rows))
    trained = [(each["variant"], each["epochs"], f"{each['ap']:.4f}") for each in found["standings"]]
    lines += section("Trainings", table(("variant", "epochs", "validation AP"), trained))
    if report.decision is not None:
        lines += section("Promotion", decision_lines([report.decision]))
    lines += section("Failures", bullets(report.errors))
    return "\n".join(lines) + "\n"
