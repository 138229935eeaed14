"""The Prefect flow `evaluate-champion`: does the champion still find on today's data what it found when registered?

Its AP on the present test split is held against the AP that its version carries as a tag. A fall is a sign that the
data has moved on from what the champion was trained for, or that the new annotations are not what they were.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field, PositiveFloat

from flows.promotion.judge import chosen_models, recorded_ap, variant_of
from flows.report import escape
from flows.runner.pipeline import Log, Pipeline, only_run
from flows.tasks import prepare_data, result_of, retried, words, worth_retrying
from stages.project import params as params_module
from stages.project.params import Params
from stages.registry.versions import CHAMPION, ModelRegistry
from yolov7.errors import YoloError


@dataclass(frozen=True)
class Drift:
    """A champion's AP then and now."""

    name: str
    version: int
    recorded_ap: float
    """The `AP` tag of its version."""
    ap: float
    """On the present test split."""
    interval: tuple[float, float]
    """95 %, of `ap`, over test images drawn again."""
    images: int
    same_data: bool
    """The test split is the one that the recorded AP was measured on."""
    conditions: str
    """How `ap` was measured (params.yaml: evaluate)."""
    recorded_conditions: str
    """How the recorded AP was: the `evaluation` tag of its version."""

    @property
    def fall(self) -> float:
        """How far AP has fallen; negative where it has risen."""
        return self.recorded_ap - self.ap

    @property
    def comparable(self) -> bool:
        """Both were measured alike: test-time augmentation that was switched off, say, is no drift."""
        return self.conditions == self.recorded_conditions


@dataclass
class DriftReport:
    """Every champion asked about."""

    max_ap_drop: float
    measured: list[Drift] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Models that have no champion yet."""
    errors: list[str] = field(default_factory=list)

    @property
    def fallen(self) -> list[str]:
        """One line for every champion whose AP has fallen by more than is allowed."""
        return [
            f"{one.name} version {one.version}: AP {one.ap:.4f} on the present test data, {one.fall:.4f} below the "
            f"recorded {one.recorded_ap:.4f}; {self.max_ap_drop:g} allowed"
            for one in self.measured
            if one.comparable and one.fall > self.max_ap_drop
        ]

    @property
    def incomparable(self) -> list[str]:
        """One line for every champion whose recorded AP was measured otherwise than it is measured now."""
        return [
            f"{one.name} version {one.version}: AP {one.ap:.4f} on the present test data cannot be compared with the "
            f"recorded {one.recorded_ap:.4f}: that was measured with {one.recorded_conditions}, params.yaml: evaluate "
            f"now says {one.conditions}"
            for one in self.measured
            if not one.comparable
        ]

    @property
    def summary(self) -> str:
        """One sentence."""
        compared = len(self.measured) - len(self.incomparable)
        parts = [f"{len(self.fallen)} of {compared} champions fell by more than {self.max_ap_drop:g}"]
        parts += [f"{len(self.incomparable)} measured otherwise than recorded"] if self.incomparable else []
        parts += [f"{len(self.absent)} models have no champion"] if self.absent else []
        parts += [f"{len(self.errors)} failed"] if self.errors else []
        return "; ".join(parts) + "."


class DriftError(YoloError):
    """The flow has ended, and a champion has fallen or could not be measured; the message says which."""

    def __init__(self, report: DriftReport, failures: list[str]):
        super().__init__(" / ".join(failures))
        self.report = report


@task(name="evaluate", task_run_name="evaluate@{name}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def measure(pipeline: Pipeline, params: Params, name: str) -> Drift | None:
    """Measure the champion of `name` on the present test split; None where there is no champion."""
    log = get_run_logger()
    champion = ModelRegistry().by_alias(name, CHAMPION)
    if champion is None:
        log.info("%s has no champion yet", name)
        return None
    recorded = recorded_ap(champion)
    # By number: the alias may move on while this one is measured.
    command = [sys.executable, "-m", "stages.evaluate", "--variant", variant_of(champion, params)]
    figures = _figures(pipeline, f"evaluate-{name}-{champion.number}", [*command, "--model", champion.uri], log)
    return Drift(
        name=name,
        version=champion.number,
        recorded_ap=recorded,
        ap=figures["AP"],
        interval=(figures["AP_low"], figures["AP_high"]),
        images=figures["images"],
        same_data=figures["test_data_sha256"] == champion.tags.get("test_data_sha256"),
        conditions=params.evaluate.conditions,
        recorded_conditions=champion.tags.get("evaluation", params.evaluate.conditions),
    )


def _figures(pipeline: Pipeline, what: str, command: list[str], log: Log) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        output = Path(folder) / "figures.json"
        pipeline.run(what, [*command, "--output", str(output)], log, measures=True)
        figures: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return figures


@flow(name="evaluate-champion", persist_result=False)
def evaluate_champion(
    models: list[str] | None = None,
    max_ap_drop: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05,
    on_drop: Literal["fail", "warn"] = "fail",
    refresh: bool = False,
    timeout_hours: PositiveFloat = 12.0,
) -> DriftReport:
    """Measure the champions on the present test data and compare with the AP recorded at their versions.

    Args:
        models: names of registered models; those of `params.yaml: variants` where none are given.
        max_ap_drop: how far the AP of a champion may fall below the recorded one.
        on_drop: what a fall by more than that does to the run: `fail`, or `warn` in its log and on its page.
        refresh: look at the data's source again even if nothing here has changed, as an archive on a server may have.
        timeout_hours: a data stage or a measurement is stopped after this time.
    """
    params = params_module.load()
    chosen = chosen_models(models, params)
    log, root = get_run_logger(), Path.cwd()
    report = DriftReport(max_ap_drop)
    with only_run(root, log), Pipeline(root, timeout_seconds=timeout_hours * 3600, pull=params.flow.pull) as pipeline:
        _, failure = prepare_data(pipeline, params, refresh=refresh)
        if failure is not None:
            report.errors.append(failure)
        else:
            _measure_all(pipeline, params, chosen, report)
    create_markdown_artifact(markdown(report), key="evaluate-champion", description=report.summary)
    for line in report.fallen + report.incomparable:
        log.warning("%s", line)
    log.info("%s", report.summary)
    failures = report.errors + (report.fallen if on_drop == "fail" else [])
    if failures:
        raise DriftError(report, failures)
    return report


def _measure_all(pipeline: Pipeline, params: Params, names: list[str], report: DriftReport) -> None:
    for name in names:
        state = retried(measure, params)(pipeline, params, name, return_state=True)
        result = result_of(state)
        if isinstance(result, Drift):
            report.measured.append(result)
        elif state.is_completed():
            report.absent.append(name)
        else:
            report.errors.append(words(result, f"evaluate@{name}"))


def markdown(report: DriftReport) -> str:
    """The run's page: every champion then and now, and what went wrong."""
    lines = ["# evaluate-champion", "", report.summary]
    if report.measured:
        head = ("champion", "AP recorded", "AP now", "95 % interval", "change", "images", "test data")
        lines += ["", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for one in report.measured:
        low, high = one.interval
        change = f"**{-one.fall:+.4f}**" if one.fall > report.max_ap_drop else f"{-one.fall:+.4f}"
        change = change if one.comparable else "measured otherwise"
        data = "the same" if one.same_data else "other than recorded"
        lines.append(
            f"| {escape(one.name)} version {one.version} | {one.recorded_ap:.4f} | {one.ap:.4f} "
            f"| {low:.4f} to {high:.4f} | {change} | {one.images} | {data} |"
        )
    if report.incomparable:
        lines += ["", "## Measured otherwise than recorded", "", *(f"- {escape(one)}" for one in report.incomparable)]
    if report.absent:
        lines += ["", f"Without a champion: {', '.join(report.absent)}."]
    if report.errors:
        lines += ["", "## Failures", "", *(f"- {escape(error)}" for error in report.errors)]
    return "\n".join(lines) + "\n"
