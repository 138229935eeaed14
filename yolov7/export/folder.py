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
    INT8_FORMATS,
    ONNX,
    ONNX_NMS,
    OPTIONAL,
    SAFETENSORS,
    SENSITIVITY_FILE,
    FormatName,
    listed,
)
from yolov7.errors import ConfigError, YoloError
from yolov7.export.int8 import Int8Exporter
from yolov7.export.onnx import contract_of, export_onnx, export_onnx_nms
from yolov7.export.openvino import export_openvino
from yolov7.export.quantize import Placement
from yolov7.export.raw import export_onnx_raw
from yolov7.export.sensitivity import write_sensitivities
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
    an exporter of the graph and the float file; they come last, and one that fails leaves a folder without it that can
    be used. `extra` (the model's origin) goes into model.json unchanged. Raises what :func:`export_onnx`,
    :func:`export_openvino` and :class:`Int8Exporter` raise, and :class:`ConfigError` for thresholds out of range.
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
    description = {
        "format": FORMAT,
        "family": family_name(model.variant),
        **asdict(deployed),
        "thresholds": asdict(thresholds),
        "opset": opset,
        "dynamic": dynamic,
        "contracts": {ONNX: contract_of(graph), ONNX_NMS: contract_of(with_nms)},
        **(extra or {}),
    }
    written = [SAFETENSORS, ONNX, ONNX_NMS]
    failure: _Int8FailedError | None = None
    try:
        written += _write_optional(graph, folder, formats, int8, write_raw)
    except _Int8FailedError as failed:  # the files before it are whole, and can be used
        failure = failed
        written += failed.written
    description["files"] = listed(folder, written)
    files.write_json(folder / DESCRIPTION, description)
    if failure is not None:
        raise failure.reason
    return description


class _Int8FailedError(Exception):
    """An int8 file could not be made, for `reason`; `written` are the optional files before it."""

    def __init__(self, reason: YoloError, written: list[str]):
        super().__init__(reason)
        self.reason, self.written = reason, written


def _write_optional(
    graph: onnx.ModelProto,
    folder: Path,
    formats: Sequence[FormatName],
    int8: Callable[[onnx.ModelProto, Path], Int8Exporter] | None,
    write_raw: Callable[[Path], onnx.ModelProto],
) -> list[str]:
    """Write the optional formats, those of int8 last, and return the files' names. Files of an earlier export are
    removed.
    """
    shutil.rmtree(folder / OPTIONAL, ignore_errors=True)
    in_bytes = [name for name in formats if name in INT8_FORMATS]
    if in_bytes and int8 is None:
        raise ConfigError("int8 formats need images to calibrate with and to measure AP on")
    done: list[FormatName] = []
    for name in formats:
        file = folder / FILE_OF_FORMAT[name]
        if name == "onnx-raw":
            write_raw(file)
        elif name not in INT8_FORMATS:
            export_openvino(graph, file, half=name.endswith("float16"))
        if name not in INT8_FORMATS:
            done.append(name)
    reports: dict[str, Any] = {}
    try:
        exporter = int8(graph, folder / ONNX) if in_bytes and int8 else None
        for name in in_bytes:
            assert exporter is not None
            reports[name] = asdict(exporter.export(folder / FILE_OF_FORMAT[name], placement_of(name)))
            done.append(name)
    except YoloError as error:
        raise _Int8FailedError(error, _recorded(folder, [name for name in formats if name in done], reports)) from None
    return _recorded(folder, formats, reports)


def _recorded(folder: Path, formats: Sequence[FormatName], reports: dict[str, Any]) -> list[str]:
    """Write the records of these formats; returns the names of their files and of the records."""
    paths = [folder / FILE_OF_FORMAT[name] for name in formats]
    written = [
        f"{OPTIONAL}/{part.name}" for file in paths for part in (file, file.with_suffix(".bin")) if part.is_file()
    ]
    if any(report["layer_sensitivity"] for report in reports.values()):
        write_sensitivities(folder / SENSITIVITY_FILE, reports)
        written.append(SENSITIVITY_FILE)
    symmetric = [FILE_OF_FORMAT[name] for name in formats if name == "onnx-int8-tensorrt"]
    checked = {name: check_tensorrt(folder / name).to_dict() for name in (ONNX, ONNX_NMS, *symmetric)}
    files.write_json(folder / FORMATS_FILE, {"formats": list(formats), "int8": reports, "tensorrt": checked})
    return [*written, FORMATS_FILE]


def placement_of(name: FormatName) -> Placement:
    """Which values the file of an int8 format has in eight bits."""
    if name == "openvino-int8":
        return "openvino"
    return "tensorrt" if name == "onnx-int8-tensorrt" else "onnx"
