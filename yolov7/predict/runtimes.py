"""What runs a network: PyTorch, or ONNX Runtime (and OpenVINO, next door). Bytes in, decoded predictions out.

A runtime takes uint8 RGB batches and scales them itself, so that a wrong normalisation cannot hide between the parts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from yolov7.device import Precision, autocast, autocast_dtype
from yolov7.errors import ModelError
from yolov7.model.checkpoint import ModelMetadata
from yolov7.model.detector import Detector
from yolov7.model.heads.anchor import decode
from yolov7.nms import Detections

METADATA_KEY = "yolov7"
"""Where an ONNX file's metadata_props hold the ModelMetadata as JSON."""
CONTRACT_KEY = "yolov7.contract"
"""Where they hold what goes in and what comes out, as JSON (see yolov7.export)."""

Batch = Tensor | np.ndarray

_ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


@runtime_checkable
class Runtime(Protocol):
    """A network that answers with decoded predictions."""

    metadata: ModelMetadata
    input_shape: tuple[int | None, int | None, int | None]
    """Fixed batch size, height and width; None where any will do."""
    stride: int
    """Height and width are multiples of this."""

    def decoded(self, images: Batch) -> Tensor:
        """uint8 (B, 3, H, W) RGB -> float32 (B, N, 5 + C): xyxy input pixels, objectness, class probabilities."""
        ...


@runtime_checkable
class DetectingRuntime(Protocol):
    """A network with the non-maximum suppression inside; thresholds were fixed when it was exported."""

    metadata: ModelMetadata
    input_shape: tuple[int | None, int | None, int | None]
    stride: int
    confidence: float
    iou: float
    max_detections: int

    def detect(self, images: Batch) -> list[Detections]:
        """uint8 (B, 3, H, W) RGB -> detections of each image, by falling score, in pixels of the input."""
        ...


class TorchRuntime:
    """PyTorch. The model is put into evaluation mode and runs on the device its parameters are on."""

    def __init__(self, model: Detector, metadata: ModelMetadata, *, precision: Precision = "float32"):
        self.model = model.eval()
        self.metadata = metadata
        self.input_shape: tuple[int | None, int | None, int | None] = (None, None, None)
        self.stride = model.stride
        self._device = next(model.parameters()).device
        self._dtype = autocast_dtype(self._device, precision)

    @torch.inference_mode()
    def decoded(self, images: Batch) -> Tensor:
        """See :class:`Runtime`; the result stays on the model's device."""
        batch = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        check_batch(batch, self.metadata, self.input_shape, self.model.stride)
        # Divide on the device: a quarter of the bytes travel.
        scaled = batch.to(self._device, non_blocking=True).float() / 255.0
        with autocast(self._device, self._dtype):
            return self.model(scaled).float()


@dataclass(frozen=True)
class About:
    """What a file of this project says of itself."""

    metadata: ModelMetadata
    contract: dict[str, Any]
    """What goes in and what comes out (see yolov7.export)."""
    kind: str
    """Of the output: `decoded`, `nms` or `raw`."""
    stride: int

    @classmethod
    def parse(cls, path: Path, said: Callable[[str], str]) -> About:
        """From the JSON that `said` finds under the two keys; :class:`ModelError` where it makes no sense."""
        try:
            metadata = ModelMetadata.from_json(said(METADATA_KEY))
            contract = json.loads(said(CONTRACT_KEY))
            return cls(metadata, contract, str(contract["output"]["kind"]), int(contract["input"]["stride"]))
        except (ModelError, KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: its metadata is damaged: {error}") from None


class ModelFile(Protocol):
    """An opened file that describes itself, whatever runs it."""

    path: Path
    about: About
    metadata: ModelMetadata
    input_shape: tuple[int | None, int | None, int | None]
    stride: int

    def run(self, images: Batch) -> list[np.ndarray]:
        """Outputs for uint8 (B, 3, H, W): of the whole batch, or of one part after another where the size is fixed."""
        ...


class OnnxFile:
    """An ONNX file this project wrote, opened by ONNX Runtime.

    `threads` 0 lets the runtime choose; `device` is cpu, cuda, cuda:1... or auto. Raises :class:`ModelError` for a file
    that is missing, damaged, or not of this project, and for a device that is not there.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, device: str = "cpu"):
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no such model file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what goes wrong comes as an exception, with a message of ours
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(self.path), options, providers=_providers(device))
        except _ORT_ERRORS as error:
            raise ModelError(f"{self.path}: ONNX Runtime cannot load it: {_first_line(error)}") from None
        if device.startswith("cuda") and "CUDAExecutionProvider" not in self.session.get_providers():
            raise ModelError(f"device {device!r}: ONNX Runtime cannot use it and would run on the cpu")
        properties = self.session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in properties or CONTRACT_KEY not in properties:
            raise ModelError(f"{self.path}: an ONNX file, but not of this project (its metadata says nothing of it)")
        self.about = About.parse(self.path, properties.__getitem__)
        self.metadata, self.stride = self.about.metadata, self.about.stride
        batch, _, height, width = (
            side if isinstance(side, int) else None for side in self.session.get_inputs()[0].shape
        )
        self.input_shape = (batch, height, width)

    def run(self, images: Batch) -> list[np.ndarray]:
        """Outputs for uint8 (B, 3, H, W): of the whole batch, or of one part after another where the size is fixed."""
        batch = images.cpu().numpy() if isinstance(images, Tensor) else images
        check_batch(batch, self.metadata, self.input_shape, self.stride)
        return [self._run(part)[0] for part in scaled_parts(batch, self.input_shape[0])]

    def maps(self, images: Batch) -> list[np.ndarray]:
        """As :meth:`run`, every output of the file, each of the whole batch."""
        batch = images.cpu().numpy() if isinstance(images, Tensor) else images
        check_batch(batch, self.metadata, self.input_shape, self.stride)
        parts = [self._run(part) for part in scaled_parts(batch, self.input_shape[0])]
        return [np.concatenate(outputs)[: len(batch)] for outputs in zip(*parts, strict=True)]

    def _run(self, scaled: np.ndarray) -> list[np.ndarray]:
        try:
            outputs: list[np.ndarray] = self.session.run(None, {"images": scaled})
        except _ORT_ERRORS as error:
            raise ModelError(f"{self.path}: ONNX Runtime failed: {_first_line(error)}") from None
        return outputs


class DecodingFile:
    """A :class:`Runtime` from a file with decoded output."""

    def __init__(self, file: ModelFile):
        _require(file, "decoded")
        self.file, self.metadata = file, file.metadata
        self.input_shape, self.stride = file.input_shape, file.stride

    def decoded(self, images: Batch) -> Tensor:
        """See :class:`Runtime`."""
        parts = self.file.run(images)
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))[: len(images)]


class DetectingFile:
    """A :class:`DetectingRuntime` from a file with the suppression inside."""

    def __init__(self, file: ModelFile):
        _require(file, "nms")
        self.file, self.metadata = file, file.metadata
        self.input_shape, self.stride = file.input_shape, file.stride
        output = file.about.contract["output"]
        self.confidence, self.iou = float(output["confidence"]), float(output["iou"])
        self.max_detections = int(output["max_detections"])

    def detect(self, images: Batch) -> list[Detections]:
        """See :class:`DetectingRuntime`."""
        size = self.input_shape[0] or len(images)
        found = [_detections(rows[rows[:, 0] == i]) for rows in self.file.run(images) for i in range(size)]
        return found[: len(images)]


class OnnxRuntime(DecodingFile):
    """ONNX Runtime on a file with decoded output."""


class OnnxNmsRuntime(DetectingFile):
    """ONNX Runtime on a file with the suppression inside."""


class OnnxRawRuntime:
    """ONNX Runtime on a file with raw maps, which are decoded here by what its contract says."""

    def __init__(self, file: OnnxFile):
        _require(file, "raw")
        self.file, self.metadata = file, file.metadata
        self.input_shape, self.stride = file.input_shape, file.stride
        self._anchors = torch.tensor(file.about.contract["output"]["anchors"], dtype=torch.float32)  # (L, A, 2)

    def decoded(self, images: Batch) -> Tensor:
        """See :class:`Runtime`."""
        maps = [torch.from_numpy(one) for one in self.file.maps(images)]  # L of (B, A, h, w, 5 + C)
        return decode(maps, self._anchors, [images.shape[2] // one.shape[2] for one in maps])


def open_onnx(
    path: str | os.PathLike[str], *, threads: int = 0, device: str = "cpu"
) -> OnnxRuntime | OnnxNmsRuntime | OnnxRawRuntime:
    """The runtime that fits the file: what it puts out stands in its metadata. Raises as :class:`OnnxFile` does."""
    file = OnnxFile(path, threads=threads, device=device)
    if file.about.kind == "raw":
        return OnnxRawRuntime(file)
    return OnnxNmsRuntime(file) if file.about.kind == "nms" else OnnxRuntime(file)


def _require(file: ModelFile, kind: str) -> None:
    if file.about.kind != kind:
        raise ModelError(f"{file.path}: its output is {file.about.kind!r}, {kind!r} is needed here")


def scaled_parts(batch: np.ndarray, fixed: int | None) -> Iterator[np.ndarray]:
    """uint8 (B, 3, H, W) as float32 in [0, 1]: whole, or in parts of the `fixed` size, the last one filled up with
    black images whose answers the caller drops.
    """
    size = fixed or len(batch)
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        if len(part) < size:
            part = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
        yield np.divide(part, np.float32(255.0), dtype=np.float32)


def _detections(rows: np.ndarray) -> Detections:
    """Rows (n, 7) of one image: image index, x1, y1, x2, y2, score, class. What is not finite is left out."""
    values = torch.from_numpy(np.ascontiguousarray(rows[np.isfinite(rows).all(axis=1)]))
    return Detections(boxes=values[:, 1:5].clone(), scores=values[:, 5].clone(), labels=values[:, 6].long())


def check_batch(
    batch: Batch, metadata: ModelMetadata, fixed: tuple[int | None, int | None, int | None], stride: int
) -> None:
    """One clear line in place of a shape error deep inside a runtime."""
    shape = tuple(batch.shape)
    if batch.dtype not in (torch.uint8, np.uint8) or len(shape) != 4 or shape[1] != 3 or shape[0] < 1:
        raise ModelError(f"{metadata.variant}: uint8 images (B, 3, H, W) are expected, got {batch.dtype} {shape}")
    for side, wanted in zip(shape[2:], fixed[1:], strict=True):
        if wanted is not None and side != wanted:
            raise ModelError(f"{metadata.variant}: exported for images of {fixed[1]} x {fixed[2]}, got {shape[2:]}")
        if side % stride:
            raise ModelError(f"{metadata.variant}: image sides must be multiples of {stride}, got {shape[2:]}")


def _providers(device: str) -> list[str | tuple[str, dict[str, str]]]:
    """By a device's name as PyTorch has it: cpu, cuda, cuda:1; auto is CUDA where this ONNX Runtime has it."""
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    name = ("cuda" if has_cuda else "cpu") if device == "auto" else device
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind == "cuda" and has_cuda and (number.isdecimal() or not number):
        return [("CUDAExecutionProvider", {"device_id": number or "0"}), "CPUExecutionProvider"]
    raise ModelError(
        f"device {device!r}: this ONNX Runtime has {', '.join(onnxruntime.get_available_providers())}; "
        "install onnxruntime-gpu for CUDA, or use the .safetensors file"
    )


def _first_line(error: Exception) -> str:
    """What ONNX Runtime says, without the status, the path (ours is named already) and the C++ signature before it."""
    text = str(error).strip().splitlines()[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .* failed:", "", text)
    return re.sub(r"^/onnxruntime_src/\S+ .*\) (?=[A-Z])", "", text)[:300]
