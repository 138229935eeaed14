"""Training losses: :func:`create_criterion` builds the :class:`Criterion` that fits a model's head."""

from yolov7.loss.aligned import AlignedCriterion
from yolov7.loss.anchor import AnchorCriterion, AnchorLossResult, anchor_criterion
from yolov7.loss.anchor_aided import AnchorAidedCriterion
from yolov7.loss.create import CRITERIA, aligned_criterion, create_criterion
from yolov7.loss.criterion import Criterion, LevelPicture, LossResult, Totals
from yolov7.loss.distillation import DistillationCriterion, distilled, loss_of_student, require_fit
from yolov7.loss.features import FeatureCriterion, compares_classes, with_features
from yolov7.loss.objectness import ObjectnessCriterion
from yolov7.loss.simota import SimOtaCriterion

__all__ = [
    "CRITERIA",
    "AlignedCriterion",
    "AnchorAidedCriterion",
    "AnchorCriterion",
    "AnchorLossResult",
    "Criterion",
    "DistillationCriterion",
    "FeatureCriterion",
    "LevelPicture",
    "LossResult",
    "ObjectnessCriterion",
    "SimOtaCriterion",
    "Totals",
    "aligned_criterion",
    "anchor_criterion",
    "compares_classes",
    "create_criterion",
    "distilled",
    "loss_of_student",
    "require_fit",
    "with_features",
]
