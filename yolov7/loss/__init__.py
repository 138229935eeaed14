"""The training loss: :func:`create_criterion` builds the one that fits a model."""

from yolov7.loss.create import create_criterion
from yolov7.loss.detection import Criterion, Gains, LossResult, MapLoss, Totals

__all__ = ["Criterion", "Gains", "LossResult", "MapLoss", "Totals", "create_criterion"]
