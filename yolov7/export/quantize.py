"""Int8 graphs: convolutions in eight bits, with ranges measured on real images, and the decoding in float.

A convolution's input and output get one range each, its weights one per output channel; the operators between two such
convolutions work on the bytes as well. What makes boxes and probabilities stays in float: the last convolutions, whose
outputs are coordinates and logits, and everything behind them.

Weights use seven of the eight bits. On processors without dot products of bytes (VNNI), sums of two products of eight
bits overflow the sixteen they are added in; with seven, one file gives the same results everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import onnx
import onnxruntime

from yolov7.errors import DataError, ModelError
from yolov7.predict.runtimes import scaled_parts

Placement = Literal["onnx", "openvino"]
"""Where bytes are: ONNX Runtime works on them from convolution to convolution, so each operator between gets ranges;
OpenVINO joins a convolution with what follows and asks for ranges at the convolutions' inputs only."""
Ranges = dict[str, tuple[float, float]]
"""Value name -> smallest and largest number that eight bits are to hold."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_JOINING = ("Add", "Mul", "Concat")
"""Operators of which every input is a value; of all others only the first one is, the rest are sizes and weights."""
_BETWEEN = (
    *_JOINING,
    *("Relu", "LeakyRelu", "Sigmoid"),
    *("MaxPool", "AveragePool", "Resize"),
    *("Slice", "Split", "Transpose", "Reshape"),
)
"""Operators that may work on bytes, between convolutions."""
_BINS = 2048
_SAMPLES = 1 << 14
"""Numbers of one value and image that go into its histogram, at even distances."""
_SHARES = np.linspace(0.1, 1.0, 91)
"""Shares of the observed range that are tried."""


def quantizable(graph: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that may go to eight bits, from input to output: all but the last of every path.

    A path ends at an operator that cannot work on bytes: what comes behind a Softmax, say, is no feature map.
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
    """Ranges of every value that can go to eight bits, from images: uint8 (B, 3, H, W) RGB, gone through twice.

    Of each value a histogram is made, and the part of its range is taken whose rounding to 256 steps and cutting of
    what lies outside give the smallest mean squared error. Raises :class:`DataError` without images, and
    :class:`ModelError` for values that are not finite.
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
    """A copy of `graph` with these convolutions in eight bits (operators QuantizeLinear and DequantizeLinear)."""
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
    """Operators fed by eight-bit values alone, and on the way to another convolution."""
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
    """The graph with all these values among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    present = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _outputs(
    session: onnxruntime.InferenceSession, names: list[str], batches: Iterable[np.ndarray]
) -> Iterator[list[np.ndarray]]:
    """The values of one image after another: all of a batch at once would be gigabytes."""
    images = session.get_inputs()[0].name
    inside = [name for name in names if name != images]
    for batch in batches:
        for one in scaled_parts(batch, 1):
            values = dict(zip(inside, session.run(inside, {images: one}), strict=True))
            yield [one if name == images else values[name] for name in names]


def _above(low: float, high: float) -> float:
    """An upper end that makes a range of some width of a constant."""
    return high if high > low else low + 1e-6


def best_range(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The part of `low` to `high`, zero included, with the smallest mean squared error in 256 steps.

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
