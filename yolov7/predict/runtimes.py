"""Runtimes: PyTorch and ONNX Runtime (OpenVINO: `openvino_runtime`). Bytes in, decoded predictions out.

A runtime takes uint8 RGB batches and scales them itself, so callers cannot normalise them wrongly. Its `scoring` says
how a score is made of what it returns; files state it in their contract.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from yolov7.detections import Detections
from yolov7.device import Precision, autocast, autocast_dtype, onnx_providers
from yolov7.errors import ModelError
from yolov7.model.checkpoint import ModelMetadata
from yolov7.model.detector import Detector
from yolov7.model.heads import aligned, anchor
from yolov7.model.spec import HeadModule
from yolov7.nms import Thresholds
from yolov7.predict.about import (
    CONTRACT_KEY,
    METADATA_KEY,
    About,
    GraphValue,
    damaged_weights,
)
from yolov7.predictions import Scoring

ImageBatch = Tensor | np.ndarray

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
    """A network that returns decoded predictions."""

    metadata: ModelMetadata
    input_shape: tuple[int | None, int | None, int | None]
    """Fixed batch size, height and width; None where open."""
    stride: int
    """Height and width are multiples of this."""
    scoring: Scoring
    """Columns of the decoded predictions, and the score made of them."""

    def decoded(self, images: ImageBatch) -> Tensor:
        """uint8 (B, 3, H, W) RGB -> float32 (B, N, F): xyxy in input pixels, then the columns of `scoring`."""
        ...


@runtime_checkable
class DetectingRuntime(Protocol):
    """A network with the non-maximum suppression inside; thresholds were fixed when it was exported."""

    metadata: ModelMetadata
    input_shape: tuple[int | None, int | None, int | None]
    stride: int
    thresholds: Thresholds

    def detect(self, images: ImageBatch) -> list[Detections]:
        """uint8 (B, 3, H, W) RGB -> detections of each image, by falling score, in pixels of the input."""
        ...


def onnx_session(
    graph: onnx.ModelProto | str | os.PathLike[str],
    *,
    threads: int = 0,
    providers: Sequence[str | tuple[str, dict[str, str]]] = ("CPUExecutionProvider",),
    optimised: bool = True,
) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a graph or a file, silent: what goes wrong is an exception.

    `threads` 0 lets it choose. Not `optimised`, the operators run one by one as they are in the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = graph.SerializeToString() if isinstance(graph, onnx.ModelProto) else os.fspath(graph)
    return onnxruntime.InferenceSession(source, options, providers=list(providers))


class TorchRuntime:
    """PyTorch. Sets the model to evaluation mode and runs on the device of its parameters."""

    def __init__(self, model: Detector, metadata: ModelMetadata, *, precision: Precision = "float32"):
        self.model = model.eval()
        self.metadata = metadata
        self.input_shape: tuple[int | None, int | None, int | None] = (None, None, None)
        self.stride = model.stride
        self.scoring = cast(HeadModule, model.head).scoring()
        self._device = next(model.parameters()).device
        self._dtype = autocast_dtype(self._device, precision)

    @torch.inference_mode()
    def decoded(self, images: ImageBatch) -> Tensor:
        """See :class:`Runtime`; the result stays on the model's device."""
        batch = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        check_batch(batch, self.metadata, self.input_shape, self.model.stride)
        # Divide on the device: only a quarter of the bytes is copied.
        scaled = batch.to(self._device, non_blocking=True).float() / 255.0
        with autocast(self._device, self._dtype):
            return self.model(scaled).float()


class ModelFile(Protocol):
    """An opened file that describes itself, whatever its runtime."""

    path: Path
    about: About
    metadata: ModelMetadata
    input_shape: tuple[int | None, int | None, int | None]
    stride: int

    def run(self, images: ImageBatch) -> list[np.ndarray]:
        """First output for uint8 (B, 3, H, W): of the whole batch, or part by part if the batch size is fixed."""
        ...

    def require_finite(self) -> None:
        """Raise :class:`ModelError` for weights that are not finite: such a file opens, runs, and finds nothing."""
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
        providers = onnx_providers(device, onnxruntime.get_available_providers())
        self._damaged = damaged_weights(self.path)
        try:
            self.session = onnx_session(self.path, threads=threads, providers=providers)
        except _ORT_ERRORS as error:
            raise ModelError(f"{self.path}: ONNX Runtime cannot load it: {_first_line(error)}") from None
        # ONNX Runtime falls back silently.
        if device != "auto" and providers[0][0] not in self.session.get_providers():
            raise ModelError(f"device {device!r}: ONNX Runtime cannot use it and would run on the cpu")
        properties = self.session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in properties or CONTRACT_KEY not in properties:
            raise ModelError(f"{self.path}: an ONNX file, but not of this project (it has none of our metadata)")
        self.about = About.parse(self.path, properties.__getitem__)
        self.metadata, self.stride = self.about.metadata, self.about.stride
        sides = [[_value(item) for item in items] for items in (self.session.get_inputs(), self.session.get_outputs())]
        self.input_shape = self.about.check_graph(*sides)

    def run(self, images: ImageBatch) -> list[np.ndarray]:
        """First output for uint8 (B, 3, H, W): of the whole batch, or part by part if the batch size is fixed."""
        batch = images.cpu().numpy() if isinstance(images, Tensor) else images
        check_batch(batch, self.metadata, self.input_shape, self.stride)
        return [self._run(part)[0] for part in scaled_parts(batch, self.input_shape[0])]

    def maps(self, images: ImageBatch) -> list[np.ndarray]:
        """Every output of the file, each of the whole batch."""
        batch = images.cpu().numpy() if isinstance(images, Tensor) else images
        check_batch(batch, self.metadata, self.input_shape, self.stride)
        parts = [self._run(part) for part in scaled_parts(batch, self.input_shape[0])]
        return [np.concatenate(outputs)[: len(batch)] for outputs in zip(*parts, strict=True)]

    def require_finite(self) -> None:
        """See :class:`ModelFile`."""
        if self._damaged is not None:
            name = f"{self._damaged!r:.80}"
            raise ModelError(f"{self.path}: {name}: holds values that are not finite; the weights are damaged")

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
        self.scoring = file.about.scoring

    def decoded(self, images: ImageBatch) -> Tensor:
        """See :class:`Runtime`."""
        parts = self.file.run(images)
        for part in parts:
            self.file.about.check_answer(part)
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))[: len(images)]


class DetectingFile:
    """A :class:`DetectingRuntime` from a file with the suppression inside."""

    def __init__(self, file: ModelFile):
        _require(file, "nms")
        self.file, self.metadata = file, file.metadata
        self.input_shape, self.stride = file.input_shape, file.stride
        output = file.about.stated.output
        assert output.confidence is not None and output.iou is not None and output.max_detections is not None
        self.thresholds = Thresholds(output.confidence, output.iou, output.max_detections)

    def detect(self, images: ImageBatch) -> list[Detections]:
        """See :class:`DetectingRuntime`."""
        size, classes = self.input_shape[0] or len(images), self.metadata.num_classes
        parts = self.file.run(images)
        for rows in parts:
            self.file.about.check_answer(rows)
            if not ((rows[:, 6] >= 0) & (rows[:, 6] < classes))[np.isfinite(rows).all(axis=1)].all():
                raise ModelError(f"{self.file.path}: it detects more classes than the {classes} its metadata names")
        found = [_detections(rows[rows[:, 0] == i]) for rows in parts for i in range(size)]
        return found[: len(images)]


class OnnxRuntime(DecodingFile):
    """ONNX Runtime on a file with decoded output."""


class OnnxNmsRuntime(DetectingFile):
    """ONNX Runtime on a file with the suppression inside."""


Decoder = Callable[[Sequence[Tensor], Sequence[int]], Tensor]
"""(raw maps of the levels, their strides) -> decoded predictions (B, N, F)."""


def _anchor_decoder(output: Mapping[str, Any]) -> Decoder:
    anchors = torch.tensor(output["anchors"], dtype=torch.float32)  # (L, A, 2)
    return lambda maps, strides: anchor.decode(maps, anchors, strides)


def _aligned_decoder(output: Mapping[str, Any]) -> Decoder:
    bins = torch.arange(int(output["bins"]), dtype=torch.float32) if output["bins"] else None
    return lambda maps, strides: aligned.decode(maps, strides, bins)


_DECODERS: dict[str, Callable[[Mapping[str, Any]], Decoder]] = {
    anchor.DECODING: _anchor_decoder,
    aligned.DECODING: _aligned_decoder,
}
"""By the formula in the contract, from the contract's output."""


class OnnxRawRuntime:
    """ONNX Runtime on a file with raw maps, which are decoded here as its contract says.

    Raises :class:`ModelError` for a contract whose decoding this revision does not know.
    """

    def __init__(self, file: OnnxFile):
        _require(file, "raw")
        self.file, self.metadata = file, file.metadata
        self.input_shape, self.stride = file.input_shape, file.stride
        self.scoring = file.about.scoring
        output = file.about.contract["output"]
        decoding = file.about.stated.output.decoding
        if decoding not in _DECODERS:
            raise ModelError(
                f"{file.path}: its contract decodes raw maps by {decoding!r}, which this revision does not know; "
                "use model.onnx, or a later revision"
            )
        try:
            self._decode = _DECODERS[decoding](output)
            self._row_axis = output["shape"].index("rows")
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{file.path}: its contract's output is damaged: {error!r}") from None

    def decoded(self, images: ImageBatch) -> Tensor:
        """See :class:`Runtime`."""
        maps = [torch.from_numpy(level) for level in self.file.maps(images)]
        try:
            answer = self._decode(maps, [images.shape[2] // level.shape[self._row_axis] for level in maps])
        except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{self.file.path}: its maps are not those of its contract: {reason}") from None
        self.file.about.check_answer(answer.numpy())
        return answer


def open_onnx(
    path: str | os.PathLike[str], *, threads: int = 0, device: str = "cpu"
) -> OnnxRuntime | OnnxNmsRuntime | OnnxRawRuntime:
    """The runtime for the kind of output in the file's contract. Raises as :class:`OnnxFile` does."""
    file = OnnxFile(path, threads=threads, device=device)
    if file.about.kind == "raw":
        return OnnxRawRuntime(file)
    return OnnxNmsRuntime(file) if file.about.kind == "nms" else OnnxRuntime(file)


def _value(item: Any) -> GraphValue:
    """An input or output of a session."""
    shape = tuple(side if isinstance(side, int) else None for side in item.shape or ())
    return GraphValue(item.name, item.type == "tensor(float)", shape)


def _require(file: ModelFile, kind: str) -> None:
    if file.about.kind != kind:
        raise ModelError(f"{file.path}: its output is {file.about.kind!r}, {kind!r} is needed here")


def scaled_parts(batch: np.ndarray, fixed: int | None) -> Iterator[np.ndarray]:
    """uint8 (B, 3, H, W) as float32 in [0, 1]: whole, or in parts of the `fixed` size.

    The last part is filled up with black images; callers drop their outputs.
    """
    size = fixed or len(batch)
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        if len(part) < size:
            part = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
        yield np.divide(part, np.float32(255.0), dtype=np.float32)


def _detections(rows: np.ndarray) -> Detections:
    """Rows (n, 7) of one image: image index, x1, y1, x2, y2, score, class. Rows that are not finite are left out."""
    values = torch.from_numpy(np.ascontiguousarray(rows[np.isfinite(rows).all(axis=1)]))
    return Detections(boxes=values[:, 1:5].clone(), scores=values[:, 5].clone(), labels=values[:, 6].long())


def check_batch(
    batch: ImageBatch, metadata: ModelMetadata, fixed: tuple[int | None, int | None, int | None], stride: int
) -> None:
    """Raise :class:`ModelError` for a batch that would fail with a shape error deep inside a runtime."""
    shape = tuple(batch.shape)
    if batch.dtype not in (torch.uint8, np.uint8) or len(shape) != 4 or shape[1] != 3 or shape[0] < 1:
        raise ModelError(f"{metadata.variant}: uint8 images (B, 3, H, W) are expected, got {batch.dtype} {shape}")
    for side, wanted in zip(shape[2:], fixed[1:], strict=True):
        if wanted is not None and side != wanted:
            raise ModelError(f"{metadata.variant}: exported for images of {fixed[1]} x {fixed[2]}, got {shape[2:]}")
        if side % stride:
            raise ModelError(f"{metadata.variant}: image sides must be multiples of {stride}, got {shape[2:]}")


def _first_line(error: Exception) -> str:
    """ONNX Runtime's message without status, path (ours is named already) and C++ signature."""
    text = str(error).strip().splitlines()[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .* failed:", "", text)
    return re.sub(r"^/onnxruntime_src/\S+ .*\) (?=[A-Z])", "", text)[:300]
