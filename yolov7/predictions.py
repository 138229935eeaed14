"""Columns of decoded predictions, and the score of a class.

Decoded predictions are (B, N, F): x1, y1, x2, y2 in pixels of the network's input, objectness if the head predicts it,
then a probability per class. The head states its :data:`Scoring`, every exported file carries it in its contract, and
nothing but this module computes a score.

Legend: B images, N predictions, F columns, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from yolov7.errors import ModelError

Scoring = Literal["objectness x class probability", "objectness", "class probability"]
"""Score of a class, in the words of the contracts. `objectness` ignores the class columns: there is only one class."""

SCORINGS: tuple[Scoring, ...] = get_args(Scoring)
BOX = ("x1", "y1", "x2", "y2")
"""Names of the first columns."""


def objectness_scoring(num_classes: int) -> Scoring:
    """Scoring of a head with objectness that was trained on `num_classes` classes.

    A single class is never trained, so its probability means nothing (reference sheet: training, section 9).
    """
    return "objectness" if num_classes == 1 else "objectness x class probability"


def contract_scoring(output: Mapping[str, Any], num_classes: int) -> Scoring:
    """Scoring that the contract of an exported file states under `score`.

    `output` is the contract's part of that name. Files of earlier revisions without `score` come from a head with
    objectness. Raises :class:`ModelError` for a score this revision does not know.
    """
    score = output.get("score")
    if score is None:
        return objectness_scoring(num_classes)
    for known in SCORINGS:
        if score == known:
            return known
    raise ModelError(f"output.score is {score!r}; this revision knows {', '.join(map(repr, SCORINGS))}")


def columns_before_classes(scoring: Scoring) -> int:
    """Index of the first class probability."""
    return len(BOX) + (scoring != "class probability")


def column_names(scoring: Scoring) -> tuple[str, ...]:
    """Names of the columns before the class probabilities."""
    return BOX if scoring == "class probability" else (*BOX, "objectness")


def scores(decoded: Tensor, scoring: Scoring) -> Tensor:
    """Scores (..., C) of decoded predictions (..., F); (..., 1) if objectness alone is the score."""
    classes = decoded[..., columns_before_classes(scoring) :]
    if scoring == "class probability":
        return classes
    objectness = decoded[..., 4:5]
    return objectness if scoring == "objectness" else objectness * classes


def may_exceed(decoded: Tensor, scoring: Scoring, threshold: float) -> Tensor:
    """True if any score of decoded predictions (..., F) can exceed `threshold` -> (...) bool.

    False is certain. No score exceeds the objectness, so with objectness the class columns are not read.
    """
    if scoring == "class probability":
        return (scores(decoded, scoring) > threshold).any(dim=-1)
    return decoded[..., 4] > threshold
