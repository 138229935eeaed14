"""The Prefect flow `promote`: the gate (:mod:`flows.promotion.judge`), on demand or when a version is registered."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import PositiveFloat

from flows.promotion.judge import Decision, chosen_models, compared_now, describe, judge, main, verdict
from flows.report import decision_lines, escape
from flows.runner.pipeline import Pipeline, only_run
from flows.tasks import alone, prepare_data, result_of, retried, words, worth_retrying
from stages.project import params as params_module
from stages.project.params import Params
from stages.registry.versions import ModelRegistry
from yolov7.errors import ConfigError, YoloError


@dataclass
class PromotionReport:
    """What the gate decided about each model, and where it could not decide."""

    decisions: list[Decision] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One sentence."""
        parts = [f"{one.name}: {verdict(one)}" for one in self.decisions]
        parts += [f"{len(self.errors)} could not be judged"] if self.errors else []
        return "; ".join(parts) + "."


class PromotionError(YoloError):
    """The flow has ended, and some model could not be judged; the message says why."""

    def __init__(self, report: PromotionReport):
        super().__init__(" / ".join(report.errors))
        self.report = report


@task(name="promote", task_run_name="promote@{name}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def promote_one(pipeline: Pipeline, params: Params, name: str, dry_run: bool, new_classes: bool = False) -> Decision:
    """The gate for one registered model."""
    compare = compared_now(pipeline, params)
    options: dict[str, Any] = {"dry_run": dry_run, "new_classes": new_classes, "alone": alone}
    decision = judge(ModelRegistry(), name, rules=params.promotion, compare=compare, **options)
    get_run_logger().info("%s", describe(decision))
    return decision


@flow(name="promote", persist_result=False)
def promote(
    models: list[str] | None = None,
    dry_run: bool = False,
    new_classes: bool = False,
    timeout_hours: PositiveFloat = 12.0,
) -> PromotionReport:
    """Let the gate decide whether each model's challenger becomes its champion; the page holds the grounds.

    The data is brought up to date first: a worker's folder may be a fresh checkout, which has no test images.

    Args:
        models: names of registered models; those of `params.yaml: variants` where none are given.
        dry_run: say what would be decided and change nothing.
        new_classes: for the models named, promote also where the champion knows other classes, so that nothing
            can be compared.
        timeout_hours: a data stage or a measurement of challenger against champion is stopped after this time.
    """
    params = params_module.load()
    chosen = chosen_models(models, params)
    if new_classes and models is None:
        raise ConfigError("new_classes: name the models whose new classes are meant")
    log, root = get_run_logger(), Path.cwd()
    report = PromotionReport()
    # The test images must not be replaced while two models are measured on them.
    with only_run(root, log), Pipeline(root, timeout_seconds=timeout_hours * 3600, pull=params.flow.pull) as pipeline:
        _, failure = prepare_data(pipeline, params)
        if failure is not None:
            report.errors.append(failure)
            chosen = []
        for name in chosen:
            state = retried(promote_one, params)(pipeline, params, name, dry_run, new_classes, return_state=True)
            result = result_of(state)
            if isinstance(result, Decision):
                report.decisions.append(result)
            else:
                report.errors.append(words(result, f"promote@{name}"))
    create_markdown_artifact(markdown(report), key="promote", description=report.summary)
    log.info("%s", report.summary)
    if report.errors:
        raise PromotionError(report)
    return report


def markdown(report: PromotionReport) -> str:
    """The run's page: every decision with the rules behind it, then what could not be decided."""
    lines = ["# promote", "", report.summary, ""]
    if any(decision.dry_run for decision in report.decisions):
        lines += ["A dry run: nothing was changed.", ""]
    lines += decision_lines(report.decisions)
    if report.errors:
        lines += ["", "## Not judged", "", *(f"- {escape(error)}" for error in report.errors)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
