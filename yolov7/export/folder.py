"""The export folder: every artefact of a model, and a model.json that says what they are and what bytes they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from yolov7 import files
from yolov7.export.onnx import contract_of, export_onnx, export_onnx_nms
from yolov7.model.checkpoint import ModelMetadata, save_checkpoint
from yolov7.model.detector import Detector
from yolov7.predict.load import DESCRIPTION

FORMAT = 1
SAFETENSORS, ONNX, ONNX_NMS = "model.safetensors", "model.onnx", "model-nms.onnx"


def export_folder(
    model: Detector,
    folder: Path,
    *,
    metadata: ModelMetadata,
    opset: int = 18,
    dynamic: bool = True,
    confidence: float = 0.25,
    iou: float = 0.45,
    max_detections: int = 100,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write model.safetensors (deploy form), model.onnx (decoded), model-nms.onnx and model.json; return the last.

    A training form is re-parameterised first. The thresholds go into the suppression graph and become the defaults of
    whoever loads any of the files. `extra` (where the model comes from) goes into model.json as it is.
    Raises what :func:`export_onnx` raises.
    """
    deploy = model if model.form == "deploy" else model.reparameterize()
    thresholds = {"confidence": confidence, "iou": iou, "max_detections": max_detections}
    said = replace(metadata, form="deploy", extra={**metadata.extra, "thresholds": thresholds})
    save_checkpoint(folder / SAFETENSORS, deploy, said)
    graph = export_onnx(deploy, folder / ONNX, metadata=said, opset=opset, dynamic=dynamic)
    with_nms = export_onnx_nms(graph, folder / ONNX_NMS, confidence=confidence, iou=iou, max_detections=max_detections)
    description = {
        "format": FORMAT,
        **asdict(said),
        "thresholds": thresholds,
        "opset": opset,
        "dynamic": dynamic,
        "contracts": {ONNX: contract_of(graph), ONNX_NMS: contract_of(with_nms)},
        **(extra or {}),
        "files": {name: _bytes_of(folder / name) for name in (SAFETENSORS, ONNX, ONNX_NMS)},
    }
    files.write_json(folder / DESCRIPTION, description)
    return description


def _bytes_of(file: Path) -> dict[str, Any]:
    return {"sha256": files.sha256_file(file), "bytes": file.stat().st_size}
