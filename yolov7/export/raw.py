"""The ONNX graph before its decoding: the maps of each level, for runtimes that decode by themselves.

Cut from a graph with decoded output, so it is the very network of that file.
"""

from __future__ import annotations

import os

import onnx
from onnx import TensorProto, helper

from yolov7.errors import ModelError
from yolov7.export.onnx import described, load_graph, write_graph
from yolov7.export.quantize import quantizable
from yolov7.export.trace import rename_value, without_unreachable


def export_onnx_raw(decoded: onnx.ModelProto | str | os.PathLike[str], path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Cut a graph of :func:`export_onnx` before the sigmoids, write it, and return it.

    Outputs `map_0`, `map_1`..., float32 (B, A, h, w, 5 + C), small stride first: box, objectness and class logits of
    each anchor and cell. What makes boxes of them stands in the contract: strides, and anchors in pixels.
    Raises :class:`ModelError` for a graph without decoded output, or whose head has no such maps.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(load_graph(decoded))
    metadata, contract = described(graph)
    if contract["output"]["kind"] != "decoded":
        raise ModelError(f"a graph with decoded output is needed, this one has {contract['output']['kind']!r}")
    maps = _maps(graph)
    if len(maps) != len(metadata.anchors):
        raise ModelError(f"{metadata.variant}: no maps of {len(metadata.anchors)} levels are found in its graph")
    without_unreachable(graph, maps)
    del graph.graph.output[:]
    for number, name in enumerate(maps):
        rename_value(graph, name, f"map_{number}")
        shape = [None, len(metadata.anchors[number]), None, None, 5 + metadata.num_classes]
        graph.graph.output.append(helper.make_tensor_value_info(f"map_{number}", TensorProto.FLOAT, shape))
    contract["output"] = {
        "kind": "raw",
        "names": [f"map_{number}" for number in range(len(maps))],
        "type": "float32",
        "shape": ["batch", "anchors", "rows", "columns", 5 + metadata.num_classes],
        "order": "level (small stride first)",
        "values": "logits, before the sigmoid",
        "anchors": metadata.anchors,
        "decoding": "centre = (2 sigmoid - 0.5 + cell) x stride; side = (2 sigmoid)^2 x anchor, pixels",
    }
    write_graph(path, graph, metadata, contract)
    return graph


def _maps(graph: onnx.ModelProto) -> list[str]:
    """What the sigmoids behind the last convolutions read, in the order of the levels."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    inner = set(quantizable(graph))
    found = []
    for node in graph.graph.node:
        if node.op_type != "Conv" or node.name in inner:
            continue
        value = node.output[0]
        while [reader.op_type for reader in readers.get(value, [])] in (["Reshape"], ["Transpose"]):
            value = readers[value][0].output[0]
        if [reader.op_type for reader in readers.get(value, [])] == ["Sigmoid"]:
            found.append(value)
    return found
