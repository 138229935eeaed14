"""From a model and the parameters of its loss to the criterion that trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from yolov7.assign import (
    COARSE,
    CONSTRAINED,
    FINE,
    UNCONSTRAINED,
    Assigner,
    Geometry,
    OtaAssigner,
    PlainAssigner,
)
from yolov7.errors import ConfigError, ModelError
from yolov7.loss.anchor import Criterion, Gains, MapLoss, Totals
from yolov7.loss.cross_entropy import CrossEntropy

# Weight of each level's objectness, small stride first (reference sheet: training, section 8).
BALANCE_OF_3 = (4.0, 1.0, 0.4)
BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
# IoUs that make the dynamic k: without and with an auxiliary head (section 7).
TOP, TOP_AUXILIARY = 10, 20


class AnchorModel(Protocol):
    """What the criterion needs to know of a model."""

    @property
    def anchors(self) -> Tensor:
        """(L, A, 2) width and height in pixels."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell side of each level, small to large."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def has_auxiliary(self) -> bool:
        """Whether raw maps of auxiliary levels follow those of the lead levels."""


def create_criterion(
    model: AnchorModel,
    *,
    image_size: int,
    assigner: Literal["ota", "plain"] = "ota",
    box: float = 0.05,
    objectness: float = 0.7,
    classification: float = 0.3,
    scale_gains: bool = True,
    anchor_threshold: float = 4.0,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    objectness_positive_weight: float = 1.0,
    classification_positive_weight: float = 1.0,
    auxiliary: Literal["coarse-to-fine", "lead-guided", "independent"] = "coarse-to-fine",
    auxiliary_weight: float = 0.25,
    auxiliary_constraint: bool = True,
    totals: Totals | None = None,
    class_weights: Sequence[float] | None = None,
) -> Criterion:
    """The criterion for a model's head; keywords are the fields of `config.Loss`, `image_size` is in pixels, and
    `totals` adds up counts over the processes of a training (see :class:`Criterion`). `class_weights` (C,) multiply the
    class loss of the objects of each class.

    With an auxiliary head: `coarse-to-fine` assigns both heads by the lead predictions, the auxiliary one in wider
    regions; `lead-guided` gives both the same matches; `independent` assigns each by its own predictions. Without
    `auxiliary_constraint` the auxiliary boxes reach over the whole wider region (see :mod:`yolov7.assign.decoding`).
    """
    geometry = Geometry(model.anchors.detach(), tuple(model.strides))
    levels = len(geometry.strides)
    if levels > len(BALANCE):
        raise ModelError(f"the loss knows the balance of up to {len(BALANCE)} levels, the network has {levels}")

    gains = Gains(box=box, objectness=objectness, classification=classification)
    if scale_gains:
        gains = gains.scaled(levels=levels, classes=model.num_classes, image_size=image_size)

    def assigner_of(spread: float, regions: tuple[float, ...]) -> Assigner:
        if assigner == "plain":
            return PlainAssigner(geometry, anchor_threshold, regions)
        if assigner == "ota":
            top = TOP_AUXILIARY if model.has_auxiliary else TOP
            return OtaAssigner(geometry, anchor_threshold, top, regions, spread)
        raise ConfigError(f"loss.assigner: {assigner!r} is not known (known: ota, plain)")

    if auxiliary not in ("coarse-to-fine", "lead-guided", "independent"):
        known = "coarse-to-fine, lead-guided, independent"
        raise ConfigError(f"loss.auxiliary: {auxiliary!r} is not known (known: {known})")
    if class_weights is not None and len(class_weights) != model.num_classes:
        raise ModelError(f"{len(class_weights)} class weights given for {model.num_classes} classes")
    weights = None if class_weights is None else geometry.anchors.new_tensor(list(class_weights))
    balance = BALANCE_OF_3 if levels == 3 else BALANCE[:levels]
    maps = [MapLoss(weight=1.0, balance=value, spread=CONSTRAINED) for value in balance]
    regions: tuple[float, ...] = (FINE,)
    auxiliary_assigner = None
    if model.has_auxiliary:
        spread = CONSTRAINED if auxiliary_constraint else UNCONSTRAINED
        maps += [MapLoss(weight=auxiliary_weight, balance=value, spread=spread) for value in balance]
        if auxiliary == "coarse-to-fine":
            regions = (FINE, COARSE)
        if auxiliary == "independent":
            auxiliary_assigner = assigner_of(spread, (FINE,))
    return Criterion(
        geometry=geometry,
        maps=maps,
        assigner=assigner_of(CONSTRAINED, regions),
        gains=gains,
        objectness=CrossEntropy(objectness_positive_weight, focal_gamma),
        classification=CrossEntropy(classification_positive_weight, focal_gamma),
        label_smoothing=label_smoothing,
        auxiliary_assigner=auxiliary_assigner,
        totals=totals,
        class_weights=weights,
    )
