"""The promotion gate as a Prefect flow, `promote`, and as a command.

    python -m flows.promote [NAME ...] [--dry-run]     judge the challengers (default: every variant in params.yaml)
    python -m flows.promote NAME ... --new-classes     promote even if the champion has other classes
    python -m flows.promote --rollback NAME            make `previous` the champion again
    python -m flows.promote --sign models:/NAME@ALIAS  sign a version that was registered without a key

The decision itself is made in :mod:`flows.promotion`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.markdown import bullets, section
from flows.promotion.judge import Decision, describe, judge, roll_back, verdict
from flows.promotion.models import chosen_models, compared_now, ensure_challenger, registered_names
from flows.report import decision_lines
from flows.runner.pipeline import Pipeline, only_run
from flows.tasks import Failure, Hours, alone, attempt, prepare_data, retried, worth_retrying
from stages.project import params as params_module
from stages.project.command import NO_TELEMETRY, check_system
from stages.project.names import check_model_name
from stages.project.params import Params
from stages.project.redaction import log_to_stderr, redacted
from stages.registry.versions import ModelRegistry, manifest_of
from yolov7.errors import ConfigError, YoloError

log = logging.getLogger(__name__)


@dataclass
class PromotionReport:
    """The gate's decision on each model, and the models it could not judge."""

    decisions: list[Decision] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One sentence."""
        parts = [f"{decision.name}: {verdict(decision)}" for decision in self.decisions]
        parts += [f"{len(self.errors)} could not be judged"] if self.errors else []
        return "; ".join(parts) + "."


class PromotionError(YoloError):
    """The flow has ended, and a model could not be judged; the message says why."""

    def __init__(self, report: PromotionReport):
        super().__init__(" / ".join(report.errors))
        self.report = report


@task(name="promote", task_run_name="promote@{name}", cache_policy=NO_CACHE, retry_condition_fn=worth_retrying)
def promote_model(
    pipeline: Pipeline,
    params: Params,
    name: str,
    *,
    dry_run: bool = False,
    new_classes: bool = False,
    variant: str | None = None,
) -> Decision:
    """Judge one registered model; `variant`: the result of its stages in this folder becomes the challenger first."""
    log = get_run_logger()
    if variant is not None:
        ensure_challenger(pipeline, variant, log)
    decision = judge(
        ModelRegistry(),
        name,
        rules=params.promotion,
        compare=compared_now(pipeline),
        dry_run=dry_run,
        new_classes=new_classes,
        alone=alone,
    )
    log.info("%s", describe(decision))
    return decision


@flow(name="promote", persist_result=False)
def promote(
    models: list[str] | None = None,
    dry_run: bool = False,
    new_classes: bool = False,
    timeout_hours: Hours = 12.0,
) -> PromotionReport:
    """Judge each model's challenger and promote it if it passes; the page shows the reasons.

    The data is brought up to date first: a worker's folder may be a fresh checkout without test images.

    Args:
        models: names of registered models; default: those of `params.yaml: variants`.
        dry_run: report the decisions and change nothing.
        new_classes: for the models named, promote even if the champion has other classes, so that nothing can be
            compared.
        timeout_hours: time limit of each data stage and each comparison of challenger and champion.
    """
    params = params_module.load()
    chosen = chosen_models(models, params)
    if new_classes and models is None:
        raise ConfigError("new_classes: name the models whose new classes you accept")
    log, root = get_run_logger(), Path.cwd()
    report = PromotionReport()
    # The test images must not be replaced while two models are measured on them.
    with only_run(root, log), Pipeline(root, timeout_seconds=timeout_hours * 3600, pull=params.flow.pull) as pipeline:
        _, failure = prepare_data(pipeline, params)
        if failure is None:
            report = judge_each(pipeline, params, chosen, dry_run=dry_run, new_classes=new_classes)
        else:
            report.errors.append(str(failure))
    create_markdown_artifact(markdown(report), key="promote", description=report.summary)
    log.info("%s", report.summary)
    if report.errors:
        raise PromotionError(report)
    return report


def judge_each(
    pipeline: Pipeline, params: Params, names: list[str], *, dry_run: bool, new_classes: bool
) -> PromotionReport:
    """Judge the models one after the other; a failure does not stop the others."""
    judged = retried(promote_model, params)
    results = [attempt(judged, pipeline, params, name, dry_run=dry_run, new_classes=new_classes) for name in names]
    return PromotionReport(
        decisions=[result for result in results if isinstance(result, Decision)],
        errors=[str(result) for result in results if isinstance(result, Failure)],
    )


def markdown(report: PromotionReport) -> str:
    """The run's page: every decision with its checks, then the models that could not be judged."""
    lines = ["# promote", "", report.summary, ""]
    if any(decision.dry_run for decision in report.decisions):
        lines += ["A dry run: nothing was changed.", ""]
    lines += decision_lines(report.decisions)
    lines += section("Not judged", bullets(report.errors))
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code (2: a mistake that the message explains)."""
    args = _parse(arguments)
    os.environ.update(NO_TELEMETRY)
    log_to_stderr()
    try:
        check_system()
        if args.rollback:
            _roll_back(args.rollback)
        elif args.sign:
            _sign(args.sign)
        else:
            _judge(args.names, args.dry_run, args.new_classes)
    except YoloError as error:
        print(f"error: {redacted(error)}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        return 2
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description="Promote challengers, or roll back.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered models (default: those of params.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="print the decisions and change nothing")
    parser.add_argument(
        "--new-classes",
        action="store_true",
        help="promote NAME even if its champion has other classes and the two cannot be compared",
    )
    parser.add_argument("--rollback", metavar="NAME", help="make the previous champion of NAME the champion again")
    parser.add_argument("--sign", metavar="MODEL", help="sign the version models:/NAME@ALIAS or models:/NAME/VERSION")
    args = parser.parse_args(arguments)
    judges = args.names or args.dry_run or args.new_classes
    if (args.rollback or args.sign) and (judges or (args.rollback and args.sign)):
        parser.error("--rollback and --sign cannot be combined with anything else")
    if args.new_classes and not args.names:
        parser.error("--new-classes: name the models whose new classes you accept")
    return args


def _roll_back(name: str) -> None:
    check_model_name(name, where="--rollback")
    now, before = roll_back(ModelRegistry(), name)
    print(f"{name}: champion is version {now.number} again (was version {before.number})")  # noqa: T201


def _sign(uri: str) -> None:
    registry = ModelRegistry()
    version = registry.resolve(uri)
    registry.sign(version)
    print(f"{version} is signed: its files are those of its manifest {manifest_of(version)}")  # noqa: T201


def _judge(names: list[str], dry_run: bool, new_classes: bool) -> None:
    for name in names:
        check_model_name(name, where="NAME")
    params = params_module.load()
    registry, root = ModelRegistry(), Path.cwd()
    # A nightly run must not replace the test images while two models are measured on them.
    with only_run(root, log), Pipeline(root, timeout_seconds=params.flow.stage_timeout_hours * 3600) as pipeline:
        compare = compared_now(pipeline)
        for name in names or registered_names(params):
            decision = judge(
                registry, name, rules=params.promotion, compare=compare, dry_run=dry_run, new_classes=new_classes
            )
            print(describe(decision))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
