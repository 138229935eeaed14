"""Two trainings in a row, the second of which needs what the first has learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from yolov7.config import Train
from yolov7.train.loop import BEST, LAST
from yolov7.train.teacher import SELF, student_parameters, teacher_parameters


@dataclass(frozen=True)
class Link:
    """The parameters of the first training, and what the second takes from it."""

    role: str
    """Of the first; it follows the variant in the name of its MLflow run."""
    weights: str
    """Name of the file that the second needs."""
    first: Train
    second: Callable[[str, str], Train]
    """Parameters of the second, from the path of that file and its sha256."""


def link_of(train: Train) -> Link | None:
    """How the two trainings are linked that these parameters ask for; None where they ask for one."""
    if train.rep_optimizer == "chain":
        # Averaged weights of the last epoch: the AP of a hyper-search, which decides what is best, has no meaning.
        first = train.model_copy(update={"rep_optimizer": "hyper-search"})
        return Link("hyper-search", LAST, _first_of(first), partial(_target, train))
    if train.distill_from == SELF:
        return Link("teacher", BEST, _first_of(teacher_parameters(train)), partial(student_parameters, train))
    return None


def _first_of(train: Train) -> Train:
    return train.model_copy(update={"epochs": train.first_epochs or train.epochs, "first_epochs": 0})


def _target(train: Train, path: str, sha256: str) -> Train:
    # Its learning rate is not scaled with the batch (reference sheet: yolov6-training, section 10).
    optimizer = train.optimizer.model_copy(update={"rate_batch": 0})
    named = {"rep_optimizer": "target", "scales": path, "scales_sha256": sha256}
    return train.model_copy(update={**named, "optimizer": optimizer})
