"""The networks: data, modules, weights."""

from yolov7.model.checkpoint import ModelMetadata, load_checkpoint, save_checkpoint
from yolov7.model.detector import Detector, create_model
from yolov7.model.variants import list_variants

__all__ = ["Detector", "ModelMetadata", "create_model", "list_variants", "load_checkpoint", "save_checkpoint"]
