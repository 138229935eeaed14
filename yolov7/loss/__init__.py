"""Training losses: :func:`create_criterion` builds the :class:`Criterion` that fits a model's head."""

from yolov7.loss.aligned import AlignedCriterion, aligned_criterion
from yolov7.loss.anchor import AnchorCriterion, AnchorLossResult, anchor_criterion
from yolov7.loss.create import CRITERIA, create_criterion
from yolov7.loss.criterion import Criterion, LevelPicture, LossResult, Totals
from yolov7.loss.distillation import DistillationCriterion, distilled, require_fit

__all__ = [
    "CRITERIA",
    "AlignedCriterion",
    "AnchorCriterion",
    "AnchorLossResult",
    "Criterion",
    "DistillationCriterion",
    "LevelPicture",
    "LossResult",
    "Totals",
    "aligned_criterion",
    "anchor_criterion",
    "create_criterion",
    "distilled",
    "require_fit",
]
