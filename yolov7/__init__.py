"""The detector library. It is called `yolov7` and holds every family of `yolov7.model.variants`.

The names below are the public API: networks, their weights, loss, training, and detectors ready for use. They are
loaded on first use, so that `import yolov7` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolov7.detections import Detections as Detections
    from yolov7.errors import ConfigError as ConfigError
    from yolov7.errors import DataError as DataError
    from yolov7.errors import ModelError as ModelError
    from yolov7.errors import TrainingError as TrainingError
    from yolov7.errors import YoloError as YoloError
    from yolov7.loss import create_criterion as create_criterion
    from yolov7.model import Detector as Detector
    from yolov7.model import ModelMetadata as ModelMetadata
    from yolov7.model import create_model as create_model
    from yolov7.model import list_variants as list_variants
    from yolov7.model import load_checkpoint as load_checkpoint
    from yolov7.model import save_checkpoint as save_checkpoint
    from yolov7.predict import Predictor as Predictor
    from yolov7.predict import load_detector as load_detector
    from yolov7.runs import TrainedDetector as TrainedDetector
    from yolov7.runs import evaluate_model as evaluate_model
    from yolov7.runs import export_weights as export_weights
    from yolov7.runs import train_detector as train_detector

_HOME = {
    "ConfigError": "yolov7.errors",
    "DataError": "yolov7.errors",
    "Detections": "yolov7.detections",
    "Detector": "yolov7.model",
    "ModelError": "yolov7.errors",
    "ModelMetadata": "yolov7.model",
    "Predictor": "yolov7.predict",
    "TrainingError": "yolov7.errors",
    "TrainedDetector": "yolov7.runs",
    "YoloError": "yolov7.errors",
    "create_criterion": "yolov7.loss",
    "create_model": "yolov7.model",
    "evaluate_model": "yolov7.runs",
    "export_weights": "yolov7.runs",
    "list_variants": "yolov7.model",
    "load_checkpoint": "yolov7.model",
    "load_detector": "yolov7.predict",
    "save_checkpoint": "yolov7.model",
    "train_detector": "yolov7.runs",
}

__all__ = [
    "ConfigError",
    "DataError",
    "Detections",
    "Detector",
    "ModelError",
    "ModelMetadata",
    "Predictor",
    "TrainedDetector",
    "TrainingError",
    "YoloError",
    "create_criterion",
    "create_model",
    "evaluate_model",
    "export_weights",
    "list_variants",
    "load_checkpoint",
    "load_detector",
    "save_checkpoint",
    "train_detector",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("yolov7-pipeline")
    if name not in _HOME:
        raise AttributeError(f"module 'yolov7' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value  # later look-ups bypass this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
