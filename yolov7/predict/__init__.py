"""Prediction: load a detector from any of its files, run it on images, draw its detections."""

from yolov7.predict.augmented import AugmentedRuntime
from yolov7.predict.load import load_detector
from yolov7.predict.openvino_runtime import OpenvinoNmsRuntime, OpenvinoRuntime, open_openvino
from yolov7.predict.predictor import Predictor
from yolov7.predict.runtimes import OnnxNmsRuntime, OnnxRuntime, TorchRuntime, open_onnx
from yolov7.predict.tiles import TiledPredictor

__all__ = [
    "AugmentedRuntime",
    "OnnxNmsRuntime",
    "OnnxRuntime",
    "OpenvinoNmsRuntime",
    "OpenvinoRuntime",
    "Predictor",
    "TiledPredictor",
    "TorchRuntime",
    "load_detector",
    "open_onnx",
    "open_openvino",
]
