"""Ranges of a graph's values, measured on images (:mod:`yolov7.ranges`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx
import onnxruntime

from yolov7.config import RangeMethod
from yolov7.data.calibration import checked
from yolov7.errors import ModelError
from yolov7.export.quantize import CONVOLUTIONS, PASSING, Ranges, layer_names, values_between
from yolov7.predict.runtimes import onnx_session, scaled_parts
from yolov7.ranges import Histogram, Range, range_of, union

log = logging.getLogger(__name__)

_JOINED = ("Concat", *PASSING)
"""Operators that move numbers and change none (a mean aside): their inputs and outputs can have one range."""
_NAMED = 5
"""Values that a warning names."""


def calibrate(
    graph: onnx.ModelProto, batches: Callable[[], Iterable[np.ndarray]], *, method: RangeMethod = "mse"
) -> Ranges:
    """Measure the range of every value that can be quantised on images, uint8 (B, 3, H, W) RGB.

    Values that are always zero, and images that are all the same, give a warning in one line. Raises
    :class:`DataError` without images and for images of a single colour, and :class:`ModelError` for values that are not
    finite; it names the layer.
    """
    names, places = values_between(graph), _places(graph)
    session = observed(graph, names)
    histograms = [Histogram(f"int8: the {places.get(name, name)}") for name in names]
    for values in outputs(session, names, checked(batches(), "int8")):
        for histogram, value in zip(histograms, values, strict=True):
            histogram.add(value)
    zero = [histogram.name.removeprefix("int8: the ") for histogram in histograms if histogram.is_zero]
    if zero:
        more = f" and {len(zero) - _NAMED} more" if len(zero) > _NAMED else ""
        log.warning(
            "int8: always zero on the calibration images, so without a range of its own: the %s%s",
            ", the ".join(zero[:_NAMED]),
            more,
        )
    return {name: range_of(histogram, method) for name, histogram in zip(names, histograms, strict=True)}


def shared(graph: onnx.ModelProto, ranges: Ranges) -> Ranges:
    """Every value gets the union of the ranges of all values that it is joined to by operators that compute nothing:
    concatenations, pools, halves, and changes of size or shape. A runtime then moves bytes and rounds none again.

    So are the inputs of a concatenation in the published networks (YOLOv6 paper, section 3.5.2, graph optimisation).
    """
    first = {name: name for name in ranges}

    def group(name: str) -> str:
        while first[name] != name:
            name = first[name]
        return name

    for node in graph.graph.node:
        inputs = node.input if node.op_type == "Concat" else node.input[:1]
        joined = [name for name in (*inputs, *node.output) if name in ranges]
        if node.op_type in _JOINED and len(joined) > 1:
            for name in joined[1:]:
                first[group(name)] = group(joined[0])
    members: dict[str, list[Range]] = {}
    for name in ranges:
        members.setdefault(group(name), []).append(ranges[name])
    unions = {name: union(found) for name, found in members.items()}
    return {name: unions[group(name)] for name in ranges}


def learnt_values(graph: onnx.ModelProto, learnt: Mapping[str, Range]) -> Ranges:
    """Learnt ranges by the value they are of. `learnt` names the weights of the convolutions that read the values, as
    in the graph or the checkpoint (`backbone.stem.conv.weight`).

    Convolutions that read one value round it once, so their ranges become the union of them. Raises
    :class:`ModelError` for the name of no convolution's weight, and a range that is not finite or empty.
    """
    names = {layer: node for node, layer in layer_names(graph).items()}
    weights = {node.input[1]: node for node in graph.graph.node if node.op_type in CONVOLUTIONS}
    by_name = {node.name: node for node in weights.values()}
    found: dict[str, list[Range]] = {}
    for weight, (low, high) in learnt.items():
        node = weights.get(weight) or by_name.get(names.get(weight.removesuffix(".weight"), ""))
        if node is None:
            raise ModelError(
                f"int8: a learnt range is of {weight!r}, which is not the weight of a convolution in the network"
            )
        if not (np.isfinite(low) and np.isfinite(high) and low <= 0 <= high and low < high):
            raise ModelError(f"int8: the learnt range of {weight!r}, {low:g} to {high:g}, is not a range around zero")
        found.setdefault(node.input[0], []).append((float(low), float(high)))
    return {value: union(ranges) for value, ranges in found.items()}


def with_learnt(graph: onnx.ModelProto, ranges: Ranges, learnt: Ranges) -> Ranges:
    """`ranges` with those of `learnt` in their places.

    A value without a learnt range that becomes one by an operator which keeps bytes, such as a pool, gets its range:
    bytes have the same meaning on both sides.
    """
    merged = {**ranges, **learnt}
    known = set(learnt)
    for node in reversed(graph.graph.node):
        if node.op_type in PASSING and node.input[0] in ranges and node.input[0] not in known:
            outputs = [merged[name] for name in node.output if name in known]
            if outputs:
                merged[node.input[0]] = union(outputs)
                known.add(node.input[0])
    return merged


def _places(graph: onnx.ModelProto) -> dict[str, str]:
    """Value -> words for it by the layer that makes it, or that what makes it comes after."""
    layers, found = layer_names(graph), dict[str, str]()
    behind = {graph.graph.input[0].name: ""}
    for node in graph.graph.node:
        before = behind.get(next(iter(node.input), ""), "")
        layer = layers.get(node.name, before)
        for name in node.output:
            behind[name] = layer
            found[name] = (
                f"output of {layer}" if node.name in layers else f"{node.op_type} behind {layer or 'the images'}"
            )
    return found


def observed(graph: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    """A session that returns all these values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    present = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return onnx_session(copy)


def outputs(
    session: onnxruntime.InferenceSession, names: list[str], batches: Iterable[np.ndarray]
) -> Iterator[list[np.ndarray]]:
    """Values image by image: those of a whole batch would take gigabytes."""
    images = session.get_inputs()[0].name
    inside = [name for name in names if name != images]
    for batch in batches:
        for image in scaled_parts(batch, 1):
            found = session.run(inside, {images: image}) if inside else []  # no names would mean all outputs
            values = dict(zip(inside, found, strict=True))
            yield [image if name == images else values[name] for name in names]
