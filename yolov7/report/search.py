"""The page of a search of training parameters: AP by trial, importance, and what each parameter did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from yolov7.report.charts import Dot, bars, scatter
from yolov7.report.page import MISSING, figure, render


@dataclass(frozen=True)
class TrialRow:
    """One trial."""

    number: int
    state: str
    """`complete`, `pruned`, `failed` or `running`."""
    values: Mapping[str, Any]
    """The varied parameters."""
    ap: float | None
    """Best validation AP; of a pruned trial up to its end."""
    epochs: int
    """Epochs that were validated."""
    note: str = ""


@dataclass(frozen=True)
class Confirmed:
    """Default and best setting trained with one seed."""

    seed: int
    default: float | None
    best: float | None
    note: str = ""


@dataclass(frozen=True)
class SearchDocument:
    """A search for its page."""

    trials: Sequence[TrialRow]
    importances: Mapping[str, float] = field(default_factory=dict)
    """Share of the variation of AP that each parameter explains, by name."""
    log_parameters: Sequence[str] = ()
    """Parameters whose logarithm was drawn."""
    confirmed: Sequence[Confirmed] = ()
    best: int | None = None
    """Number of the best trial."""


def render_search(facts: Mapping[str, str], search: SearchDocument) -> str:
    """The page; `facts` describe variant, data and settings."""
    names = list(dict.fromkeys(name for trial in search.trials for name in trial.values))
    return render(
        "search",
        title="Search of training parameters",
        facts=facts,
        history=_history(search.trials),
        importance=bars(search.importances),
        slices=[_slice(name, search) for name in names if _is_drawn(name, search.trials)],
        confirmed_head=["#Seed", "#Default", "#Best", "#Difference", ""],
        confirmed=[_confirmed_row(each) for each in search.confirmed],
        head=["#Trial", "State", "#AP", "#Epochs", *(f"#{name}" for name in names), ""],
        rows=[_row(trial, names, best=trial.number == search.best) for trial in search.trials],
    )


def _history(trials: Sequence[TrialRow]) -> Markup:
    shown = [trial for trial in trials if trial.ap is not None]
    dots = [Dot(f"trial {t.number} ({t.state})", t.number, t.ap or 0.0) for t in shown]
    front: list[tuple[float, float]] = []
    for trial in shown:
        if trial.state == "complete" and (not front or (trial.ap or 0.0) > front[-1][1]):
            front.append((trial.number, trial.ap or 0.0))
    return scatter(dots, "trial", "validation AP", front=front, labels=False)


def _slice(name: str, search: SearchDocument) -> Markup:
    """AP over the values of one parameter; of those drawn by their logarithm over it."""
    log = name in search.log_parameters
    dots = [
        Dot(f"trial {t.number}, {name} {t.values[name]}", math.log10(t.values[name]) if log else t.values[name], t.ap)
        for t in search.trials
        if t.ap is not None and name in t.values
    ]
    title = f"{name} (power of ten)" if log else name
    return scatter(dots, title, "validation AP", labels=False, from_zero=False)


def _is_drawn(name: str, trials: Sequence[TrialRow]) -> bool:
    values = [trial.values.get(name) for trial in trials]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values if value is not None)


def _confirmed_row(each: Confirmed) -> list[str]:
    known = each.default is not None and each.best is not None
    difference = f"{each.best - each.default:+.3f}" if known else MISSING  # type: ignore[operator]
    return [str(each.seed), _ap(each.default), _ap(each.best), difference, each.note]


def _row(trial: TrialRow, names: Sequence[str], *, best: bool) -> list[str]:
    values = [_value(trial.values.get(name)) for name in names]
    note = ", ".join(filter(None, ["best" * best, trial.note]))
    return [str(trial.number), trial.state, _ap(trial.ap), str(trial.epochs), *values, note]


def _ap(value: float | None) -> str:
    return MISSING if value is None else figure(value)


def _value(value: object) -> str:
    return MISSING if value is None else f"{value:g}" if isinstance(value, float) else str(value)
