"""The export folder: every artefact of a model, and a model.json that describes them with their sha256."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from yolov7 import files
from yolov7.artefact import (
    DESCRIPTION,
    FILE_OF_FORMAT,
    FORMATS_FILE,
    ONNX,
    ONNX_NMS,
    OPTIONAL,
    SAFETENSORS,
    FormatName,
    listed,
)
from yolov7.errors import ConfigError
from yolov7.export.int8 import Int8Exporter
from yolov7.export.onnx import contract_of, export_onnx, export_onnx_nms
from yolov7.export.openvino import export_openvino
from yolov7.export.raw import export_onnx_raw
from yolov7.export.tensorrt import check_tensorrt
from yolov7.model.checkpoint import ModelMetadata, save_checkpoint
from yolov7.model.detector import Detector
from yolov7.model.variants import family_name
from yolov7.nms import Thresholds

FORMAT = 1


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
    formats: Sequence[FormatName] = (),
    int8: Callable[[onnx.ModelProto, Path], Int8Exporter] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write model.safetensors (deploy form), model.onnx (decoded), model-nms.onnx and model.json; return the last.

    A training form is re-parameterised first. The thresholds go into the suppression graph and become the defaults for
    loading any of the files. `formats` are written to the subfolder `optional`; those of int8 need `int8`, which makes
    an exporter of the graph and the float file. `extra` (the model's origin) goes into model.json unchanged. Raises
    what :func:`export_onnx`, :func:`export_openvino` and :class:`Int8Exporter` raise, and :class:`ConfigError` for
    thresholds out of range.
    """
    deploy = model if model.form == "deploy" else model.reparameterize()
    thresholds = Thresholds(confidence, iou, max_detections)
    deployed = replace(metadata, form="deploy", extra={**metadata.extra, "thresholds": asdict(thresholds)})
    # The manifest goes first and comes last: files of two exports never lie under one.
    (folder / DESCRIPTION).unlink(missing_ok=True)
    save_checkpoint(folder / SAFETENSORS, deploy, deployed)
    graph = export_onnx(deploy, folder / ONNX, metadata=deployed, opset=opset, dynamic=dynamic)
    with_nms = export_onnx_nms(graph, folder / ONNX_NMS, thresholds)
    write_raw = partial(export_onnx_raw, deploy, metadata=deployed, opset=opset, dynamic=dynamic)
    written = [SAFETENSORS, ONNX, ONNX_NMS, *_write_optional(graph, folder, formats, int8, write_raw)]
    description = {
        "format": FORMAT,
        "family": family_name(model.variant),
        **asdict(deployed),
        "thresholds": asdict(thresholds),
        "opset": opset,
        "dynamic": dynamic,
        "contracts": {ONNX: contract_of(graph), ONNX_NMS: contract_of(with_nms)},
        **(extra or {}),
        "files": listed(folder, written),
    }
    files.write_json(folder / DESCRIPTION, description)
    return description


def _write_optional(
    graph: onnx.ModelProto,
    folder: Path,
    formats: Sequence[FormatName],
    int8: Callable[[onnx.ModelProto, Path], Int8Exporter] | None,
    write_raw: Callable[[Path], onnx.ModelProto],
) -> list[str]:
    """Write the optional formats and return the files' names. Files of an earlier export are removed."""
    shutil.rmtree(folder / OPTIONAL, ignore_errors=True)
    exporter = None
    if any(name.endswith("int8") for name in formats):
        if int8 is None:
            raise ConfigError("int8 formats need images to calibrate with and to measure AP on")
        exporter = int8(graph, folder / ONNX)
    reports: dict[str, Any] = {}
    written = []
    for name in formats:
        file = folder / FILE_OF_FORMAT[name]
        if name.endswith("int8"):
            assert exporter is not None
            reports[name] = asdict(exporter.export(file, "onnx" if name.startswith("onnx") else "openvino"))
        elif name == "onnx-raw":
            write_raw(file)
        else:
            export_openvino(graph, file, half=name.endswith("float16"))
        written += [f"{OPTIONAL}/{part.name}" for part in (file, file.with_suffix(".bin")) if part.is_file()]
    checked = {name: check_tensorrt(folder / name).to_dict() for name in (ONNX, ONNX_NMS)}
    files.write_json(folder / FORMATS_FILE, {"formats": list(formats), "int8": reports, "tensorrt": checked})
    return [*written, FORMATS_FILE]
