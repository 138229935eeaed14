"""An exported file's own description, and its comparison with the network beside it.

A description that does not fit its network would fail at the first image, deep inside a runtime, or go unnoticed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from yolov7.errors import ModelError
from yolov7.metadata import MAX_SIDE, StatedContract, read_stated
from yolov7.model.checkpoint import ModelMetadata
from yolov7.predictions import Scoring, columns_before_classes, contract_scoring

METADATA_KEY = "yolov7"
"""Key of the ModelMetadata, as JSON, in an ONNX file's metadata_props."""
CONTRACT_KEY = "yolov7.contract"
"""Key of the contract there: input and output, as JSON (see yolov7.export)."""

ROW_COLUMNS = 7
"""Columns of the output with the suppression inside."""

InputShape = tuple[int | None, int | None, int | None]
"""Batch size, height and width of an input; None where open."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class About:
    """A file's own description: metadata and contract."""

    path: Path
    metadata: ModelMetadata
    contract: dict[str, Any]
    """Input and output (see yolov7.export)."""
    stated: StatedContract
    """The typed part of it."""
    scoring: Scoring
    """Of the decoded predictions."""

    @classmethod
    def parse(cls, path: Path, entry: Callable[[str], str]) -> About:
        """From the JSON that `entry` returns for the two keys. Raises :class:`ModelError` if it is damaged."""
        try:
            metadata = ModelMetadata.from_json(entry(METADATA_KEY))
            stated, contract = read_stated(StatedContract, entry(CONTRACT_KEY))
            scoring = contract_scoring(contract["output"], metadata.num_classes)
        except ModelError as error:
            raise ModelError(f"{path}: its metadata is damaged, or of a later revision: {error}") from None
        return cls(path, metadata, contract, stated, scoring)

    @property
    def kind(self) -> str:
        """Of the output: `decoded`, `nms` or `raw`."""
        return self.stated.output.kind

    @property
    def stride(self) -> int:
        """Sides of the input are multiples of it."""
        return self.stated.input.stride

    @property
    def columns(self) -> int:
        """Last side of the output, if it is not raw."""
        if self.kind == "nms":
            return ROW_COLUMNS
        return columns_before_classes(self.scoring) + self.metadata.num_classes

    def check_graph(self, inputs: Sequence[GraphValue], outputs: Sequence[GraphValue]) -> InputShape:
        """Compare the description with the file's own inputs and outputs; returns the sides that are fixed.

        Raises :class:`ModelError` with the difference.
        """
        if [value.name for value in inputs] != ["images"] or not inputs[0].is_float32 or len(inputs[0].shape) != 4:
            found = ", ".join(f"{value.name!r:.60} {list(value.shape)}" for value in inputs[:5]) or "none"
            raise self._differs(f"one input, images, float32 (B, 3, H, W), is expected, its graph has {found}")
        batch, channels, height, width = inputs[0].shape
        if channels not in (3, None):
            raise self._differs(f"its input has {channels} channels, 3 are expected")
        for side in (height, width):
            if side is not None and (side > MAX_SIDE or side < 1 or side % self.stride):
                raise self._differs(
                    f"its input is {height} x {width}: multiples of {self.stride} up to {MAX_SIDE} are expected"
                )
        if batch is not None and not 1 <= batch * (height or 1) * (width or 1) <= MAX_SIDE**2:
            raise self._differs(f"its input is a batch of {batch} images of {height} x {width}")
        if self.kind != "raw":
            shape = outputs[0].shape if outputs else ()
            rank = 2 if self.kind == "nms" else 3
            if len(shape) != rank or shape[-1] not in (None, self.columns):
                raise self._differs(f"{self._outputs()}, its graph puts out {list(shape)}")
        return batch, height, width

    def check_answer(self, answer: np.ndarray) -> None:
        """Raise :class:`ModelError` if an output does not have the columns of the description."""
        if answer.ndim != (2 if self.kind == "nms" else 3) or answer.shape[-1] != self.columns:
            raise self._differs(f"{self._outputs()}, its answer is {list(answer.shape)}")

    def _outputs(self) -> str:
        if self.kind == "nms":
            return f"rows of {self.columns} columns are expected"
        return f"{self.columns} columns are expected for {self.metadata.num_classes} classes"

    def _differs(self, reason: str) -> ModelError:
        return ModelError(f"{self.path}: its metadata does not fit its network: {reason}")


@dataclass(frozen=True)
class GraphValue:
    """An input or output of a graph; None for a side that is open."""

    name: str
    is_float32: bool
    shape: tuple[int | None, ...]


def require_finite(answer: np.ndarray, what: str) -> None:
    """Raise :class:`ModelError` for the answer of damaged weights, which otherwise means: nothing found."""
    if not np.isfinite(answer).all():
        raise ModelError(f"{what}: its first answer holds values that are not finite; the weights are damaged")


def damaged_weights(path: Path) -> str | None:
    """Look at an ONNX file before a runtime does; returns the name of a weight that is not finite.

    A runtime that opens the file computes what depends on fixed sides alone, whatever they are. Costs a tenth to a
    third of opening the file. Raises :class:`ModelError` for sides out of bounds.
    """
    try:
        graph = onnx.load(os.fspath(path), format="protobuf", load_external_data=False).graph
    except (DecodeError, OSError):
        return None  # the runtime says what is wrong
    for value in graph.input:
        sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
        if any(not 0 <= side <= MAX_SIDE for side in sides) or prod(max(side, 1) for side in sides) > 3 * MAX_SIDE**2:
            raise ModelError(f"{path}: its input {value.name!r:.60} is of {sides}; sides up to {MAX_SIDE} are expected")
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type not in _FLOATS:
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor)
        except (TypeError, ValueError):
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.isfinite(values.sum(dtype=np.float32))  # a sum may overflow
        if not whole and not np.isfinite(values).all():
            return str(tensor.name)
    return None
