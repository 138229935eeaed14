"""Build the criterion of a model from the parameters of its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from yolov7.config import AlignedLoss, AnchorLoss, LossParameters, SimOtaLoss, parse, recipe_loss
from yolov7.errors import ConfigError, ModelError
from yolov7.loss.aligned import AlignedCriterion
from yolov7.loss.anchor import anchor_criterion
from yolov7.loss.anchor_aided import AnchorAidedCriterion
from yolov7.loss.criterion import Criterion, Totals
from yolov7.loss.distributions import DistributionsCriterion
from yolov7.loss.objectness import ObjectnessCriterion
from yolov7.loss.simota import SimOtaCriterion
from yolov7.model import Detector
from yolov7.model.spec import Network
from yolov7.model.variants import recipe_of


class AlignedModel(Protocol):
    """The facts about a model that its criterion depends on."""

    @property
    def spec(self) -> Network:
        """The network as data."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell side of each level, small to large."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def has_auxiliary(self) -> bool:
        """True if raw maps of auxiliary levels follow those of the lead levels."""


def aligned_criterion(
    model: AlignedModel,
    parameters: AlignedLoss | None = None,
    *,
    image_size: int,
    totals: Totals | None = None,
    class_weights: Sequence[float] | None = None,
) -> AlignedCriterion:
    """The criterion of an aligned head; see :func:`create_criterion`. None: the defaults of the group."""
    weights = None
    if class_weights is not None:
        if len(class_weights) != model.num_classes:
            raise ModelError(f"{len(class_weights)} class weights given for {model.num_classes} classes")
        weights = torch.tensor(list(class_weights), dtype=torch.float32)
    head: Any = model.spec.head
    facts: dict[str, Any] = {
        "strides": model.strides,
        "num_classes": model.num_classes,
        "bins": head.bins,
        "totals": totals,
        "class_weights": weights,
    }
    parameters = parameters or AlignedLoss()
    if getattr(head, "distributions", False):  # a head of YOLOv6, as the next
        if head.anchor_aided:
            raise ConfigError("train.head: anchor_aided and distributions exclude each other; set one of them to false")
        return DistributionsCriterion(parameters, **{**facts, "bins": head.distribution_maps[1]})
    if getattr(head, "anchor_aided", False):
        return AnchorAidedCriterion(parameters, anchors=head.anchors, **facts)
    if getattr(head, "objectness", False):
        return ObjectnessCriterion(parameters, **facts)
    return AlignedCriterion(parameters, auxiliary=model.has_auxiliary, **facts)


def simota_criterion(
    model: AlignedModel,
    parameters: SimOtaLoss | None = None,
    *,
    image_size: int,
    totals: Totals | None = None,
    class_weights: Sequence[float] | None = None,
) -> SimOtaCriterion:
    """The criterion of a head like that of YOLOv6 1.0; see :func:`create_criterion`. Without class weights."""
    if class_weights is not None:
        raise ConfigError("class_weights: this loss (SimOTA) knows none; set them to none")
    options = parameters or SimOtaLoss()
    return SimOtaCriterion(options, strides=model.strides, num_classes=model.num_classes, totals=totals)


CRITERIA: Mapping[type[LossParameters], Callable[..., Criterion]] = {
    AnchorLoss: anchor_criterion,
    AlignedLoss: aligned_criterion,
    SimOtaLoss: simota_criterion,
}
"""Builders of criteria by group of loss parameters."""


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
    :class:`~yolov7.config.AnchorLoss`; those not given are as in the recipe that the variant was published with.
    `totals` adds up figures over the processes of a training. `class_weights` (C,) multiply the class loss of the
    objects of each class. Raises :class:`ConfigError` for an unknown or invalid field, :class:`ModelError` for weights
    or levels that do not fit.
    """
    group = model.spec.head.parameters
    if group not in CRITERIA:
        raise ModelError(f"{model.variant}: no criterion is known for {group.__name__}")
    parameters = parse(group, {**recipe_loss(group, recipe_of(model.variant)), **fields}, where="loss")
    return CRITERIA[group](model, parameters, image_size=image_size, totals=totals, class_weights=class_weights)
