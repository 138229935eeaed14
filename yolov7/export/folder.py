"""The export folder: every artefact of a model, and a model.json that describes them with their sha256."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
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
from yolov7.errors import ConfigError
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
    optional = _Optional(graph, folder, int8, write_raw)
    try:
        optional.write(formats)
    finally:
        # Also where an int8 file fails: those before it are whole, and can be used.
        description["files"] = listed(folder, [SAFETENSORS, ONNX, ONNX_NMS, *optional.written])
        files.write_json(folder / DESCRIPTION, description)
    return description


class _Optional:
    """The optional formats of a folder. `written` are the names of the files that are whole."""

    def __init__(
        self,
        graph: onnx.ModelProto,
        folder: Path,
        int8: Callable[[onnx.ModelProto, Path], Int8Exporter] | None,
        write_raw: Callable[[Path], onnx.ModelProto],
    ):
        self.graph, self.folder, self.int8, self.write_raw = graph, folder, int8, write_raw
        self.written: list[str] = []
        self._formats: list[FormatName] = []
        self._reports: dict[str, Any] = {}

    def write(self, formats: Sequence[FormatName]) -> None:
        """Write the formats and the record of them; the int8 ones last. Files of an earlier export are removed."""
        shutil.rmtree(self.folder / OPTIONAL, ignore_errors=True)
        try:
            for name in sorted(formats, key=lambda name: name in INT8_FORMATS):
                file = self.folder / FILE_OF_FORMAT[name]
                if name in INT8_FORMATS:
                    self._reports[name] = asdict(self._exporter.export(file, placement_of(name)))
                elif name == "onnx-raw":
                    self.write_raw(file)
                else:
                    export_openvino(self.graph, file, half=name.endswith("float16"))
                self._formats.append(name)
                self.written += [
                    f"{OPTIONAL}/{part.name}" for part in (file, file.with_suffix(".bin")) if part.is_file()
                ]
        finally:
            self._record([name for name in formats if name in self._formats])

    @cached_property
    def _exporter(self) -> Int8Exporter:
        if self.int8 is None:
            raise ConfigError("int8 formats need images to calibrate with and to measure AP on")
        return self.int8(self.graph, self.folder / ONNX)

    def _record(self, formats: Sequence[FormatName]) -> None:
        if any(report["layer_sensitivity"] for report in self._reports.values()):
            write_sensitivities(self.folder / SENSITIVITY_FILE, self._reports)
            self.written.append(SENSITIVITY_FILE)
        symmetric = [FILE_OF_FORMAT[name] for name in formats if name == "onnx-int8-tensorrt"]
        checked = {name: check_tensorrt(self.folder / name).to_dict() for name in (ONNX, ONNX_NMS, *symmetric)}
        document = {"formats": list(formats), "int8": self._reports, "tensorrt": checked}
        files.write_json(self.folder / FORMATS_FILE, document)
        self.written.append(FORMATS_FILE)


def placement_of(name: FormatName) -> Placement:
    """Which values the file of an int8 format has in eight bits."""
    if name == "openvino-int8":
        return "openvino"
    return "tensorrt" if name == "onnx-int8-tensorrt" else "onnx"
