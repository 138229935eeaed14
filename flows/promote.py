"""The promotion gate: `challenger` becomes `champion` if it is better on the same test data.

    python -m flows.promote [NAME ...] [--dry-run]     judge the challengers (default: every variant in params.yaml)
    python -m flows.promote --rollback NAME            `previous` becomes champion again

Test AP decides, measured on the same test images with the same settings; where the champion was measured otherwise,
its artefact is evaluated on the present test data. MLflow has no compare-and-set for aliases, so a lock lets one
promotion through at a time. A version that was rolled back is not promoted again by itself.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.pipeline import Pipeline
from stages import params as params_module
from stages.command import NO_TELEMETRY
from stages.params import Params
from stages.register import evaluation_tags
from stages.registry import CHALLENGER, CHAMPION, PREVIOUS, ModelRegistry, Version
from stages.tracking import file_lock
from yolov7.errors import ModelError, YoloError

log = logging.getLogger(__name__)

LOCK = Path(".state/promote.lock")
_MEASURED = ("test_data_sha256", "evaluation")
"""Tags that must agree before two APs may be compared."""

Evaluate = Callable[[Version], Mapping[str, str]]
"""Measures a version on the present test data: the tags of :func:`stages.register.evaluation_tags`."""


@dataclass(frozen=True)
class Decision:
    """What the gate decided for one model, and on what grounds."""

    name: str
    outcome: str
    """`promoted`, `kept` (the champion stays), or `unchanged` (the challenger is the champion already)."""
    reason: str
    challenger: int
    challenger_ap: float
    champion: int | None
    """The champion before the decision."""
    champion_ap: float | None
    margin: float
    test_data_sha256: str
    dry_run: bool = False

    @property
    def champion_now(self) -> int | None:
        """The champion after the decision (in a dry run: unchanged)."""
        return self.challenger if self.outcome == "promoted" and not self.dry_run else self.champion


def judge(registry: ModelRegistry, name: str, *, margin: float, evaluate: Evaluate, dry_run: bool = False) -> Decision:
    """Decide on the challenger of `name` and act on it. Raises :class:`ModelError` where there is no challenger."""

    def remembering(version: Version) -> Mapping[str, str]:
        measured = evaluate(version)
        if not dry_run:
            registry.set_tags(version, measured)
        return measured

    with file_lock(LOCK):
        challenger = registry.resolve(f"models:/{name}@{CHALLENGER}")
        champion = registry.by_alias(name, CHAMPION)
        decision = _decide(challenger, champion, margin, remembering, dry_run)
        if not dry_run and decision.outcome != "unchanged":
            _act(registry, challenger, champion, decision)
    return decision


def _decide(
    challenger: Version, champion: Version | None, margin: float, evaluate: Evaluate, dry_run: bool
) -> Decision:
    def decision(outcome: str, reason: str, ours: Mapping[str, str], theirs: Mapping[str, str] | None) -> Decision:
        return Decision(
            name=challenger.name,
            outcome=outcome,
            reason=reason,
            challenger=challenger.number,
            challenger_ap=_ap(challenger, ours),
            champion=champion.number if champion else None,
            champion_ap=_ap(champion, theirs) if champion and theirs else None,
            margin=margin,
            test_data_sha256=ours.get("test_data_sha256", ""),
            dry_run=dry_run,
        )

    if champion is not None and champion.number == challenger.number:
        return decision("unchanged", "the challenger is the champion already", challenger.tags, challenger.tags)
    if "rolled_back" in challenger.tags:
        reason = f"version {challenger.number} was rolled back on {challenger.tags['rolled_back']}; train a new one"
        return decision("kept", reason, challenger.tags, None)
    if champion is None:
        return decision("promoted", "there was no champion", challenger.tags, None)
    ours, theirs = _comparable(challenger, champion, evaluate)
    ahead = _ap(challenger, ours) - _ap(champion, theirs)
    # Tags hold six digits: a difference below that is rounding, not progress.
    better = round(ahead, 6) > margin
    relation = "exceeds" if better else "does not exceed"
    reason = (
        f"test AP {_ap(challenger, ours):.4f} {relation} the champion's {_ap(champion, theirs):.4f} "
        f"(version {champion.number}) by more than {margin:g}"
    )
    return decision("promoted" if better else "kept", reason, ours, theirs)


def _comparable(challenger: Version, champion: Version, evaluate: Evaluate) -> tuple[Mapping[str, str], ...]:
    """What was measured of both, on the same data with the same settings; measured now where it was not."""

    def same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
        return all(one.get(key) == other.get(key) is not None for key in _MEASURED)

    ours, theirs = challenger.tags, champion.tags
    if same(ours, theirs):
        return ours, theirs
    log.info("%s was measured on other test data or otherwise; measuring it on the present test data", champion)
    theirs = evaluate(champion)
    if not same(ours, theirs):
        log.info("so was %s; measuring it too", challenger)
        ours = evaluate(challenger)
    if not same(ours, theirs):
        raise ModelError(
            f"{champion.name}: the test data changed while champion and challenger were measured; try again"
        )
    return ours, theirs


def _ap(version: Version, measured: Mapping[str, str]) -> float:
    try:
        return float(measured["AP"])
    except (KeyError, ValueError):
        raise ModelError(f"{version} has no test AP among its tags; register it with `dvc repro`") from None


def _act(registry: ModelRegistry, challenger: Version, champion: Version | None, decision: Decision) -> None:
    # The audit trail first: an alias that moved without a record would be a riddle, a record without a move is not.
    now = _now()
    registry.set_tags(
        challenger, {"promotion": decision.outcome, "promotion_reason": decision.reason, "promotion_time": now}
    )
    against = f"v{champion.number}" if champion else "none"
    path = f"promotion/v{challenger.number}-against-{against}.json"
    registry.record(challenger, path, {**asdict(decision), "time": now})
    if decision.outcome == "promoted":
        previous = {PREVIOUS: champion.number} if champion else {}
        registry.set_aliases(challenger.name, {**previous, CHAMPION: challenger.number})


def roll_back(registry: ModelRegistry, name: str) -> tuple[Version, Version]:
    """Swap `champion` and `previous`; returns (champion now, champion before).

    The version that is taken down is marked, so that the gate does not bring it back by itself; rolling back once
    more does. Raises :class:`ModelError` where there is no previous champion.
    """
    with file_lock(LOCK):
        champion = registry.resolve(f"models:/{name}@{CHAMPION}")
        previous = registry.by_alias(name, PREVIOUS)
        if previous is None or previous.number == champion.number:
            raise ModelError(f"{name}: there is no previous champion to go back to (champion is {champion})")
        registry.set_tags(champion, {"rolled_back": _now()})
        registry.set_tags(previous, {"rolled_back": None})
        registry.set_aliases(name, {CHAMPION: previous.number, PREVIOUS: champion.number})
    return previous, champion


def measured_now(pipeline: Pipeline, params: Params) -> Evaluate:
    """A measuring of registered versions by the evaluation stage, in a process of its own."""

    def evaluate(version: Version) -> Mapping[str, str]:
        variant = version.tags.get("variant") or version.name.removeprefix(params.registry.model_prefix)
        with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
            output = Path(folder) / "metrics.json"
            command = [sys.executable, "-m", "stages.evaluate", "--variant", variant]
            command += ["--model", version.uri, "--output", str(output)]
            pipeline.run(f"evaluate-{version.name}-{version.number}", command, log)
            return evaluation_tags(json.loads(output.read_text(encoding="utf-8")), params.evaluate)

    return evaluate


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code (2: a mistake that the message explains)."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description="Promote challengers, or roll back.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered models (default: those of params.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="print the decision and change nothing")
    parser.add_argument("--rollback", metavar="NAME", help="make the previous champion of NAME the champion again")
    args = parser.parse_args(arguments)
    if args.rollback and (args.names or args.dry_run):
        parser.error("--rollback stands alone")
    os.environ.update(NO_TELEMETRY)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _roll_back(args.rollback) if args.rollback else _promote(args.names, args.dry_run)
    except YoloError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        return 2
    return 0


def _roll_back(name: str) -> None:
    now, before = roll_back(ModelRegistry(), name)
    print(f"{name}: champion is version {now.number} again (was version {before.number})")  # noqa: T201


def _promote(names: list[str], dry_run: bool) -> None:
    params = params_module.load()
    registry = ModelRegistry()
    with Pipeline(timeout_seconds=params.flow.stage_timeout_hours * 3600) as pipeline:
        evaluate = measured_now(pipeline, params)
        for name in names or [f"{params.registry.model_prefix}{variant}" for variant in params.variants]:
            print(describe(judge(registry, name, margin=params.promotion.margin, evaluate=evaluate, dry_run=dry_run)))  # noqa: T201


def describe(decision: Decision) -> str:
    """One line for people."""
    would = "would be " if decision.dry_run and decision.outcome != "unchanged" else ""
    return f"{decision.name}: version {decision.challenger} {would}{decision.outcome}: {decision.reason}"


if __name__ == "__main__":
    sys.exit(main())
