"""Parameters of quantisation-aware training."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, model_validator

from yolov7.config.group import Group
from yolov7.config.read import merge, parse
from yolov7.config.train import Distillation, Ema, Optimizer
from yolov7.presets import QUANTIZATION

_OPTIMIZER: Mapping[str, Any] = MappingProxyType(
    {
        "name": "adamw",
        "learning_rate": 2e-5,
        "final_factor": 0.02,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "nominal_batch": 16,
        "warmup_epochs": 0.0,
        "warmup_iterations": 0,
    }
)
_EMA: Mapping[str, Any] = MappingProxyType({"decay": 0.98, "ramp": 20.0})
_DISTILLATION: Mapping[str, Any] = MappingProxyType({"dfl": 0.0, "features": 10.0, "statistics": "running"})
_DEFAULTS: Mapping[str, Any] = MappingProxyType({"optimizer": _OPTIMIZER, "ema": _EMA, "distillation": _DISTILLATION})


RangeMethod = Literal["max", "entropy", "percentile", "mse"]
"""How a range is chosen: everything seen; least divergence of the distribution; all but the rarest; least error
(:func:`yolov7.ranges.range_of`)."""


class Quantization(Group):
    """Training of a network as its int8 files compute, from the weights of a finished training (docs/training.md).

    The defaults are for hundreds of images; `yolov7.presets.QUANTIZATION` has the published values. What is not here is
    as in the training of the weights: batch, image size, augmentation, loss.
    """

    enabled: bool = False
    """Train every variant with rounding, too; false: int8 files are made of the float weights alone."""
    preset: Literal["", "yolov6"] = ""
    """`yolov6`: as published for YOLOv6 2.0, for as many images as COCO has; empty: for hundreds of images."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=0, ge=0)
    """Images per step; 0: as in the training of the weights."""
    method: RangeMethod = "mse"
    """How the ranges are chosen that the training begins with."""
    calibration_images: int = Field(default=64, ge=1)
    """Training images, evenly spread, that they are measured on."""
    close_mosaic_epochs: int = Field(default=0, ge=0)
    """Number of last epochs without mosaic, mixup and pasting; published: 0."""
    atss_epochs: int = Field(default=0, ge=0)
    """First epochs that assign objects by ATSS, in networks whose training began so (`loss.atss_epochs`), and not for
    longer than there. Published: 4. A trained network has no need of them: they teach it another choice of cells."""
    masks: bool = True
    """A network of RepOptimizer keeps its masks on the gradients, with `optimizer: {name: sgd}`: others undo them.
    False: it is trained as any other, which needs no scales."""
    optimizer: Optimizer = Optimizer(**_OPTIMIZER)
    """Optimiser and schedule."""
    ema: Ema = Ema(**_EMA)
    """Averaged weights."""
    distillation: Distillation = Distillation(**_DISTILLATION)
    """What is learned from the float network."""

    @model_validator(mode="after")
    def _check(self) -> Quantization:
        if self.distillation.statistics != "running":
            raise ValueError(
                "distillation.statistics: the teacher is the float network as it is used; set it to running"
            )
        if self.distillation.dfl:
            raise ValueError("distillation.dfl: distances are not compared here; set it to 0")
        return self


def quantization_settings(values: Mapping[str, Any], *, where: str = "params.yaml: quantization") -> Quantization:
    """The settings that `values` give, laid over the preset they name and the defaults. Raises :class:`ConfigError`."""
    name = values.get("preset", "")
    preset = QUANTIZATION.get(name, {}) if isinstance(name, str) else {}
    return parse(Quantization, merge(merge(_DEFAULTS, preset), values), where=where)
