"""The promotion gate: `challenger` becomes `champion` if it is better on the same test data.

Both are measured now, side by side, on the current test images with the current settings (:mod:`stages.compare`), and
the challenger must pass every check of `params.yaml: promotion` (:mod:`flows.promotion.rules`). MLflow has no
compare-and-set for aliases, so the state a decision rests on is read again under a lock; if it has changed, the gate
judges again. A version that was rolled back is never promoted again automatically. A challenger whose classes differ
from the champion's cannot be compared with it: the champion stays, unless somebody accepts the new classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.promotion import rules as gate
from flows.promotion.models import Compare, recorded_ap
from flows.promotion.rules import Check, checks
from stages.project.home import home
from stages.project.locks import file_lock
from stages.project.params import Promotion
from stages.registry.versions import (
    ARTEFACT_VERIFICATION,
    CHALLENGER,
    CHAMPION,
    DATA_VALIDATION,
    PREVIOUS,
    SIGNATURE,
    ModelRegistry,
    Version,
)
from yolov7.errors import ModelError

log = logging.getLogger(__name__)

LOCK = Path(".state/promote.lock")
"""Held while aliases move, which takes a moment; never while models are measured, because a rollback must not wait."""
_ROUNDS = 3
"""Give up after this many measurements if the contenders keep changing."""
_GROUNDS = ("rolled_back", "manifest_sha256", SIGNATURE, ARTEFACT_VERIFICATION, DATA_VALIDATION)
"""Tags of the challenger that a decision rests on."""


@dataclass(frozen=True)
class Decision:
    """The gate's decision on one model, and its reasons."""

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
    """The checks made; empty if there was nothing to decide."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """The comparison behind the checks."""
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

    `new_classes`: if the champion has other classes, judge the challenger like a first champion. `alone` makes the
    gates of other folders wait while this one acts. Raises :class:`ModelError` if there is no challenger, if it is
    unsigned and the environment requires a signature, or if the contenders changed during every measurement.
    """
    for _ in range(_ROUNDS):
        challenger, champion = _contenders(registry, name)
        decision = _decide(challenger, champion, rules, compare, dry_run, new_classes)
        # The record of a version that was rolled back stays as it is: it is the evidence of its promotion.
        if dry_run or decision.outcome == "unchanged" or "rolled_back" in challenger.tags:
            return decision
        with alone(), file_lock(home() / LOCK):
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
    """The state a decision rests on; it must not have changed when the gate acts."""
    grounds = [challenger.tags.get(tag) for tag in _GROUNDS]
    return champion.number if champion else None, challenger.number, *grounds


def _overtaken(
    registry: ModelRegistry, challenger: Version, decision: Decision, now: Version, champion_now: Version | None
) -> None:
    """Record a decision that was not acted upon; the version's tags are left to the run that was faster."""
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
    if difference is None:
        return _against(plain, challenger, rules, comparison)
    plain = replace(plain, test_data_sha256=comparison["test_data_sha256"], evidence=comparison)
    if new_classes:
        accepted = Check("classes", True, f"{difference}, which was accepted")
        return _by_itself(plain, challenger, rules, compare, accepted.finding, accepted)
    refused = Check("classes", False, f"{difference}: nothing to measure both by; --new-classes accepts that")
    judged = (refused, *gate.evidence(challenger.tags))
    reason = "; ".join(check.finding for check in judged if not check.passed)
    return replace(plain, reason=reason, checks=judged)


def _against(plain: Decision, challenger: Version, rules: Promotion, comparison: Mapping[str, Any]) -> Decision:
    """Judge a challenger that was compared with the champion."""
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
    """Judge the first champion of its classes: it has no rival to exceed, but must keep to the budgets."""
    measured: Mapping[str, Any] = {}
    if rules.max_latency_ms or rules.max_size_mb or rules.max_int8_loss:
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


def _act(registry: ModelRegistry, challenger: Version, champion: Version | None, decision: Decision) -> None:
    # The record comes first: an alias that moved without a record could not be explained; a record without a move can.
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

    The demoted version is marked, so that the gate does not promote it again; a second rollback does. Raises
    :class:`ModelError` if there is no previous champion, or if it has no signature where one is required.
    """
    with file_lock(home() / LOCK):
        champion = registry.resolve(f"models:/{name}@{CHAMPION}")
        previous = registry.by_alias(name, PREVIOUS)
        if previous is None or previous.number == champion.number:
            raise ModelError(f"{name}: there is no previous champion to go back to (champion is {champion})")
        registry.require_signature(previous)
        now = _now()
        document = {"name": name, "outcome": "rolled back", "champion": champion.number}
        document |= {"champion_now": previous.number, "time": now}
        for version in {each.run_id: each for each in (champion, previous)}.values():  # both may come from one run
            registry.record(version, _document(f"v{champion.number}-rolled-back-to-v{previous.number}"), document)
        registry.set_tags(champion, {"rolled_back": now})
        registry.set_tags(previous, {"rolled_back": None})
        registry.set_aliases(name, {CHAMPION: previous.number, PREVIOUS: champion.number})
    return previous, champion


def _document(what: str) -> str:
    """Path of a record among the artifacts of a version's run; the time in its name keeps records apart."""
    return f"promotion/{what}-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}Z.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe(decision: Decision) -> str:
    """The decision in one line."""
    return f"{decision.name}: {verdict(decision)}: {decision.reason}"


def verdict(decision: Decision) -> str:
    """Version and outcome, without the reason."""
    would = "would be " if decision.dry_run and decision.outcome != "unchanged" else ""
    return f"version {decision.challenger} {would}{decision.outcome}"
