"""The training loss: :func:`create_criterion` builds the one that fits a model."""

from yolov7.loss.anchor import Criterion, Gains, LossResult, MapLoss, Totals
from yolov7.loss.create import create_criterion

__all__ = ["Criterion", "Gains", "LossResult", "MapLoss", "Totals", "create_criterion"]
