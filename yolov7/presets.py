"""Published sets of training parameters, by family, and one of our own for small data.

A preset holds what differs from the defaults of :mod:`yolov7.config`. A variant names the preset it was published with
as its recipe; the recipe's family is the one whose presets a training of that variant may use. `small` exists once a
family and is not published: it is our own set for data sets of hundreds of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Preset = Mapping[str, Any]

# The published files (training sheet, section 1). As for `small`: the published gains shrink the class loss with the
# class count and the objectness loss with the image area, and the SGD schedule is made for 300 epochs of COCO; on
# little data both starve the network.
YOLOV7: dict[str, Preset] = {
    "p5": {},
    "p6": {"image_size": 1280, "optimizer": {"final_factor": 0.2}},
    "tiny": {
        "optimizer": {"final_factor": 0.01},
        "loss": {"classification": 0.5, "objectness": 1.0},
        "augment": {"translate": 0.1, "scale": 0.5, "mixup": 0.05, "paste_in": 0.05},
    },
    "finetune": {"augment": {"scale": 0.5, "mixup": 0.0, "paste_in": 0.0}},
    "small": {
        "optimizer": {
            "name": "adamw",
            "learning_rate": 0.002,
            "final_factor": 0.02,
            "momentum": 0.9,
            "nominal_batch": 16,
            "warmup_iterations": 100,
            "warmup_momentum": 0.9,
            "warmup_bias_learning_rate": 0.0,
        },
        "loss": {"objectness": 1.0, "classification": 0.3, "scale_gains": False},
        "augment": {"translate": 0.1, "scale": 0.5, "mixup": 0.0, "paste_in": 0.0},
        "ema": {"decay": 0.998, "ramp": 200.0},
        "cache": "ram",
    },
}

# The one published file, for all sizes (reference sheet: yolov9-training, sections 1 to 3).
_YOLOV9_AUGMENT: Preset = {
    "mosaic9": 0.0,
    "shuffle_mosaic": True,
    "outlines_without_mosaic": False,
    "close_mosaic_epochs": 15,
    "mixup_beta": 32.0,
    "translate": 0.1,
    "scale_surplus": 0.0,
    "copy_paste": 0.3,
    "copy_paste_of": "eligible",
    "paste_in": 0.0,
    "max_aspect": 100.0,
}
YOLOV9: dict[str, Preset] = {
    "yolov9": {
        "epochs": 500,
        "patience": 100,
        "evaluate_iou": 0.7,
        "optimizer": {
            "final_factor": 0.01,
            "schedule": "linear",
            "linear_reaches_end": False,
            "count_from_last_step": True,
            "warmup_iterations": 100,
            "gradient_clip": 10.0,
        },
        "augment": _YOLOV9_AUGMENT,
    },
    "small": {
        "evaluate_iou": 0.7,
        "optimizer": {**YOLOV7["small"]["optimizer"], "learning_rate": 0.004},  # measured: docs/training.md
        "augment": {
            "mosaic9": 0.0,
            "translate": 0.1,
            "scale": 0.5,
            "scale_surplus": 0.0,
            "mixup": 0.0,
            "paste_in": 0.0,
        },
        "ema": YOLOV7["small"]["ema"],
        "cache": "ram",
    },
}

PRESETS: dict[str, dict[str, Preset]] = {"yolov7": YOLOV7, "yolov9": YOLOV9}
"""Presets by family, then by name."""
