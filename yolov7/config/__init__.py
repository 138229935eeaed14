"""Typed parameters of the library.

Every group is a frozen pydantic model that refuses unknown keys. :func:`parse` turns a mapping (a subtree of
`params.yaml`) into a group and reports a mistake in one line, with the key and the nearest known one.
Defaults are those of YOLOv7's published p5 hyper-parameters (training sheet, section 1); the other published sets are
in :mod:`yolov7.presets`. :func:`train_parameters` overrides a preset with the user's values.
"""

from yolov7.config.group import AddedLater, Group, identity_of
from yolov7.config.loss import AlignedLoss, AnchorLoss, Loss, LossParameters, SimOtaLoss
from yolov7.config.quantization import Quantization, RangeMethod, quantization_settings
from yolov7.config.read import LOSSES, merge, parse, recipe_loss, train_parameters
from yolov7.config.train import PGI, Augment, Distillation, Ema, HeadOptions, Optimizer, Train

__all__ = [
    "LOSSES",
    "PGI",
    "AddedLater",
    "AlignedLoss",
    "AnchorLoss",
    "Augment",
    "Distillation",
    "Ema",
    "Group",
    "HeadOptions",
    "Loss",
    "LossParameters",
    "Optimizer",
    "Quantization",
    "RangeMethod",
    "SimOtaLoss",
    "Train",
    "identity_of",
    "merge",
    "parse",
    "quantization_settings",
    "recipe_loss",
    "train_parameters",
]
