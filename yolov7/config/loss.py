"""Parameters of assignment and loss: a group for each kind of head."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from yolov7.config.group import AddedLater, Group


class LossParameters(Group):
    """Base of the parameters of assignment and loss. Each kind of head has a subclass and names it."""

    unmatched: ClassVar[str] = "of a size that nothing learns in most samples"
    """Why its assignment learns nothing of an object, in words, where :meth:`yolov7.loss.Criterion.misfit` says so."""
    has_anchors: ClassVar[bool] = False
    """True if the parameters of anchors (`train.anchors`, `train.anchor_scale`) matter to that."""


class AnchorLoss(LossParameters):
    """Assignment and loss of an anchor head (training sheet, sections 3 and 6 to 8)."""

    unmatched: ClassVar[str] = "matched by no anchor in most samples"
    has_anchors: ClassVar[bool] = True

    assigner: Literal["ota", "plain"] = "ota"
    """`ota`: dynamic matching by cost; `plain`: every candidate cell is a positive."""
    box: float = Field(default=0.05, ge=0.0)
    """Gain of the box (CIoU) loss."""
    objectness: float = Field(default=0.7, ge=0.0)
    """Gain of the objectness loss."""
    classification: float = Field(default=0.3, ge=0.0)
    """Gain of the class loss."""
    scale_gains: bool = True
    """Scale the gains with levels, class count and image size as published (section 3); false: use them as they are."""
    anchor_threshold: float = Field(default=4.0, gt=1.0)
    """An anchor fits a target if no side ratio exceeds this."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Class targets become 1 - s/2 and s/2."""
    focal_gamma: float = Field(default=0.0, ge=0.0)
    """Focal exponent for objectness and class (0: off)."""
    objectness_positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of positives in the objectness cross-entropy."""
    classification_positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of positives in the class cross-entropy."""
    auxiliary: Literal["coarse-to-fine", "lead-guided", "independent"] = "coarse-to-fine"
    """Assignment of the auxiliary head of a P6 network (paper section 4.2)."""
    auxiliary_weight: float = Field(default=0.25, ge=0.0)
    """Weight of the auxiliary head's loss."""
    auxiliary_constraint: bool = True
    """Decode the auxiliary head's boxes with the bounded decoder, as published (architecture sheet, section 7)."""


Loss = AnchorLoss
"""The name of revisions with one kind of head."""


class AlignedLoss(LossParameters):
    """Assignment and loss of an anchor-free head. The defaults are YOLOv9's (reference sheet: yolov9-training, sections
    5 and 6); what YOLOv6 was published with is in its presets (reference sheet: yolov6-training, sections 6 and 7).
    """

    unmatched: ClassVar[str] = "without the centre of a cell in most samples"

    assigner: Literal["aligned", "atss"] = "aligned"
    """`aligned`: task-aligned, by score and overlap; `atss`: by distance and shape, whatever is predicted."""
    atss_epochs: Annotated[int, AddedLater()] = Field(default=0, ge=0)
    """First epochs that assign by ATSS, before the task-aligned ones."""
    top_k: int = Field(default=10, ge=1)
    """Cells that a target may choose."""
    alpha: float = Field(default=0.5, ge=0.0)
    """Exponent of the score in the alignment."""
    beta: float = Field(default=6.0, ge=0.0)
    """Exponent of the overlap in the alignment."""
    overlap: Annotated[Literal["ciou", "iou"], AddedLater()] = "ciou"
    """Overlap in the alignment."""
    box_loss: Annotated[Literal["ciou", "giou", "diou", "siou", "iou"], AddedLater()] = "ciou"
    """Overlap in the box loss, which is 1 - overlap."""
    box_epsilon: Annotated[float, AddedLater()] = Field(default=1e-7, gt=0.0)
    """Keeps the box loss from dividing by 0. YOLOv7 and YOLOv9: 1e-7, YOLOv6: 1e-10."""
    box: float = Field(default=7.5, ge=0.0)
    """Gain of the box loss."""
    dfl: float = Field(default=1.5, ge=0.0)
    """Gain of the loss of the distances' distributions."""
    classification_loss: Annotated[Literal["bce", "varifocal", "quality-focal", "focal", "poly"], AddedLater()] = "bce"
    """Kind of class loss: see :mod:`yolov7.loss.class_losses`."""
    classification: float = Field(default=0.5, ge=0.0)
    """Gain of the class loss."""
    objectness: Annotated[float, AddedLater()] = Field(default=1.0, ge=0.0)
    """Gain of the objectness loss of a head of YOLOv6 with `objectness`."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Class targets t of the positives become t * (1 - s) + s / 2. With `bce` and `focal` only."""
    focal_gamma: float = Field(default=0.0, ge=0.0)
    """Focal exponent of the class loss (0: off with `bce`, 2 with the other class losses)."""
    classification_positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of positives in the class cross-entropy. With `bce` and `focal` only."""
    auxiliary: Literal["independent", "lead-guided"] = "independent"
    """Assignment of the auxiliary head: by its own predictions as released, or by those of the lead head."""
    auxiliary_weight: float = Field(default=0.25, ge=0.0)
    """Weight of the auxiliary head's loss."""
    anchor_aided_top_k: Annotated[int, AddedLater()] = Field(default=26, ge=1)
    """Predictions that a target may choose in an anchor-aided branch (YOLOv6 3.0)."""
    least_score_sum: float | None = Field(default=None, ge=0.0)
    """Least divisor of a head's loss, which is divided by the sum of its target scores. 0: no bound; a batch without
    positives is divided by 1. None: as YOLOv9 was released, 1, and 0 if the assignment is lead-guided."""
    times_images: Annotated[bool, AddedLater()] = True
    """Multiply the loss to back-propagate by the number of images (YOLOv7 and YOLOv9: yes, YOLOv6: no)."""

    @model_validator(mode="after")
    def _fits_class_loss(self) -> AlignedLoss:
        if self.classification_loss not in ("bce", "focal"):
            if self.label_smoothing:
                raise ValueError(f"label_smoothing has no meaning with classification_loss {self.classification_loss}")
            if self.classification_positive_weight != 1:
                raise ValueError(
                    f"classification_positive_weight has no meaning with classification_loss {self.classification_loss}"
                )
        return self


class SimOtaLoss(LossParameters):
    """Assignment and loss of YOLOv6 1.0 (reference sheet: yolov6-training, section 6.4), for a head of one's own."""

    box_loss: Literal["ciou", "giou", "diou", "siou", "iou"] = "siou"
    """Overlap in the box loss, which is 1 - overlap. N and T were published with `ciou`, S with `siou`."""
    box: float = Field(default=5.0, ge=0.0)
    """Gain of the box loss."""
    l1: float = Field(default=1.0, ge=0.0)
    """Gain of the absolute differences of the box channels."""
    objectness: float = Field(default=1.0, ge=0.0)
    """Gain of the objectness loss."""
    classification: float = Field(default=1.0, ge=0.0)
    """Gain of the class loss."""
