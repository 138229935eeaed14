"""ONNX files that end at the head's raw maps, for runtimes that decode by themselves."""

from __future__ import annotations

import os
from typing import cast

import onnx

from yolov7.export.onnx import MIN_OPSET, traced, write_graph
from yolov7.export.trace import output_names
from yolov7.model.checkpoint import ModelMetadata
from yolov7.model.detector import Detector
from yolov7.model.spec import HeadModule


def export_onnx_raw(
    model: Detector,
    path: str | os.PathLike[str],
    *,
    metadata: ModelMetadata,
    image_size: int | tuple[int, int] | None = None,
    opset: int = MIN_OPSET,
    dynamic: bool = True,
) -> onnx.ModelProto:
    """Write `model` with the raw maps of its lead levels as outputs `map_0`, `map_1`..., float32, and return the graph.

    Small stride first. Layout, meaning and decoding of the maps are in the contract (`HeadModule.raw_contract`).
    Parameters and errors are those of :func:`yolov7.export.export_onnx`.
    """
    export = traced(model, metadata=metadata, image_size=image_size, opset=opset, dynamic=dynamic, output="raw")
    head = cast(HeadModule, model.head)
    output = {
        "kind": "raw",
        "names": output_names(model, "raw"),
        "type": "float32",
        **head.raw_contract(),
        "score": head.scoring(),
    }
    write_graph(path, export.graph, export.metadata, {"input": export.input, "output": output})
    return export.graph
