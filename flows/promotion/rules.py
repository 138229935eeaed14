"""The rules of promotion: the checks that a comparison of challenger and champion must pass.

Pure functions of what :mod:`stages.compare` has measured; :mod:`flows.promotion.judge` acts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.project.params import Promotion
from stages.registry.versions import ARTEFACT_VERIFICATION, DATA_VALIDATION, PASSED

_EVIDENCE = {
    "artefact": (ARTEFACT_VERIFICATION, "verification of the artefact against what was trained"),
    "data": (DATA_VALIDATION, "validation of the training data"),
}
_NAMED = 5
"""Number of class names that a finding lists; the rest is counted."""
_ROUNDING = 6
"""Digits of AP that count; a smaller difference is rounding."""


@dataclass(frozen=True)
class Check:
    """One rule and the finding."""

    rule: str
    passed: bool
    finding: str


def other_classes(comparison: Mapping[str, Any]) -> str | None:
    """The difference between the classes of champion and challenger; None if both have the same, in the same order."""
    names = comparison.get("class_names")
    if names is None:
        return None
    ours, theirs = names["challenger"], names["champion"]
    sides = [("new", set(ours) - set(theirs), ours), ("gone", set(theirs) - set(ours), theirs)]
    moved = [f"{what}: {_listed([name for name in order if name in some])}" for what, some, order in sides if some]
    counts = f"{len(theirs)}, the challenger {len(ours)}"
    return f"the champion knows other classes ({counts}; {'; '.join(moved) or 'in another order'})"


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMED]))
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def checks(comparison: Mapping[str, Any], rules: Promotion) -> list[Check]:
    """Check every rule of `params.yaml: promotion` that is enabled."""
    return [_better(comparison, rules), _classes(comparison, rules), *budgets(comparison["challenger"], rules)]


def budgets(ours: Mapping[str, Any], rules: Promotion) -> list[Check]:
    """Check the rules for a model by itself, also for the first champion; `ours` is its side of a comparison."""
    judged = []
    if rules.max_latency_ms:
        found = f"{ours['latency_ms']:.1f} ms an image, {rules.max_latency_ms:g} ms allowed"
        judged.append(Check("latency", ours["latency_ms"] <= rules.max_latency_ms, found))
    if rules.max_size_mb:
        size = ours["size_mb"]
        found = "size unknown" if size is None else f"{size:.1f} MB, {rules.max_size_mb:g} MB allowed"
        judged.append(Check("size", size is not None and size <= rules.max_size_mb, found))
    return judged + (_int8(ours, rules) if rules.max_int8_loss else [])


def _int8(ours: Mapping[str, Any], rules: Promotion) -> list[Check]:
    """Check the AP of each int8 file of a model against its float file."""
    judged = []
    for file, figures in ours.get("int8", {}).items():
        loss = ours["AP"] - figures["AP"]
        moved = f"{loss:.4f} below" if loss > 0 else f"{-loss:.4f} above"
        found = f"{file}: test AP {figures['AP']:.4f}, {moved} the float file's {ours['AP']:.4f}; "
        found += f"{rules.max_int8_loss:g} allowed"
        judged.append(Check("int8", round(loss, _ROUNDING) <= rules.max_int8_loss, found))
    return judged


def evidence(tags: Mapping[str, str]) -> list[Check]:
    """Check what registration recorded of earlier stages: their success must be on record, never assumed."""
    found = [(rule, what, tags.get(tag, "not on record")) for rule, (tag, what) in _EVIDENCE.items()]
    return [Check(rule, result == PASSED, f"{what}: {result}") for rule, what, result in found]


def _better(comparison: Mapping[str, Any], rules: Promotion) -> Check:
    difference = comparison["AP_difference"]
    decisive = difference["low"] if rules.certain else difference["value"]
    passed = round(decisive, _ROUNDING) > rules.margin
    interval = f"[{difference['low']:+.4f}, {difference['high']:+.4f}]"
    what = "surely exceed" if rules.certain else "exceed"
    what = what if not passed else what.replace("exceed", "exceeds")
    finding = (
        f"test AP {comparison['challenger']['AP']:.4f} {'' if passed else 'does not '}{what} the champion's "
        f"{comparison['champion']['AP']:.4f} by more than {rules.margin:g} (95 % interval of the difference {interval})"
    )
    return Check("AP", passed, finding)


def _classes(comparison: Mapping[str, Any], rules: Promotion) -> Check:
    ours, theirs = comparison["challenger"]["per_class"], comparison["champion"]["per_class"]
    counts = comparison["objects"]
    losses = {
        name: theirs[name] - ours[name]
        for name in ours
        if counts.get(name, 0) >= rules.min_class_objects and min(ours[name], theirs[name]) >= 0
    }
    if not losses:
        return Check("classes", True, f"no class has the {rules.min_class_objects} test objects to be judged by")
    worst = max(losses, key=lambda name: losses[name])
    passed = round(losses[worst], _ROUNDING) <= rules.max_class_loss
    moved = f"falls by {losses[worst]:.4f}" if losses[worst] > 0 else f"rises by {-losses[worst]:.4f}"
    finding = f"at worst, class {worst!r} {moved}; {rules.max_class_loss:g} allowed"
    return Check("classes", passed, finding)
