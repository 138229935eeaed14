"""From a model and the parameters of its loss to the criterion that trains it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yolov7.config import AnchorLoss, LossParameters, parse
from yolov7.errors import ModelError
from yolov7.loss.anchor import anchor_criterion
from yolov7.loss.criterion import Criterion, Totals
from yolov7.model import Detector

CRITERIA: Mapping[type[LossParameters], Callable[..., Criterion]] = {AnchorLoss: anchor_criterion}
"""What builds the criterion for each group of loss parameters."""


def create_criterion(
    model: Detector,
    *,
    image_size: int,
    totals: Totals | None = None,
    class_weights: Sequence[float] | None = None,
    **fields: Any,
) -> Criterion:
    """The criterion for a model's head, which names the group of its parameters (`model.spec.head.parameters`).

    `image_size` is the side of the training image in pixels. `fields` are those of the group, for YOLOv7
    :class:`~yolov7.config.AnchorLoss`. `totals` adds up figures over the processes of a training. `class_weights` (C,)
    multiply the class loss of the objects of each class. Raises :class:`ConfigError` for an unknown or invalid field,
    :class:`ModelError` for weights or levels that do not fit.
    """
    group = model.spec.head.parameters
    if group not in CRITERIA:
        raise ModelError(f"{model.variant}: no criterion is known for {group.__name__}")
    parameters = parse(group, fields, where="loss")
    return CRITERIA[group](model, parameters, image_size=image_size, totals=totals, class_weights=class_weights)
