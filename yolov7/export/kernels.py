"""Int8 graphs rewritten for ONNX Runtime's CPU kernels.

* SiLU: two passes in bytes (a table for Sigmoid, then a product); one in float, `QuickGelu`. Rounding before and after
  included, float is faster, and more accurate because the gate is not rounded.
* AveragePool: slow in bytes. As a depthwise convolution with equal weights it is fast, with the same numbers.
* The convolution of the images: three channels do not fill the int8 kernel. It computes the rounded values in float.

Measurements: docs/benchmarks.md, "Int8 of a narrow network".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "com.microsoft"
"""Of ONNX Runtime's own operators."""
FEW_CHANNELS = 4
"""Up to this many input channels, a convolution is slower in int8."""


def readers(graph: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Value -> the operators that read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def silus(graph: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Pairs of a Sigmoid and the Mul with the Sigmoid's input; nothing else reads the Sigmoid."""
    users, found = readers(graph), []
    for node in graph.graph.node:
        behind = users.get(node.output[0], [])
        if node.op_type != "Sigmoid" or [user.op_type for user in behind] != ["Mul"]:
            continue
        if sorted(behind[0].input) == sorted((node.input[0], node.output[0])):
            found.append((node, behind[0]))
    return found


def in_float(graph: onnx.ModelProto, convolutions: Collection[str]) -> set[str]:
    """Those of `convolutions` that should compute rounded values and weights in float: few input channels, and only a
    SiLU or LeakyRelu behind them. (Relu is free in int8: clipping to a range from zero does the same.)"""
    users = readers(graph)
    of_silu = {part.name for pair in silus(graph) for part in pair}
    inputs = {tensor.name: tensor.dims[1] for tensor in graph.graph.initializer if len(tensor.dims) == 4}
    return {
        node.name
        for node in graph.graph.node
        if node.name in convolutions
        and node.op_type == "Conv"
        and inputs.get(node.input[1], FEW_CHANNELS + 1) <= FEW_CHANNELS
        and all(user.name in of_silu or user.op_type == "LeakyRelu" for user in users.get(node.output[0], []))
    }


def is_plain_mean(node: onnx.NodeProto) -> bool:
    """True for an AveragePool without padding, all of whose outputs are means of equally many pixels."""
    known = {"kernel_shape", "strides", "pads", "ceil_mode", "count_include_pad", "auto_pad", "dilations"}
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return (
        node.op_type == "AveragePool"
        and set(values) <= known
        and len(values["kernel_shape"]) == 2
        and not any(values.get("pads", ()))
        and not values.get("ceil_mode", 0)
        and values.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and all(step == 1 for step in values.get("dilations", ()))
    )


def plain_means(graph: onnx.ModelProto) -> dict[str, int]:
    """Names of the AveragePools that can be convolutions (:func:`is_plain_mean`) -> their channels. Pools whose number
    of channels shape inference does not know are left out."""
    nodes = [node for node in graph.graph.node if is_plain_mean(node)]
    if not nodes:
        return {}
    channels = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in onnx.shape_inference.infer_shapes(graph).graph.value_info
        if len(value.type.tensor_type.shape.dim) > 1
    }
    return {node.name: channels[node.input[0]] for node in nodes if channels.get(node.input[0])}


def means_as_convolutions(graph: onnx.ModelProto, means: Mapping[str, int]) -> None:
    """Turn these AveragePools (:func:`plain_means`) into depthwise convolutions, whose equal weights int8 represents
    exactly."""
    for node in graph.graph.node:
        if node.name not in means:
            continue
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        kernel, channels = list(values["kernel_shape"]), means[node.name]
        weight = np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
        graph.graph.initializer.append(numpy_helper.from_array(weight, f"{node.name}.weight"))
        strides = list(values.get("strides", (1, 1)))
        inputs, outputs = [node.input[0], f"{node.name}.weight"], list(node.output)
        node.CopyFrom(
            helper.make_node("Conv", inputs, outputs, node.name, kernel_shape=kernel, strides=strides, group=channels)
        )


def compute_in_float(graph: onnx.ModelProto, convolutions: Collection[str]) -> None:
    """Make these convolutions of a quantised graph return float: remove the rounding of their outputs, and store their
    rounded weights and biases as float."""
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    made_by = {value: node for node in graph.graph.node for value in node.output}
    unused: list[onnx.NodeProto] = []
    floats: dict[str, onnx.NodeProto] = {}
    for node in graph.graph.node:
        if node.name not in convolutions:
            continue
        for position, name in enumerate(node.input[1:], 1):
            node.input[position] = f"{name}.float"
            if name in floats:
                continue  # shared by two convolutions
            back = floats[name] = made_by[name]
            numbers, scale = (numpy_helper.to_array(constants[part]) for part in back.input[:2])
            scale = scale.reshape(-1, *[1] * (numbers.ndim - 1))
            graph.graph.initializer.append(numpy_helper.from_array(numbers.astype(np.float32) * scale, f"{name}.float"))
        unused += _bypassed(graph, node.output[0])
    read = readers(graph)  # a convolution in bytes may share the weight
    _remove(graph, [*unused, *(back for name, back in floats.items() if name not in read)])


def fuse_silus(graph: onnx.ModelProto) -> None:
    """Replace each SiLU of dequantised values by QuickGelu. A function in the file defines the operator for runtimes
    that lack it."""
    made_by = {value: node for node in graph.graph.node for value in node.output}
    unused = []
    for sigmoid, product in silus(graph):
        source = made_by.get(sigmoid.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            continue  # ONNX Runtime fuses it by itself; DequantizeLinear keeps it from doing so
        inputs, outputs = [sigmoid.input[0]], list(product.output)
        product.CopyFrom(helper.make_node("QuickGelu", inputs, outputs, product.name, domain=DOMAIN, alpha=1.0))
        unused.append(sigmoid)
    if not unused:
        return
    _remove(graph, unused)
    standard = next(entry for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
    if all(entry.domain != DOMAIN for entry in graph.opset_import):
        graph.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    graph.functions.append(_quick_gelu(standard))


def _quick_gelu(opset: onnx.OperatorSetIdProto) -> onnx.FunctionProto:
    """x * sigmoid(alpha * x)."""
    factor = helper.make_node("Constant", [], ["factor"])
    kind = onnx.AttributeProto.FLOAT
    factor.attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="alpha", type=kind))
    body = [
        factor,
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("Sigmoid", ["scaled"], ["gate"]),
        helper.make_node("Mul", ["x", "gate"], ["y"]),
    ]
    return helper.make_function(DOMAIN, "QuickGelu", ["x"], ["y"], body, [opset], attributes=["alpha"])


def _bypassed(graph: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    """Let all readers of the rounded `value` read it unrounded. Returns the operators of the rounding, now unused."""
    unused, stale = [], {value}
    for node in graph.graph.node:
        rounds = (node.op_type, *node.input[:1]) == ("QuantizeLinear", value)
        if rounds or (node.op_type == "DequantizeLinear" and node.input[0] in stale):
            unused.append(node)
            stale.update(node.output)
            continue
        for position, name in enumerate(node.input):
            if name in stale:
                node.input[position] = value
    return unused


def _remove(graph: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Remove operators, and constants that nothing else reads."""
    gone = {value for node in nodes for value in node.output}
    read_by_gone = {name for node in nodes for name in node.input}
    kept = [node for node in graph.graph.node if gone.isdisjoint(node.output)]
    read = {name for node in kept for name in node.input}
    constants = [tensor for tensor in graph.graph.initializer if tensor.name not in read_by_gone - read]
    del graph.graph.node[:], graph.graph.initializer[:]
    graph.graph.node.extend(kept)
    graph.graph.initializer.extend(constants)
