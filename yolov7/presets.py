"""Published sets of training parameters, by family, and one of our own for small data.

A preset holds what differs from the defaults of :mod:`yolov7.config`. A variant names the preset it was published with
as its recipe; the recipe's family is the one whose presets a training of that variant may use. `small` exists once a
family and is not published: it is our own set for data sets of hundreds of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

Preset = Mapping[str, Any]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid on top, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        present = result.get(key)
        both = isinstance(present, Mapping) and isinstance(value, Mapping)
        result[key] = merge(present, value) if both else value  # type: ignore[arg-type]
    return result


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

# The published files of YOLOv6 2.0 and 3.0 (reference sheet: yolov6-training, sections 1, 3 and 7.7). The batch of the
# published runs is rate_batch * published_gpus: there the learning rate is that of the file.
_YOLOV6_LOSS: Preset = {
    "atss_epochs": 4,
    "top_k": 13,
    "alpha": 1.0,
    "overlap": "iou",
    "box": 2.5,
    "dfl": 0.5,
    "classification": 1.0,
    "box_loss": "giou",
    "box_epsilon": 1e-10,
    "classification_loss": "varifocal",
    "least_score_sum": 0.0,
    "times_images": False,
}
_YOLOV6: Preset = {
    "epochs": 400,
    "optimizer": {"final_factor": 0.01, "count_from_last_step": True, "rate_batch": 32, "published_gpus": 8},
    "loss": _YOLOV6_LOSS,
    "augment": {
        "mosaic9": 0.0,
        "shuffle_mosaic": True,
        "outlines": False,
        "close_mosaic_epochs": 15,
        "mixup": 0.0,
        "mixup_beta": 32.0,
        "translate": 0.1,
        "scale": 0.5,
        "scale_surplus": 0.0,
        "paste_in": 0.0,
    },
}
_LARGE: Preset = {"epochs": 300, "augment": {"scale": 0.9, "mixup": 0.1}}
_SIOU: Preset = {"loss": {"box_loss": "siou"}}
_N: Preset = {"optimizer": {"learning_rate": 0.02, "published_gpus": 4}}
_RELEASE_3: Preset = {
    "epochs": 300,
    "loss": {"atss_epochs": 0, "least_score_sum": None},
    "distillation": {"least_score_sum": 0.0},
}
_ANCHOR_AIDED: Preset = {"head": {"anchor_aided": True}}
_P6: Preset = {
    "image_size": 1280,
    "optimizer": {"rate_batch": 16},
    "loss": {"atss_epochs": 4},
}

# The files for fine-tuning, from the COCO weights; loss and network as in the file of the size.
_FINETUNE: Preset = {
    "optimizer": {
        "learning_rate": 0.0032,
        "final_factor": 0.12,
        "momentum": 0.843,
        "weight_decay": 0.00036,
        "warmup_epochs": 2.0,
        "warmup_momentum": 0.5,
        "warmup_bias_learning_rate": 0.05,
    },
    "augment": {
        "hsv_h": 0.0138,
        "hsv_s": 0.664,
        "hsv_v": 0.464,
        "degrees": 0.373,
        "translate": 0.245,
        "scale": 0.898,
        "shear": 0.602,
        "flip_up_down": 0.00856,
        "mixup": 0.243,
    },
}
_DISTILL_2: Preset = {"distillation": {"classification": 2.0}}


def _sum(*parts: Preset) -> Preset:
    """Parts laid over each other, the last on top."""
    return reduce(merge, parts)


_SIZES_2: dict[str, Preset] = {
    "yolov6-n": _sum(_YOLOV6, _SIOU, _N),
    "yolov6-t": _sum(_YOLOV6, _SIOU),
    "yolov6-s": _YOLOV6,
    "yolov6-m": _sum(_YOLOV6, _LARGE),
    "yolov6-l-relu": _sum(_YOLOV6, _LARGE),
    "yolov6-l": _sum(_YOLOV6, _LARGE, _DISTILL_2),
    "yolov6-n-base": _YOLOV6,
    "yolov6-s-base": _YOLOV6,
    "yolov6-m-base": _sum(_YOLOV6, _LARGE),
    "yolov6-l-base": _sum(_YOLOV6, _LARGE, _DISTILL_2),
}
_SIZES_3: dict[str, Preset] = {
    "yolov6v3-n": _sum(_SIZES_2["yolov6-n"], _RELEASE_3, _ANCHOR_AIDED, {"optimizer": {"published_gpus": 8}}),
    "yolov6v3-s": _sum(_SIZES_2["yolov6-s"], _RELEASE_3, _ANCHOR_AIDED),
    "yolov6v3-m": _sum(_SIZES_2["yolov6-m"], _RELEASE_3, _ANCHOR_AIDED, {"distillation": {"classification": 0.8}}),
    "yolov6v3-l": _sum(_SIZES_2["yolov6-l"], _RELEASE_3, _ANCHOR_AIDED),
    "yolov6v3-n6": _sum(_SIZES_2["yolov6-n"], _RELEASE_3, _P6, {"optimizer": {"published_gpus": 8}}),
    "yolov6v3-s6": _sum(_SIZES_2["yolov6-s"], _RELEASE_3, _P6),
    "yolov6v3-m6": _sum(_SIZES_2["yolov6-m"], _RELEASE_3, _P6),
    "yolov6v3-l6": _sum(_SIZES_2["yolov6-m"], _RELEASE_3, _P6, {"augment": {"mixup": 0.2}}),
}
YOLOV6: dict[str, Preset] = {
    **_SIZES_2,
    **_SIZES_3,
    **{f"{name}-finetune": _sum(preset, _FINETUNE) for name, preset in (_SIZES_2 | _SIZES_3).items()},
    "small": {
        # Not AdamW, with which the classes are learnt slowly: measured in docs/training.md.
        "optimizer": {
            "learning_rate": 0.04,
            "final_factor": 0.02,
            "nominal_batch": 16,
            "warmup_iterations": 100,
            "warmup_bias_learning_rate": 0.0,
        },
        "loss": _YOLOV6_LOSS,
        "augment": YOLOV9["small"]["augment"],
        "ema": YOLOV7["small"]["ema"],
        "cache": "ram",
    },
}

QUANTIZATION: dict[str, Preset] = {
    "": {},
    # Reference sheet: yolov6-training, section 11. As every other run of a RepOptimizer, without scaling by the batch.
    "yolov6": {
        "epochs": 10,
        "batch_size": 128,
        "method": "entropy",
        "calibration_images": 160,
        "atss_epochs": 4,
        "optimizer": {
            "name": "sgd",
            "learning_rate": 1e-5,
            "published_gpus": 8,
            "final_factor": 0.001,
            "momentum": 0.937,
            "weight_decay": 5e-5,
            "nominal_batch": 64,
        },
        "ema": {"decay": 0.9999, "ramp": 2000.0},
    },
}
"""Presets of quantisation-aware training by name. The defaults of :class:`yolov7.config.Quantization` are our own."""

PRESETS: dict[str, dict[str, Preset]] = {"yolov7": YOLOV7, "yolov9": YOLOV9, "yolov6": YOLOV6}
"""Presets by family, then by name."""
