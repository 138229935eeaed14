"""OpenVINO: the same network from an .xml and a .bin that this project wrote. See :mod:`yolov7.predict.runtimes`.

The package is optional and imported on first use. Its telemetry would report the import to Intel and write a client id
to the home folder. We block the telemetry module first, so OpenVINO falls back to the stub it ships.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from yolov7.errors import ModelError
from yolov7.files import sha256_file
from yolov7.predict.about import CONTRACT_KEY, METADATA_KEY, About, GraphValue
from yolov7.predict.runtimes import (
    DecodingFile,
    DetectingFile,
    ImageBatch,
    check_batch,
    scaled_parts,
)

WEIGHTS_KEY = "yolov7.weights"
"""Key of the sha256 of the .bin in the .xml."""

_SHAPES = 3
"""Batch shapes that get a compiled network of their own, up to a third faster than the one for any shape."""


_core: Any = None
_core_lock = threading.Lock()


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry. Raises :class:`ModelError` if it is not installed."""
    # None makes an import fail. Code that imported OpenVINO before us has already decided about telemetry.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ModelError(f"OpenVINO is not installed ({error}); `pip install openvino`") from None


def openvino_core() -> Any:
    """The only core of this process; it is never freed.

    OpenVINO's CPU plugin gives the thread that loads it a new stack for signal handlers and frees that stack with its
    core. With several cores, or from another thread, the freed stack stays in use, and the next signal (the end of a
    child process, for example) kills the program silently.
    """
    global _core
    with _core_lock:
        if _core is None:
            _core = import_openvino().Core()
        return _core


class OpenvinoFile:
    """An OpenVINO file this project wrote, compiled for this processor.

    `path` is the .xml; the .bin lies beside it. `threads` 0 lets OpenVINO choose. Arithmetic is float32 (int8 in int8
    files) on every processor, as it was when the file was verified; OpenVINO itself would use bfloat16 where it can.
    Raises :class:`ModelError` for a file that is missing, damaged, or not of this project, and for a .bin that is
    not the one the .xml was written with.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, device: str = "cpu"):
        self.path = Path(path)
        self._openvino = import_openvino()
        if device not in ("cpu", "auto"):
            raise ModelError(f"device {device!r}: OpenVINO runs on the cpu here; use the ONNX or .safetensors file")
        # Not pinned to cores: several processes would pin themselves to the same ones.
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": "NO",
        }
        if threads:
            self._options["INFERENCE_NUM_THREADS"] = str(threads)
        self._core = openvino_core()
        self._model = self._read()
        self._lock = threading.Lock()
        self._requests: dict[tuple[int, ...] | None, Any] = {}
        self.about = About.parse(self.path, self._entry)
        self.metadata, self.stride = self.about.metadata, self.about.stride
        ports = ([_value(port) for port in side] for side in (self._model.inputs, self._model.outputs))
        self.input_shape = self.about.check_graph(*ports)

    def run(self, images: ImageBatch) -> list[np.ndarray]:
        """First output for uint8 (B, 3, H, W): of the whole batch, or part by part if the batch size is fixed."""
        batch = images.cpu().numpy() if isinstance(images, Tensor) else images
        check_batch(batch, self.metadata, self.input_shape, self.stride)
        # One request at a time: a request holds the network's memory and uses all threads anyway.
        with self._lock:
            return [self._infer(part) for part in scaled_parts(batch, self.input_shape[0])]

    def _infer(self, part: np.ndarray) -> np.ndarray:
        try:
            request = self._request(part.shape)
            output: np.ndarray = request.infer({0: part}, share_inputs=True)[0]
        except RuntimeError as error:
            raise ModelError(f"{self.path}: OpenVINO failed: {first_line(error)}") from None
        return output

    def _request(self, shape: Sequence[int]) -> Any:
        """A request for this shape or, after :data:`_SHAPES` of them, the one for any shape."""
        key: tuple[int, ...] | None = tuple(shape)
        if key not in self._requests and len(self._requests) >= _SHAPES:
            key = None
        if key not in self._requests:
            model = self._model
            if key is not None and model.is_dynamic():
                model = model.clone()
                model.reshape(list(key))
            self._requests[key] = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        return self._requests[key]

    def _read(self) -> Any:
        weights = self.path.with_suffix(".bin")
        for file in (self.path, weights):
            if not file.is_file():
                beside = "" if file == self.path else f"; it belongs to {self.path.name} and must lie beside it"
                raise ModelError(f"{file}: no such model file{beside}")
        try:
            model = self._core.read_model(os.fspath(self.path), os.fspath(weights))
        except RuntimeError as error:
            raise ModelError(f"{self.path}: OpenVINO cannot load it: {first_line(error)}") from None
        if not all(model.has_rt_info([key]) for key in (METADATA_KEY, CONTRACT_KEY, WEIGHTS_KEY)):
            raise ModelError(f"{self.path}: an OpenVINO file, but not of this project (it has none of our metadata)")
        if model.get_rt_info([WEIGHTS_KEY]).astype(str) != sha256_file(weights):
            raise ModelError(f"{weights}: not the weights {self.path.name} was written with (sha256); export it again")
        return model

    def require_finite(self) -> None:
        """See :class:`yolov7.predict.runtimes.ModelFile`."""
        for node in self._model.get_ops():
            if node.get_type_name() == "Constant" and node.get_element_type().is_real():
                values = node.data
                with np.errstate(over="ignore", invalid="ignore"):
                    whole = np.isfinite(values.sum(dtype=np.float32))  # a sum may overflow
                if not whole and not np.isfinite(values).all():
                    raise ModelError(f"{self.path}: its weights hold values that are not finite; they are damaged")

    def _entry(self, key: str) -> str:
        return str(self._model.get_rt_info([key]).astype(str))


class OpenvinoRuntime(DecodingFile):
    """OpenVINO on a file with decoded output."""


class OpenvinoNmsRuntime(DetectingFile):
    """OpenVINO on a file with the suppression inside."""


def _value(port: Any) -> GraphValue:
    """An input or output of a model."""
    shape = port.partial_shape
    sides = [side.get_length() if side.is_static else None for side in shape] if shape.rank.is_static else []
    name = "images" if "images" in port.get_names() else port.any_name if port.get_names() else ""
    return GraphValue(name, port.get_element_type().get_type_name() == "f32", tuple(sides))


def open_openvino(
    path: str | os.PathLike[str], *, threads: int = 0, device: str = "cpu"
) -> OpenvinoRuntime | OpenvinoNmsRuntime:
    """The runtime for the kind of output in the file's contract. Raises as :class:`OpenvinoFile` does."""
    file = OpenvinoFile(path, threads=threads, device=device)
    return OpenvinoNmsRuntime(file) if file.about.kind == "nms" else OpenvinoRuntime(file)


def first_line(error: Exception) -> str:
    """OpenVINO's message: its last line; those before it name the C++ sources that passed it on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(("Exception from ", "Check '", "at "))]
    return (reasons or lines or [type(error).__name__])[-1][:300]
