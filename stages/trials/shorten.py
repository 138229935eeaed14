"""Training parameters of a shorter run, and parameters by dotted name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from yolov7.config import Train, merge


def short_run(train: Train, epochs: int, *, evaluate_every: int | None = None) -> dict[str, Any]:
    """Changes that make `train` a whole run of `epochs`; none for as many epochs as it has.

    A short run is a run of its own, with warm-up, decay and last epochs without mosaic in proportion, and not the
    beginning of a longer one: the learning rate is a function of the length of the run, so at the end of a beginning it
    is still high, and AP there says little of the AP at the end.
    """
    if epochs == train.epochs and evaluate_every in (None, train.evaluate_every):
        return {}
    every = min(train.evaluate_every, epochs) if evaluate_every is None else evaluate_every
    changes: dict[str, Any] = {"epochs": epochs, "evaluate_every": every, "patience": 0}
    if closed := train.augment.close_mosaic_epochs:
        changes["augment"] = {"close_mosaic_epochs": round(closed * epochs / train.epochs)}
    return changes


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"augment.mosaic": 1}` as `{"augment": {"mosaic": 1}}`."""
    return reduce(merge, (_nest(key.split("."), value) for key, value in values.items()), {})


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    head, *rest = path
    return {head: _nest(rest, value) if rest else value}


def value_at(train: Train, key: str) -> Any:
    """The value of a dotted parameter. Raises AttributeError for one that does not exist."""
    return reduce(getattr, key.split("."), train)
