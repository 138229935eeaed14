"""The promotion gate: `challenger` becomes `champion` if it is better on the same test data.

    python -m flows.promote [NAME ...] [--dry-run]     judge the challengers (default: every variant in params.yaml)
    python -m flows.promote NAME ... --new-classes     promote also where the champion knows other classes
    python -m flows.promote --rollback NAME            `previous` becomes champion again
    python -m flows.promote --sign models:/NAME@ALIAS  sign a version that was registered without a key

Both are measured anew, side by side, on the present test images with the present settings (:mod:`stages.compare`), and
the challenger must pass every check of `params.yaml: promotion` (:mod:`flows.promotion.rules`). MLflow has no
compare-and-set
for aliases: what a decision was about is read once more under a lock, and judged again if it has changed meanwhile. A
version that was rolled back is not promoted again by itself. A model with other classes than the champion's cannot be
measured against it: the champion stays, unless somebody accepts the new classes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.promotion import rules as gate
from flows.promotion.rules import Check, checks
from flows.runner.pipeline import Pipeline, only_run
from stages.project import params as params_module
from stages.project.command import NO_TELEMETRY
from stages.project.locks import file_lock
from stages.project.params import Params, Promotion
from stages.project.redaction import log_to_stderr, redacted
from stages.registry.versions import (
    ARTEFACT_VERIFICATION,
    CHALLENGER,
    CHAMPION,
    DATA_VALIDATION,
    PREVIOUS,
    SIGNATURE,
    ModelRegistry,
    Version,
    manifest_of,
)
from yolov7.errors import ConfigError, ModelError, YoloError

log = logging.getLogger(__name__)

LOCK = Path(".state/promote.lock")
"""Held while aliases move, which takes a moment; never while models are measured, for a rollback must not wait."""
_ROUNDS = 3
"""A gate whose models change under every measurement gives up after so many."""
_GROUNDS = ("rolled_back", "manifest_sha256", SIGNATURE, ARTEFACT_VERIFICATION, DATA_VALIDATION)
"""Tags of the challenger that a decision rests on."""

Compare = Callable[[Version, Version], Mapping[str, Any]]
"""Measures a challenger and a champion side by side: the document of :mod:`stages.compare`."""


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
    test_data_sha256: str
    checks: tuple[Check, ...] = ()
    """The rules judged; none where there was nothing to decide."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The comparison the checks are about."""
    dry_run: bool = False

    @property
    def champion_now(self) -> int | None:
        """The champion after the decision (in a dry run: unchanged)."""
        return self.challenger if self.outcome == "promoted" and not self.dry_run else self.champion


def judge(
    registry: ModelRegistry,
    name: str,
    *,
    rules: Promotion,
    compare: Compare,
    dry_run: bool = False,
    new_classes: bool = False,
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Decision:
    """Decide on the challenger of `name` and act on it.

    `new_classes`: where the champion knows other classes, judge the challenger as a first champion is judged. `alone`
    keeps the gates of other folders waiting while this one acts. Raises :class:`ModelError` where there is no
    challenger, where it is not signed and the environment asks for it, or where both changed in every measurement.
    """
    for _ in range(_ROUNDS):
        challenger, champion = _contenders(registry, name)
        decision = _decide(challenger, champion, rules, compare, dry_run, new_classes)
        # What was recorded of a version that was rolled back stays as it is: it is the evidence of its promotion.
        if dry_run or decision.outcome == "unchanged" or "rolled_back" in challenger.tags:
            return decision
        with alone(), file_lock(LOCK):
            now = _contenders(registry, name)
            if _standing(*now) == _standing(challenger, champion):
                _act(registry, challenger, champion, decision)
                return decision
        _overtaken(registry, challenger, decision, *now)
    raise ModelError(f"{name}: challenger or champion changed during each of {_ROUNDS} measurements; judge it again")


def _contenders(registry: ModelRegistry, name: str) -> tuple[Version, Version | None]:
    challenger = registry.resolve(f"models:/{name}@{CHALLENGER}")
    registry.require_signature(challenger)
    return challenger, registry.by_alias(name, CHAMPION)


def _standing(challenger: Version, champion: Version | None) -> tuple[object, ...]:
    """What must still hold when a decision is acted upon."""
    grounds = [challenger.tags.get(tag) for tag in _GROUNDS]
    return champion.number if champion else None, challenger.number, *grounds


def _overtaken(
    registry: ModelRegistry, challenger: Version, decision: Decision, now: Version, champion_now: Version | None
) -> None:
    """Keep a decision that nothing came of; the version's tags are those of whoever was quicker."""
    champion = f"version {champion_now.number}" if champion_now else "none"
    found = f"overtaken: now the challenger is version {now.number} and the champion {champion}"
    log.info("%s: version %d was %s; judging again", decision.name, challenger.number, found)
    document = {**asdict(decision), "outcome": "overtaken", "reason": f"{found}; {decision.reason}", "time": _now()}
    registry.record(challenger, _document(_subject(decision)), document)


def _subject(decision: Decision) -> str:
    return f"v{decision.challenger}-against-{'none' if decision.champion is None else f'v{decision.champion}'}"


def _decide(
    challenger: Version,
    champion: Version | None,
    rules: Promotion,
    compare: Compare,
    dry_run: bool,
    new_classes: bool,
) -> Decision:
    plain = Decision(
        name=challenger.name,
        outcome="kept",
        reason="",
        challenger=challenger.number,
        challenger_ap=recorded_ap(challenger),
        champion=champion.number if champion else None,
        champion_ap=recorded_ap(champion) if champion else None,
        test_data_sha256=challenger.tags.get("test_data_sha256", ""),
        dry_run=dry_run,
    )
    if champion is not None and champion.number == challenger.number:
        return replace(plain, outcome="unchanged", reason="the challenger is the champion already")
    if "rolled_back" in challenger.tags:
        reason = f"version {challenger.number} was rolled back on {challenger.tags['rolled_back']}; train a new one"
        return replace(plain, reason=reason)
    if champion is None:
        return _by_itself(plain, challenger, rules, compare, "there was no champion")
    comparison = compare(challenger, champion)
    difference = gate.other_classes(comparison)
    if difference is not None:
        plain = replace(plain, test_data_sha256=comparison["test_data_sha256"], evidence=comparison)
        if new_classes:
            accepted = Check("classes", True, f"{difference}, which was accepted")
            return _by_itself(plain, challenger, rules, compare, accepted.finding, accepted)
        refused = Check("classes", False, f"{difference}: nothing to measure both by; --new-classes accepts that")
        judged = (refused, *gate.evidence(challenger.tags))
        reason = "; ".join(check.finding for check in judged if not check.passed)
        return replace(plain, reason=reason, checks=judged)
    judged = (*checks(comparison, rules), *gate.evidence(challenger.tags))
    failed = [check for check in judged if not check.passed]
    return replace(
        plain,
        outcome="kept" if failed else "promoted",
        reason="; ".join(check.finding for check in failed or judged),
        challenger_ap=comparison["challenger"]["AP"],
        champion_ap=comparison["champion"]["AP"],
        test_data_sha256=comparison["test_data_sha256"],
        checks=judged,
        evidence=comparison,
    )


def _by_itself(
    plain: Decision, challenger: Version, rules: Promotion, compare: Compare, why: str, *more: Check
) -> Decision:
    """The first champion of its classes has nobody to exceed, and to keep to the budgets all the same."""
    measured: Mapping[str, Any] = {}
    if rules.max_latency_ms or rules.max_size_mb:
        measured = compare(challenger, challenger)["challenger"]
    judged = (*more, *gate.budgets(measured, rules), *gate.evidence(challenger.tags))
    failed = [check for check in judged if not check.passed]
    reason = "; ".join([why, *(check.finding for check in failed)])
    return replace(
        plain,
        outcome="kept" if failed else "promoted",
        reason=reason,
        challenger_ap=measured.get("AP", plain.challenger_ap),
        checks=judged,
        evidence={**plain.evidence, "challenger": measured} if measured else plain.evidence,
    )


def recorded_ap(version: Version) -> float:
    """The test AP a version carries as a tag. Raises :class:`ModelError` where it has none."""
    try:
        return float(version.tags["AP"])
    except (KeyError, ValueError):
        raise ModelError(f"{version} has no test AP among its tags; register it with `dvc repro`") from None


def _act(registry: ModelRegistry, challenger: Version, champion: Version | None, decision: Decision) -> None:
    # The audit trail first: an alias that moved without a record would be a riddle, a record without a move is not.
    now = _now()
    for version, role in ((challenger, "challenger"), (champion, "champion")):
        if version is not None and role in decision.evidence:
            registry.set_tags(version, decision.evidence[role]["tags"])
    registry.set_tags(
        challenger, {"promotion": decision.outcome, "promotion_reason": decision.reason, "promotion_time": now}
    )
    registry.record(challenger, _document(_subject(decision)), {**asdict(decision), "time": now})
    if decision.outcome == "promoted":
        previous = {PREVIOUS: champion.number} if champion else {}
        registry.set_aliases(challenger.name, {**previous, CHAMPION: challenger.number})


def roll_back(registry: ModelRegistry, name: str) -> tuple[Version, Version]:
    """Swap `champion` and `previous`; returns (champion now, champion before).

    The version that is taken down is marked, so that the gate does not bring it back by itself; rolling back once
    more does. Raises :class:`ModelError` where there is no previous champion, or none that is signed as asked for.
    """
    with file_lock(LOCK):
        champion = registry.resolve(f"models:/{name}@{CHAMPION}")
        previous = registry.by_alias(name, PREVIOUS)
        if previous is None or previous.number == champion.number:
            raise ModelError(f"{name}: there is no previous champion to go back to (champion is {champion})")
        registry.require_signature(previous)
        now = _now()
        document = {"name": name, "outcome": "rolled back", "champion": champion.number}
        document |= {"champion_now": previous.number, "time": now}
        for version in {one.run_id: one for one in (champion, previous)}.values():  # two may come from one run
            registry.record(version, _document(f"v{champion.number}-rolled-back-to-v{previous.number}"), document)
        registry.set_tags(champion, {"rolled_back": now})
        registry.set_tags(previous, {"rolled_back": None})
        registry.set_aliases(name, {CHAMPION: previous.number, PREVIOUS: champion.number})
    return previous, champion


def variant_of(version: Version, params: Params) -> str:
    """The network a version holds, as params.yaml names it."""
    return version.tags.get("variant") or version.name.removeprefix(params.registry.model_prefix)


def registered_names(params: Params) -> list[str]:
    """The registered models of params.yaml, one for each variant."""
    return [f"{params.registry.model_prefix}{variant}" for variant in params.variants]


def chosen_models(models: list[str] | None, params: Params) -> list[str]:
    """`models`, each once, or those of params.yaml. Raises :class:`ConfigError` for an empty list."""
    if models is not None and not models:
        raise ConfigError("models: name at least one registered model, or leave it out for those of params.yaml")
    return list(dict.fromkeys(registered_names(params) if models is None else models))


def compared_now(pipeline: Pipeline, params: Params) -> Compare:
    """A comparison of registered versions by :mod:`stages.compare`, in a process of its own."""

    def compare(challenger: Version, champion: Version) -> Mapping[str, Any]:
        variant = variant_of(challenger, params)
        with tempfile.TemporaryDirectory(prefix="compare-") as folder:
            output = Path(folder) / "comparison.json"
            command = [sys.executable, "-m", "stages.compare", "--variant", variant, "--output", str(output)]
            command += ["--challenger", challenger.uri, "--champion", champion.uri]
            what = f"compare-{challenger.name}-{challenger.number}-{champion.number}"
            pipeline.run(what, command, log, measures=True)
            found: Mapping[str, Any] = json.loads(output.read_text(encoding="utf-8"))
            return found

    return compare


def _document(what: str) -> str:
    """Where a record lies among those of a version's run; by its time, so that none takes the place of another."""
    return f"promotion/{what}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code (2: a mistake that the message explains)."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description="Promote challengers, or roll back.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="registered models (default: those of params.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="print the decision and change nothing")
    parser.add_argument(
        "--new-classes",
        action="store_true",
        help="where the champion of NAME knows other classes, promote without the comparison that cannot be made",
    )
    parser.add_argument("--rollback", metavar="NAME", help="make the previous champion of NAME the champion again")
    parser.add_argument("--sign", metavar="MODEL", help="sign the version models:/NAME@ALIAS or models:/NAME/VERSION")
    args = parser.parse_args(arguments)
    if (args.rollback or args.sign) and (
        args.names or args.dry_run or args.new_classes or (args.rollback and args.sign)
    ):
        parser.error("--rollback and --sign each stand alone")
    if args.new_classes and not args.names:
        parser.error("--new-classes: name the models whose new classes are meant")
    os.environ.update(NO_TELEMETRY)
    log_to_stderr()
    try:
        if args.rollback:
            _roll_back(args.rollback)
        elif args.sign:
            _sign(args.sign)
        else:
            _promote(args.names, args.dry_run, args.new_classes)
    except YoloError as error:
        print(f"error: {redacted(error)}", file=sys.stderr)  # noqa: T201 - the one line a user sees
        return 2
    return 0


def _roll_back(name: str) -> None:
    now, before = roll_back(ModelRegistry(), name)
    print(f"{name}: champion is version {now.number} again (was version {before.number})")  # noqa: T201


def _sign(uri: str) -> None:
    registry = ModelRegistry()
    version = registry.resolve(uri)
    registry.sign(version)
    print(f"{version} is signed: its files are those of its manifest {manifest_of(version)}")  # noqa: T201


def _promote(names: list[str], dry_run: bool, new_classes: bool) -> None:
    params = params_module.load()
    registry, root = ModelRegistry(), Path.cwd()
    # A nightly run must not replace the test images while two models are measured on them.
    with only_run(root, log), Pipeline(root, timeout_seconds=params.flow.stage_timeout_hours * 3600) as pipeline:
        compare = compared_now(pipeline, params)
        options: dict[str, Any] = {"dry_run": dry_run, "new_classes": new_classes}
        for name in names or registered_names(params):
            decision = judge(registry, name, rules=params.promotion, compare=compare, **options)
            print(describe(decision))  # noqa: T201


def describe(decision: Decision) -> str:
    """One line for people."""
    return f"{decision.name}: {verdict(decision)}: {decision.reason}"


def verdict(decision: Decision) -> str:
    """What happened to which version, without the reason."""
    would = "would be " if decision.dry_run and decision.outcome != "unchanged" else ""
    return f"version {decision.challenger} {would}{decision.outcome}"
