"""Int8 graphs: convolutions in eight bits, with ranges measured on real images, and decoding in float.

A convolution's input and output have one range each, its weights one per output channel; operators between two
quantised convolutions work on bytes as well. The last convolutions, whose outputs are coordinates and logits, and all
of the decoding stay in float.

Weights use seven of the eight bits. Processors without byte dot products (VNNI) add two 8-bit products in 16 bits and
overflow; with seven bits a file gives the same results everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import onnx
import onnxruntime

from yolov7.errors import DataError, ModelError
from yolov7.predict.runtimes import onnx_session, scaled_parts

Placement = Literal["onnx", "openvino"]
"""Which values are quantised. ONNX Runtime works on bytes from convolution to convolution, so every operator between
them needs ranges; OpenVINO fuses a convolution with the operators behind it and needs ranges at its inputs only."""
Ranges = dict[str, tuple[float, float]]
"""Value name -> smallest and largest number to represent in eight bits."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_JOINING = ("Add", "Mul", "Concat")
"""Operators whose inputs are all values. Others read one value first; their further inputs are sizes and weights."""
_BETWEEN = (
    *_JOINING,
    *("Relu", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "Resize"),
    *("Slice", "Split", "Transpose", "Reshape"),
)
"""Operators that can work on bytes."""
_BINS = 2048
_SAMPLES = 1 << 14
"""Numbers per value and image in its histogram, evenly spaced."""
_SHARES = np.linspace(0.1, 1.0, 91)
"""Candidate ranges, as shares of the observed one."""


def quantizable(graph: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that can be quantised, from input to output: all but the last of every path.

    A path ends at an operator that cannot work on bytes, such as the Softmax in front of a distribution's sum.
    """
    feeds_convolution: set[str] = set()
    names = []
    for node in reversed(graph.graph.node):  # a graph is sorted: what uses a value comes after it
        leads_on = not feeds_convolution.isdisjoint(node.output)
        if node.op_type in _CONVOLUTIONS and leads_on:
            names.append(node.name)
        if node.op_type in _CONVOLUTIONS or (node.op_type in _BETWEEN and leads_on):
            feeds_convolution.update(_values_read(node))
    return names[::-1]


def _values_read(node: onnx.NodeProto) -> Sequence[str]:
    return node.input if node.op_type in _JOINING else node.input[:1]


def calibrate(graph: onnx.ModelProto, batches: Callable[[], Iterable[np.ndarray]]) -> Ranges:
    """Measure the range of every value that can be quantised on images, uint8 (B, 3, H, W) RGB, read twice.

    The range is the part of the observed one whose rounding to 256 steps and clipping give the smallest mean squared
    error over a histogram of the value. Raises :class:`DataError` without images, and :class:`ModelError` for values
    that are not finite.
    """
    names = _values(graph)
    session = _observed(graph, names)
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for values in _outputs(session, names, batches()):
        low = np.minimum(low, [value.min() for value in values])
        high = np.maximum(high, [value.max() for value in values])
    if np.isposinf(low).any():
        raise DataError("int8: no images to calibrate with")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ModelError("int8: the network's values are not finite on the calibration images")
    counts = np.zeros((len(names), _BINS))
    for values in _outputs(session, names, batches()):
        for i, value in enumerate(values):
            flat = value.ravel()
            sampled = flat[:: max(1, flat.size // _SAMPLES)]
            counts[i] += np.histogram(sampled, _BINS, (low[i], _above(low[i], high[i])))[0]
    return {name: best_range(counts[i], low[i], high[i]) for i, name in enumerate(names)}


def quantized(
    graph: onnx.ModelProto, convolutions: Iterable[str], ranges: Ranges, *, placement: Placement = "onnx"
) -> onnx.ModelProto:
    """A copy of `graph` with these convolutions quantised (operators QuantizeLinear and DequantizeLinear)."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    chosen = set(convolutions)
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    del copy.metadata_props[:]
    nodes = [*chosen, *(_between(graph, chosen) if placement == "onnx" else ())]
    if not nodes:
        return copy
    extents = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    options: dict[str, object] = {"ActivationSymmetric": False, "WeightSymmetric": True}
    if placement == "openvino":
        options["OpTypesToExcludeOutputQuantization"] = list(_CONVOLUTIONS)
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, extents),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=[*_CONVOLUTIONS, *_BETWEEN],
        extra_options=options,
    )
    result: onnx.ModelProto = quantizer.quantize_model()
    quantizer.model.topological_sort()
    return result


def _between(graph: onnx.ModelProto, chosen: set[str]) -> list[str]:
    """Operators whose inputs are all quantised, on the way to another convolution."""
    body = set(_values(graph))
    constants = {constant.name for constant in graph.graph.initializer}
    in_bytes: set[str] = set()
    names = []
    for node in graph.graph.node:
        fits = node.op_type in _BETWEEN and not body.isdisjoint(node.output)
        fits = fits and set(_values_read(node)) - constants <= in_bytes
        if node.name in chosen or fits:
            in_bytes.update(node.output)
        if fits:
            names.append(node.name)
    return names


def _values(graph: onnx.ModelProto) -> list[str]:
    """The images, and every value on a path between convolutions, from input to output."""
    wanted: set[str] = set()
    constants = {constant.name for constant in graph.graph.initializer}
    for node in reversed(graph.graph.node):
        between = node.op_type in _BETWEEN and not wanted.isdisjoint(node.output)
        if node.op_type in _CONVOLUTIONS or between:
            wanted.update(_values_read(node))
    made = [graph.graph.input[0].name, *(value for node in graph.graph.node for value in node.output)]
    return [value for value in made if value in wanted - constants]


def _observed(graph: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    """A session that returns all these values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    present = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return onnx_session(copy)


def _outputs(
    session: onnxruntime.InferenceSession, names: list[str], batches: Iterable[np.ndarray]
) -> Iterator[list[np.ndarray]]:
    """Values image by image: those of a whole batch would take gigabytes."""
    images = session.get_inputs()[0].name
    inside = [name for name in names if name != images]
    for batch in batches:
        for image in scaled_parts(batch, 1):
            values = dict(zip(inside, session.run(inside, {images: image}), strict=True))
            yield [image if name == images else values[name] for name in names]


def _above(low: float, high: float) -> float:
    """The upper end of the range, above `low` even for a constant value."""
    return high if high > low else low + 1e-6


def best_range(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The part of `low` to `high`, including zero, with the smallest mean squared error in 256 steps.

    `counts` is a histogram of the values, in bins of equal width from `low` to `high`.
    """
    edges = np.linspace(low, _above(low, high), len(counts) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    best, least = (min(low, 0.0), max(_above(low, high), 0.0)), np.inf
    for share in _SHARES[::-1]:
        first, last = min(low * share, 0.0), max(high * share, 0.0)
        step = (last - first) / 255 or 1e-9
        zero = np.round(-first / step)
        rounded = (np.clip(np.round(centres / step) + zero, 0, 255) - zero) * step
        error = float((counts * (centres - rounded) ** 2).sum())
        if error < least:
            best, least = (first, last), error
    return best
