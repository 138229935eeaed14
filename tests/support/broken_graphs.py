"""Ways to break an exported graph, for tests of the verification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from yolov7.data.index import Index
from yolov7.export import FLOAT16, INT8, VerifyLimits, export_openvino
from yolov7.export.calibrate import calibrate
from yolov7.export.onnx import described, write_graph
from yolov7.export.quantize import quantizable, quantized
from yolov7.export.samples import Samples
from yolov7.model import Detector
from yolov7.predict import open_onnx


def first_node(graph: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Put `node`, which reads `images` and makes `changed`, before everything else."""
    for other in graph.graph.node:
        for i, name in enumerate(other.input):
            if name == "images":
                other.input[i] = "changed"
    graph.graph.node.insert(0, node)


def swapped_channels(graph: onnx.ModelProto) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    first_node(graph, helper.make_node("Gather", ["images", "bgr"], ["changed"], axis=1))


def scaled_again(graph: onnx.ModelProto) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.array(255, np.float32), "scale"))
    first_node(graph, helper.make_node("Div", ["images", "scale"], ["changed"]))


def standardised(graph: onnx.ModelProto) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0.45, np.float32), "mean"))
    first_node(graph, helper.make_node("Sub", ["images", "mean"], ["changed"]))


def missing_fold(graph: onnx.ModelProto) -> None:
    """One batch norm's shift left out: the first bias is zero."""
    node = next(n for n in graph.graph.node if n.op_type == "Conv")
    tensor = next(t for t in graph.graph.initializer if t.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))


def nan_in_a_weight(graph: onnx.ModelProto) -> None:
    node = next(n for n in graph.graph.node if n.op_type == "Conv")
    tensor = next(t for t in graph.graph.initializer if t.name == node.input[2])
    values = numpy_helper.to_array(tensor).copy()
    values[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def broken(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    graph = onnx.load(source)
    change(graph)
    onnx.save(graph, target)
    return target


def further_files(
    decoded: Path, folder: Path, index: Index, *, layers: int = 0
) -> dict[str, tuple[Path, VerifyLimits]]:
    """The graph as OpenVINO files of both precisions and in int8, the last `layers` or all, with the limits they are
    held to.
    """
    graph = onnx.load(decoded)
    metadata, contract = described(graph)
    samples = Samples(index, range(len(index)), open_onnx(decoded), batch_size=1)
    ranges = calibrate(graph, lambda: (batch.numpy() for _, _, batch in samples.batches()))
    write_graph(folder / "int8.onnx", quantized(graph, quantizable(graph)[-layers:], ranges), metadata, contract)
    export_openvino(decoded, folder / "full.xml")
    export_openvino(decoded, folder / "half.xml", half=True)
    return {
        "openvino": (folder / "full.xml", VerifyLimits()),
        "openvino-float16": (folder / "half.xml", FLOAT16),
        # AP of six images with a hundred boxes swings more than that of a validation set.
        "onnx-int8": (folder / "int8.onnx", replace(INT8, ap_difference=0.15)),
    }


def with_weights_of(graph: onnx.ModelProto, good: Detector, bad: Detector) -> None:
    """Put the weights of `bad` into the graph of `good`, both in deploy form."""
    theirs = bad.state_dict()
    changed = {name: tensor for name, tensor in good.state_dict().items() if not tensor.equal(theirs[name])}
    found = set()
    for constant in graph.graph.initializer:
        values = numpy_helper.to_array(constant)
        for name, tensor in changed.items():
            if values.size == tensor.numel() and np.array_equal(values.ravel(), tensor.numpy().ravel()):
                other = theirs[name].numpy().reshape(values.shape)
                constant.CopyFrom(numpy_helper.from_array(other, constant.name))
                found.add(name)
                break
    assert found == changed.keys(), "the graph holds other weights"
