"""Int8 graphs: convolutions in eight bits, and decoding in float.

A convolution's input has one range, its weights one per output channel. The last convolutions, whose outputs are
coordinates and logits, and all of the decoding stay in float. Where the runtime works on bytes from convolution to
convolution, the values between them are rounded as well (:data:`Placement`).

The numbers in the files are those of :mod:`yolov7.ranges`: for the input of a convolution, scale and zero point of
`steps(low, high)`, as uint8; for its weights, `weight_scales(weight, axis=...)`, as int8 whose products with two
neighbouring values fit in sixteen bits, rounded to the nearest or by :mod:`yolov7.export.compensate`. Biases are whole
numbers of int32 times both scales. (ONNX Runtime's quantiser raises the scale of a channel whose bias would not fit:
one with next to no weights.) For TensorRT both are int8 with the zero point 0, of the scales `max(-low, high) / 127`
and `full_weight_scales(weight, axis=...)`; biases are float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx

from yolov7.errors import ModelError
from yolov7.export.kernels import (
    compute_in_float,
    fuse_silus,
    in_float,
    means_as_convolutions,
    plain_means,
    readers,
    silus,
)
from yolov7.ranges import Range, full_weight_scales, steps, weight_scales

Placement = Literal["onnx", "openvino", "tensorrt"]
"""Which values are quantised. ONNX Runtime works on bytes from convolution to convolution, so every operator between
them needs ranges (exceptions: :mod:`yolov7.export.kernels`); OpenVINO and TensorRT fuse a convolution with the
operators behind it and need ranges at its inputs only. TensorRT takes symmetric ranges only, and moves them across
pools and concatenations itself."""
Ranges = dict[str, Range]
"""Value name -> smallest and largest number to represent in eight bits."""

CONVOLUTIONS = ("Conv", "ConvTranspose")
PASSING = ("MaxPool", "AveragePool", "Resize", "Slice", "Split", "Transpose", "Reshape")
"""Operators whose outputs have the scale of their input in ONNX Runtime's files, whatever the outputs' ranges."""
_JOINING = ("Add", "Mul", "Concat")
"""Operators whose inputs are all values. Others read one value first; their further inputs are sizes and weights."""
_BETWEEN = (*_JOINING, "Relu", "LeakyRelu", "Sigmoid", *PASSING)
"""Operators that can work on bytes."""


def quantizable(graph: onnx.ModelProto) -> list[str]:
    """Names of the convolutions that can be quantised, from input to output: all but the last of every path.

    A path ends at an operator that cannot work on bytes, such as the Softmax in front of a distribution's sum.
    """
    feeds_convolution: set[str] = set()
    names = []
    for node in reversed(graph.graph.node):  # a graph is sorted: what uses a value comes after it
        leads_on = not feeds_convolution.isdisjoint(node.output)
        if node.op_type in CONVOLUTIONS and leads_on:
            names.append(node.name)
        if node.op_type in CONVOLUTIONS or (node.op_type in _BETWEEN and leads_on):
            feeds_convolution.update(_values_read(node))
    return names[::-1]


def values_between(graph: onnx.ModelProto) -> list[str]:
    """The images, and every value on a path between convolutions, from input to output."""
    wanted: set[str] = set()
    constants = {constant.name for constant in graph.graph.initializer}
    for node in reversed(graph.graph.node):
        between = node.op_type in _BETWEEN and not wanted.isdisjoint(node.output)
        if node.op_type in CONVOLUTIONS or between:
            wanted.update(_values_read(node))
    made = [graph.graph.input[0].name, *(value for node in graph.graph.node for value in node.output)]
    return [value for value in made if value in wanted - constants]


def layer_names(graph: onnx.ModelProto) -> dict[str, str]:
    """Name of a convolution in the graph -> its name in the network (`backbone.stem.conv`)."""
    return {
        node.name: node.input[1].removeprefix("head/").removeprefix("model.").removesuffix(".weight")
        for node in graph.graph.node
        if node.op_type in CONVOLUTIONS
    }


def quantized(
    graph: onnx.ModelProto,
    convolutions: Iterable[str],
    ranges: Ranges,
    *,
    placement: Placement = "onnx",
    exact: Collection[str] = (),
    weights: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """A copy of `graph` with these convolutions quantised (operators QuantizeLinear and DequantizeLinear).

    `weights` replace those of the graph, by name, where only these convolutions read them
    (:mod:`yolov7.export.compensate`).

    `exact` are values that convolutions read rounded by their own range, as in a training that learnt it. An operator
    that would pass on its input's range then works in float where the two differ; and where only convolutions are in
    eight bits, no other operator reads the rounded value. Raises :class:`ModelError` for a convolution whose input has
    no range.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    chosen = set(convolutions)
    _require_ranges(graph, chosen, ranges)
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    del copy.metadata_props[:]
    if not chosen:
        return copy
    _replace(copy, chosen, weights or {})
    between, floats, means = list[onnx.NodeProto](), set[str](), dict[str, int]()
    if placement == "onnx":
        means = plain_means(graph)
        ranges = _moved_together(graph, ranges, means)
        floats = in_float(graph, chosen)
        between = _between(graph, chosen, ranges, exact, floats, means)
        means = {node.name: means[node.name] for node in between if node.name in means}
        means_as_convolutions(copy, means)
    before = {node.input[0]: ranges[node.output[0]] for node in _only_readers(graph) if _cuts(node, ranges)}
    extents = {name: (np.float32(low), np.float32(high)) for name, (low, high) in {**ranges, **before}.items()}
    symmetric = placement == "tensorrt"
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, extents),
        nodes_to_quantize=[*chosen, *(node.name for node in between)],
        nodes_to_exclude=[],
        op_types_to_quantize=[*CONVOLUTIONS, *_BETWEEN],
        extra_options={
            **_options(placement),
            "TensorQuantOverrides": _weights(copy, graph, chosen.union(means), placement),
        },
    )
    result: onnx.ModelProto = quantizer.quantize_model()
    if placement != "onnx":
        _read_only_by(result, chosen, ranges, None if placement == "tensorrt" else exact)
    quantizer.model.topological_sort()
    if placement == "onnx":
        compute_in_float(result, floats)
        fuse_silus(result)
    return result


def _options(placement: Placement) -> dict[str, Any]:
    options: dict[str, Any] = {"ActivationSymmetric": False, "WeightSymmetric": True}
    if placement == "onnx":
        options["ForceQuantizeNoInputCheck"] = True  # pools and splits behind a SiLU, which is in float
    else:
        options["OpTypesToExcludeOutputQuantization"] = list(CONVOLUTIONS)
    if placement == "tensorrt":
        # Its parser wants pairs at the weights, which stay float in the file, and takes no biases in int32.
        options |= {"ActivationSymmetric": True, "AddQDQPairToWeight": True, "QuantizeBias": False}
    return options


def _weights(
    graph: onnx.ModelProto, original: onnx.ModelProto, chosen: set[str], placement: Placement
) -> dict[str, list[dict[str, Any]]]:
    """Scale of every output channel of the weights of these convolutions, as the quantiser takes them: of the weights
    in the `original`, where it has them; those in their places are whole steps of these scales."""
    constants = {constant.name: constant for one in (graph, original) for constant in one.graph.initializer}
    scales_of = scales_for(placement)
    found = {}
    for node in graph.graph.node:
        if node.name in chosen:
            axis = 1 if node.op_type == "ConvTranspose" else 0
            scales = scales_of(onnx.numpy_helper.to_array(constants[node.input[1]]), axis=axis)
            found[node.input[1]] = [{"axis": axis, "scale": scale, "zero_point": np.int8(0)} for scale in scales]
    return found


def scales_for(placement: Placement) -> Callable[..., np.ndarray]:
    """Scales of a weight by its output channels, `axis`, for files of this placement."""
    return full_weight_scales if placement == "tensorrt" else weight_scales


def _replace(graph: onnx.ModelProto, chosen: set[str], weights: Mapping[str, np.ndarray]) -> None:
    others = {name for node in graph.graph.node if node.name not in chosen for name in node.input}
    for constant in graph.graph.initializer:
        if constant.name in weights and constant.name not in others:
            constant.CopyFrom(onnx.numpy_helper.from_array(weights[constant.name], constant.name))


def _require_ranges(graph: onnx.ModelProto, chosen: set[str], ranges: Ranges) -> None:
    for node in graph.graph.node:
        if node.name in chosen and node.input[0] not in ranges:
            layer = layer_names(graph)[node.name]
            raise ModelError(f"int8: the input of {layer} has no range; calibrate the graph that is quantised")


def _read_only_by(graph: onnx.ModelProto, chosen: set[str], ranges: Ranges, values: Collection[str] | None) -> None:
    """Of `values` (None: all), let only the convolutions read what was rounded, as in a training that rounds there.

    Operators that only move numbers within one range may keep it: rounding behind them gives the same.
    """
    made_by = {value: node for node in graph.graph.node for value in node.output}
    for node in graph.graph.node:
        if node.name in chosen or node.op_type == "DequantizeLinear":
            continue
        moves = node.op_type in (*PASSING, "Concat") and node.op_type != "AveragePool"
        for position, name in enumerate(node.input):
            if name not in made_by or made_by[name].op_type != "DequantizeLinear":
                continue
            value = made_by[made_by[name].input[0]].input[0]
            if values is not None and value not in values:
                continue
            if not (moves and all(ranges.get(out) == ranges[value] for out in node.output)):
                node.input[position] = value


def _only_readers(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The Relus that alone read their input."""
    return [node for nodes in readers(graph).values() if len(nodes) == 1 for node in nodes if node.op_type == "Relu"]


def _between(
    graph: onnx.ModelProto,
    chosen: set[str],
    ranges: Ranges,
    exact: Collection[str],
    floats: set[str],
    means: Collection[str],
) -> list[onnx.NodeProto]:
    """Operators that work on bytes: on the way to another convolution, with all inputs rounded. `floats` are
    convolutions whose outputs stay in float, `means` pools that become convolutions."""
    body = set(values_between(graph))
    constants = {constant.name for constant in graph.graph.initializer}
    of_silu = {part.name for pair in silus(graph) for part in pair}
    rounded: set[str] = set()
    not_rounded: set[str] = set()
    nodes = []
    for node in graph.graph.node:
        fits = node.op_type in _BETWEEN and not body.isdisjoint(node.output)
        fits = fits and set(_values_read(node)) - constants <= rounded
        if fits and node.op_type in PASSING and node.name not in means:
            fits = all(ranges[name] == ranges[node.input[0]] for name in node.output if name in exact)
        if node.name in chosen or fits:
            rounded.update(node.output)
        if node.name in floats:
            not_rounded.update(node.output)
        if fits and not (_cuts(node, ranges) or node.name in of_silu or not_rounded.intersection(node.input)):
            nodes.append(node)
    return nodes


def _moved_together(graph: onnx.ModelProto, ranges: Ranges, means: Collection[str]) -> Ranges:
    """Give values that are only moved into one concatenation its range, so that they are rounded once, not twice.
    Pools of `means` become convolutions, which do not move values."""
    users, found = readers(graph), Ranges()

    def wanted(node: onnx.NodeProto) -> Range | None:
        if node.op_type == "Concat":
            return found.get(node.output[0], ranges.get(node.output[0]))
        moved = {found.get(name) for name in node.output} if node.op_type in PASSING else {None}
        return None if node.name in means or len(moved) > 1 else moved.pop()

    for node in reversed(graph.graph.node):
        for name in node.output:
            ends = {wanted(user) for user in users.get(name, ())}
            end = ends.pop() if name in ranges and len(ends) == 1 else None
            if end is not None and not (node.op_type == "Relu" and steps(*end)[1] != 0):  # that Relu would have to stay
                found[name] = end
    return {**ranges, **found}


def _cuts(node: onnx.NodeProto, ranges: Ranges) -> bool:
    """A Relu whose output has a range below zero, shared or learnt. The quantiser drops a Relu that it is given,
    because the clipping to a range from zero does the same; this one has to stay."""
    return node.op_type == "Relu" and steps(*ranges.get(node.output[0], (0.0, 0.0)))[1] != 0


def _values_read(node: onnx.NodeProto) -> Sequence[str]:
    return node.input if node.op_type in _JOINING else node.input[:1]
