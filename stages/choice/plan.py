"""Successive halving: short trainings for all candidates, longer ones for the best, within limits.

Every rung is a whole training of its length (:func:`stages.trials.shorten.short_run`), not the continuation of the rung
before: the learning rate of a run falls to its end, so a continued run would train by another schedule than `train`
does, and its AP would not be that of a training of its epochs. With rungs a factor of three apart, all rungs before the
last cost a candidate less than half of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.project.params import Params
from stages.project.params_search import Choice
from yolov7.documents import MAX_YAML, DocumentError, read_text
from yolov7.errors import ConfigError
from yolov7.yaml_text import read_yaml

_FACTOR = 3
LATENCY, SIZE, MINUTES = "latency", "size", "training time"


@dataclass(frozen=True)
class Standing:
    """A candidate after a rung."""

    variant: str
    epochs: int
    ap: float
    """Best validation AP."""
    seconds: float
    """Time on training batches."""


@dataclass(frozen=True)
class RuledOut:
    """A candidate beyond a limit."""

    variant: str
    limit: str
    finding: str


def check_choice(params: Params) -> None:
    """Raise :class:`ConfigError` for settings that would stop the choice later."""
    given_latencies(params.choice)
    for variant in params.choice.candidates:
        params.training(variant)


def rungs_of(choice: Choice, epochs: int) -> tuple[int, ...]:
    """Epochs of the rungs; the last one is the training whose model is registered."""
    if choice.rungs:
        return choice.rungs
    return tuple(sorted({math.ceil(epochs / _FACTOR**power) for power in (2, 1, 0)}))


def survivors(standings: Sequence[Standing], keep: float) -> list[str]:
    """The candidates of highest AP, at least one; of equals the one named first."""
    ranked = sorted(standings, key=lambda standing: -standing.ap)
    return [standing.variant for standing in ranked[: max(1, math.ceil(round(len(ranked) * keep, 9)))]]


def too_slow_to_train(standings: Sequence[Standing], epochs: int, limit: float) -> list[RuledOut]:
    """Candidates whose training of `epochs` would take longer than `limit` minutes, by their seconds per epoch."""
    if not limit:
        return []
    minutes = {each.variant: each.seconds / each.epochs * epochs / 60 for each in standings}
    return [
        RuledOut(variant, MINUTES, f"{found:.1f} min for {epochs} epochs, {limit:g} min allowed")
        for variant, found in minutes.items()
        if found > limit
    ]


def beyond(variant: str, latency_ms: float | None, size_mb: float | None, choice: Choice) -> list[RuledOut]:
    """The limits that a candidate exceeds; None: not measured."""
    budget, found = choice.budget, []
    if budget.latency_ms and latency_ms is not None and latency_ms > budget.latency_ms:
        where = f" by {budget.latencies}" if budget.latencies else ""
        words = f"{latency_ms:.1f} ms an image{where}, {budget.latency_ms:g} ms allowed"
        found.append(RuledOut(variant, LATENCY, words))
    if budget.size_mb and size_mb is not None and size_mb > budget.size_mb:
        found.append(RuledOut(variant, SIZE, f"{size_mb:.1f} MB, {budget.size_mb:g} MB allowed"))
    return found


def given_latencies(choice: Choice) -> Mapping[str, float]:
    """Milliseconds by variant of `choice.budget.latencies`; empty without a file.

    Raises :class:`ConfigError` for a file that is missing, malformed, or without one of the candidates.
    """
    if not choice.budget.latencies:
        return {}
    path, where = Path(choice.budget.latencies), "params.yaml: choice.budget.latencies"
    try:
        values = read_yaml(read_text(path, MAX_YAML)).value
    except FileNotFoundError:
        raise ConfigError(f"{where}: {path}: no such file") from None
    except (DocumentError, OSError) as error:
        raise ConfigError(f"{where}: {path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {path}: expected a mapping, `yolov7-tiny: 12.5`")
    for variant in choice.candidates:
        value = values.get(variant)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            what = "no milliseconds" if value is None else f"{value!r:.40} instead of milliseconds"
            raise ConfigError(f"{where}: {path}: {what} for the candidate {variant}")
    return {variant: float(values[variant]) for variant in choice.candidates}
