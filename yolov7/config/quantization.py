"""Parameters of quantisation-aware training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from yolov7.config.group import Group
from yolov7.config.train import Distillation, Ema, Optimizer


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
    method: Literal["max", "entropy", "percentile", "mse"] = "mse"
    """How the ranges are chosen that the training begins with."""
    calibration_images: int = Field(default=64, ge=1)
    """Training images, evenly spread, that they are measured on."""
    close_mosaic_epochs: int = Field(default=0, ge=0)
    """Number of last epochs without mosaic, mixup and pasting; published: 0."""
    masks: bool = True
    """Of a network of RepOptimizer: its masks on the gradients stay. False: it is trained as any other, which needs no
    scales."""
    optimizer: Optimizer = Optimizer(
        name="adamw",
        learning_rate=1e-4,
        final_factor=0.02,
        momentum=0.9,
        weight_decay=0.0,
        nominal_batch=16,
        warmup_epochs=0.0,
        warmup_iterations=0,
    )
    """Optimiser and schedule."""
    ema: Ema = Ema(decay=0.98, ramp=20.0)
    """Averaged weights."""
    distillation: Distillation = Distillation(dfl=0.0, features=10.0, statistics="running")
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
