"""The recommendation among measured candidates, and its reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stages.choice.plan import RuledOut


@dataclass(frozen=True)
class Measured:
    """A candidate of the last rung, as its exported file was measured on the test split."""

    variant: str
    ap: float
    ap_low: float
    ap_high: float
    """Ends of the 95 % interval."""
    latency_ms: float
    size_mb: float
    training_minutes: float


@dataclass(frozen=True)
class Difference:
    """AP of the best minus AP of another, resampled in pairs, with the 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Recommendation:
    """The chosen candidate, and why."""

    variant: str | None
    """None: no candidate is within the limits."""
    best: str | None
    """The candidate of highest AP within the limits."""
    reasons: list[str] = field(default_factory=list)


def recommend(
    measured: Sequence[Measured],
    ruled_out: Sequence[RuledOut],
    difference: Callable[[str, str], Difference],
    *,
    prefer: Literal["speed", "accuracy"],
) -> Recommendation:
    """Choose among the candidates that no limit rules out.

    `difference(best, other)` is asked for the others within the limits. One whose interval reaches 0 is as good as the
    best as far as this test split can tell.
    """
    out = {each.variant for each in ruled_out}
    reasons = [f"{each.variant} is ruled out by the limit of {each.limit}: {each.finding}." for each in ruled_out]
    within = sorted((each for each in measured if each.variant not in out), key=lambda each: -each.ap)
    if not within:
        return Recommendation(None, None, [*reasons, "No candidate is within the limits."])
    best, *others = within
    interval = f"95 % interval {best.ap_low:.3f} to {best.ap_high:.3f}"
    reasons.append(f"{best.variant} has the highest test AP within the limits: {best.ap:.3f} ({interval}).")
    equals = [best]
    for other in others:
        found = difference(best.variant, other.variant)
        words = f"{found.value:.3f} below (95 % interval {found.low:+.3f} to {found.high:+.3f})"
        if found.low > 0:
            reasons.append(f"{other.variant} is surely worse: its AP is {words}.")
            continue
        equals.append(other)
        reasons.append(f"{other.variant} may be as good: its AP is {words}; {_against(other, best)}.")
    chosen = min(equals, key=lambda each: (each.latency_ms, each.size_mb)) if prefer == "speed" else best
    if chosen is best and len(equals) > 1 and prefer == "speed":
        reasons.append(f"{best.variant} is also the fastest of those that may be as good.")
    elif chosen is not best:
        reasons.append(f"{chosen.variant} is the fastest of those that may be as good as {best.variant}.")
    return Recommendation(chosen.variant, best.variant, reasons)


def _against(other: Measured, best: Measured) -> str:
    speed, size = best.latency_ms / other.latency_ms, other.size_mb / best.size_mb
    faster = f"{speed:.2f} times as fast" if speed >= 1 else f"{1 / speed:.2f} times as slow"
    return f"it is {faster} and has {size:.2f} times the size"


def pareto(measured: Sequence[Measured]) -> list[str]:
    """The candidates that no other beats in both latency and AP, from the fastest on."""
    front: list[Measured] = []
    for each in sorted(measured, key=lambda one: (one.latency_ms, -one.ap)):
        if not front or each.ap > front[-1].ap:
            front.append(each)
    return [each.variant for each in front]
