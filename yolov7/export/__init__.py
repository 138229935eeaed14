"""Export to files that describe themselves, and verification against the trained network."""

from yolov7.export.folder import export_folder
from yolov7.export.onnx import export_onnx, export_onnx_nms
from yolov7.export.openvino import export_openvino
from yolov7.export.raw import export_onnx_raw
from yolov7.export.tensorrt import build_engine, check_tensorrt
from yolov7.export.verify import FLOAT16, INT8, VerifyLimits, VerifyReport, limits_of, verify

__all__ = [
    "FLOAT16",
    "INT8",
    "VerifyLimits",
    "VerifyReport",
    "build_engine",
    "check_tensorrt",
    "export_folder",
    "export_onnx",
    "export_onnx_nms",
    "export_onnx_raw",
    "export_openvino",
    "limits_of",
    "verify",
]
