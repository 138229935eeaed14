"""The Prefect flow `evaluate-champion`: is the champion as good on today's data as it was when it was registered?

Its AP on the current test split is compared with the AP in the tags of its version. A drop means that the data has
moved away from the champion's training data, or that the new annotations differ from the old ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.markdown import bullets, section, table
from flows.promotion.models import chosen_models, measure, recorded_ap, variant_of
from flows.runner.pipeline import Pipeline, only_run
from flows.tasks import Failure, Hours, attempt, prepare_data, retried, worth_retrying
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
    """On the current test split."""
    interval: tuple[float, float]
    """95 % bootstrap interval of `ap` over test images."""
    images: int
    same_data: bool
    """The recorded AP was measured on this test split."""
    conditions: str
    """Settings behind `ap` (params.yaml: evaluate)."""
    recorded_conditions: str
    """Settings behind the recorded AP: the `evaluation` tag of its version."""

    @property
    def fall(self) -> float:
        """Drop of AP; negative if it has risen."""
        return self.recorded_ap - self.ap

    @property
    def comparable(self) -> bool:
        """True if both were measured the same way; disabling test-time augmentation, say, is not drift."""
        return self.conditions == self.recorded_conditions


@dataclass
class DriftReport:
    """Every champion that was to be measured."""

    max_ap_drop: float
    measured: list[Drift] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Models without a champion."""
    errors: list[str] = field(default_factory=list)

    @property
    def fallen(self) -> list[str]:
        """One line for every champion whose AP has fallen further than allowed."""
        return [
            f"{each.name} version {each.version}: AP {each.ap:.4f} on the current test data, {each.fall:.4f} below the "
            f"recorded {each.recorded_ap:.4f}; {self.max_ap_drop:g} allowed"
            for each in self.measured
            if each.comparable and each.fall > self.max_ap_drop
        ]

    @property
    def incomparable(self) -> list[str]:
        """One line for every champion whose recorded AP was measured in another way than now."""
        return [
            f"{each.name} version {each.version}: AP {each.ap:.4f} on the current test data cannot be compared with "
            f"the recorded {each.recorded_ap:.4f}: that was measured with {each.recorded_conditions}, params.yaml: "
            f"evaluate now says {each.conditions}"
            for each in self.measured
            if not each.comparable
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
def measure_champion(pipeline: Pipeline, params: Params, name: str) -> Drift | None:
    """Measure the champion of `name` on the current test split; None if there is no champion."""
    log = get_run_logger()
    champion = ModelRegistry().by_alias(name, CHAMPION)
    if champion is None:
        log.info("%s has no champion yet", name)
        return None
    recorded = recorded_ap(champion)
    # By number: the alias may move while this version is measured.
    command = ["stages.evaluate", "--variant", variant_of(champion, params), "--model", champion.uri]
    figures = measure(pipeline, f"evaluate-{name}-{champion.number}", command, log)
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


@flow(name="evaluate-champion", persist_result=False)
def evaluate_champion(
    models: list[str] | None = None,
    max_ap_drop: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)] = 0.05,
    on_drop: Literal["fail", "warn"] = "fail",
    refresh: bool = False,
    timeout_hours: Hours = 12.0,
) -> DriftReport:
    """Measure the champions on the current test data and compare with the AP recorded in their versions.

    Args:
        models: names of registered models; default: those of `params.yaml: variants`.
        max_ap_drop: how far the AP of a champion may fall below the recorded one.
        on_drop: effect of a larger drop: `fail` the run, or `warn` in its log and on its page.
        refresh: read the source again even if nothing here has changed, because an archive on a server may have.
        timeout_hours: time limit of each data stage and each measurement.
    """
    params = params_module.load()
    chosen = chosen_models(models, params)
    log, root = get_run_logger(), Path.cwd()
    with only_run(root, log), Pipeline(root, timeout_seconds=timeout_hours * 3600, pull=params.flow.pull) as pipeline:
        _, failure = prepare_data(pipeline, params, refresh=refresh)
        if failure is None:
            report = measure_each(pipeline, params, chosen, max_ap_drop)
        else:
            report = DriftReport(max_ap_drop, errors=[str(failure)])
    create_markdown_artifact(markdown(report), key="evaluate-champion", description=report.summary)
    for line in report.fallen + report.incomparable:
        log.warning("%s", line)
    log.info("%s", report.summary)
    failures = report.errors + (report.fallen if on_drop == "fail" else [])
    if failures:
        raise DriftError(report, failures)
    return report


def measure_each(pipeline: Pipeline, params: Params, names: Sequence[str], max_ap_drop: float) -> DriftReport:
    """Measure the champions one after the other; a failure does not stop the others."""
    measured = retried(measure_champion, params)
    results = {name: attempt(measured, pipeline, params, name) for name in names}
    return DriftReport(
        max_ap_drop,
        measured=[result for result in results.values() if isinstance(result, Drift)],
        absent=[name for name, result in results.items() if result is None],
        errors=[str(result) for result in results.values() if isinstance(result, Failure)],
    )


COLUMNS = ("champion", "AP recorded", "AP now", "95 % interval", "change", "images", "test data")


def markdown(report: DriftReport) -> str:
    """The run's page: every champion then and now, and the failures."""
    lines = ["# evaluate-champion", "", report.summary]
    if report.measured:
        lines += ["", *table(COLUMNS, [_row(drift, report.max_ap_drop) for drift in report.measured])]
    lines += section("Measured otherwise than recorded", bullets(report.incomparable))
    if report.absent:
        lines += ["", f"Without a champion: {', '.join(report.absent)}."]
    lines += section("Failures", bullets(report.errors))
    return "\n".join(lines) + "\n"


def _row(drift: Drift, max_ap_drop: float) -> tuple[object, ...]:
    low, high = drift.interval
    change = f"**{-drift.fall:+.4f}**" if drift.fall > max_ap_drop else f"{-drift.fall:+.4f}"
    return (
        f"{drift.name} version {drift.version}",
        f"{drift.recorded_ap:.4f}",
        f"{drift.ap:.4f}",
        f"{low:.4f} to {high:.4f}",
        change if drift.comparable else "measured otherwise",
        drift.images,
        "the same" if drift.same_data else "other than recorded",
    )
