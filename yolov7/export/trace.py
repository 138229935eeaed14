"""A detector's graph through PyTorch's exporter.

Dynamic sides make the exporter slow: it carries every height and width along as a formula. Backbone and neck do not
depend on their sides (convolutions, concatenations, resizing by a factor), so they are traced at fixed sides, and only
the head, which works by cell, at dynamic ones; then the two graphs are merged. The result is run at other sides than
those of the trace, and must agree with PyTorch there.

One `torch.onnx.export` with dynamic shapes of the whole network gives the same nodes, but takes 36 instead of 20
seconds for yolov7-tiny and 48 instead of 34 for yolov7-w6, and other bytes than earlier revisions wrote.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import numpy as np
import onnx
import torch
from onnx import compose
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model.detector import Detector
from yolov7.model.spec import HeadModule
from yolov7.predict.runtimes import onnx_session

PRODUCER = "yolov7-pipeline"

Output = Literal["decoded", "raw"]
"""`detections`: decoded predictions; or `map_0`, `map_1`...: the raw maps of the lead levels."""

# Differences of float32; a graph that took a side for a constant is off by whole cells.
_BOX_TOLERANCE = 0.02
_PROBABILITY_TOLERANCE = 1e-4
_LOGIT_TOLERANCE = 2e-3


class _Body(nn.Module):
    """Backbone and neck: images -> the maps the head reads."""

    def __init__(self, model: Detector):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.features(images).values())


class _Head(nn.Module):
    """The maps -> decoded predictions, or the raw maps of the lead levels."""

    def __init__(self, model: Detector, names: tuple[str, ...], output: Output):
        super().__init__()
        self.head = model.head
        self.names, self.output = names, output

    def forward(self, *maps: Tensor) -> Tensor | tuple[Tensor, ...]:
        head = cast(HeadModule, self.head)
        leads = head.leads(dict(zip(self.names, maps, strict=True)))
        return head.decode(leads) if self.output == "decoded" else tuple(leads)


class _Raw(nn.Module):
    """Images -> the raw maps of the lead levels."""

    def __init__(self, model: Detector):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return _raw(self.model, images)


def _raw(model: Detector, images: Tensor) -> tuple[Tensor, ...]:
    return tuple(cast(HeadModule, model.head).leads(model.features(images)))


def output_names(model: Detector, output: Output) -> list[str]:
    """Names of a graph's outputs."""
    return ["detections"] if output == "decoded" else [f"map_{level}" for level in range(len(model.strides))]


def trace_fixed(model: Detector, height: int, width: int, opset: int, output: Output) -> onnx.ModelProto:
    """The graph for one image of `height` x `width`: every constant that follows from the sides is computed now."""
    example, names = (torch.zeros(1, 3, height, width),), output_names(model, output)
    return _lean(_export(model if output == "decoded" else _Raw(model), example, opset, ["images"], names))


def trace_dynamic(model: Detector, opset: int, output: Output) -> onnx.ModelProto:
    """The graph for any batch size and any sides that are multiples of the stride.

    Raises :class:`ModelError` for a network whose backbone or neck depends on its sides.
    """
    # Three different numbers, so that the exporter does not merge two of them.
    example = torch.zeros(2, 3, 3 * model.stride, 4 * model.stride)
    with torch.no_grad():
        maps = model.features(example)
    names = output_names(model, output)
    body = _export(_Body(model), (example,), opset, ["images"], [f"map_{name}" for name in maps])
    head = _traced_head(model, maps, opset, output)
    graph = compose.merge_models(
        body,
        compose.add_prefix(head, "head/"),
        io_map=[(f"map_{name}", f"head/map_{name}") for name in maps],
        outputs=[f"head/{name}" for name in names],
    )
    graph = _lean(graph)
    _one_operator_set(graph)
    for name in names:
        rename_value(graph, f"head/{name}", name)
    _name_dimensions(graph, output)
    _check_other_sides(model, graph, output)
    return graph


def rename_value(graph: onnx.ModelProto, old: str, new: str) -> None:
    """Rename a value wherever it is computed, read or an output."""
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for output in graph.graph.output:
        if output.name == old:
            output.name = new


def _one_operator_set(graph: onnx.ModelProto) -> None:
    """Merging graphs lists the operator set of each."""
    versions = sorted({(entry.domain, entry.version) for entry in graph.opset_import})
    del graph.opset_import[:]
    graph.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions)


def _traced_head(model: Detector, maps: Mapping[str, Tensor], opset: int, output: Output) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1)
    open_sides = tuple(
        {0: batch, 2: torch.export.Dim(f"height_{i}", min=1), 3: torch.export.Dim(f"width_{i}", min=1)}
        for i in range(len(maps))
    )
    names = [f"map_{name}" for name in maps]
    head, outputs = _Head(model, tuple(maps), output), output_names(model, output)
    return _export(head, tuple(maps.values()), opset, names, outputs, dynamic_shapes=(open_sides,))


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    opset: int,
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: Any = None,
) -> onnx.ModelProto:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=dynamic_shapes,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    return graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns and logs about packages that are not installed and about its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _lean(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the exporter's remarks: source lines and paths of the exporting machine, inferred shapes."""
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del graph.graph.metadata_props[:], graph.graph.value_info[:], graph.metadata_props[:]
    graph.graph.doc_string = graph.doc_string = ""
    graph.graph.name = "detector"
    graph.producer_name, graph.producer_version = PRODUCER, ""
    return graph


def _name_dimensions(graph: onnx.ModelProto, output: Output) -> None:
    """Open batch, height and width at the input, and readable names in place of the exporter's formulas."""
    inputs = graph.graph.input[0].type.tensor_type.shape.dim
    for dimension, name in ((inputs[0], "batch"), (inputs[2], "height"), (inputs[3], "width")):
        dimension.dim_param = name
    for value in graph.graph.output:
        dimensions = value.type.tensor_type.shape.dim
        dimensions[0].dim_param = "batch"
        if output == "decoded":
            dimensions[1].dim_param = "predictions"
        else:
            for dimension, side in zip([d for d in dimensions if d.dim_param][1:], ("rows", "columns"), strict=True):
                dimension.dim_param = f"{value.name}_{side}"


def _check_other_sides(model: Detector, graph: onnx.ModelProto, output: Output) -> None:
    session = onnx_session(graph)
    for batch, rows, columns in ((1, 5, 2), (3, 1, 1)):
        side = model.stride
        images = np.random.default_rng(0).random((batch, 3, rows * side, columns * side), dtype=np.float32)
        with torch.no_grad():
            tensor = torch.from_numpy(images)
            expected = (model(tensor),) if output == "decoded" else _raw(model, tensor)
        found = session.run(output_names(model, output), {"images": images})
        for ours, theirs in zip(found, expected, strict=True):
            if not _agree(ours, theirs.numpy(), output):
                raise ModelError(
                    f"{model.variant}: its graph does not follow the image's sides, a block depends on them; "
                    "export with dynamic=False"
                )


def _agree(found: np.ndarray, expected: np.ndarray, output: Output) -> bool:
    if found.shape != expected.shape:
        return False
    if output == "raw":
        return np.allclose(found, expected, rtol=1e-4, atol=_LOGIT_TOLERANCE)
    boxes = np.allclose(found[..., :4], expected[..., :4], rtol=1e-4, atol=_BOX_TOLERANCE)
    return boxes and np.allclose(found[..., 4:], expected[..., 4:], rtol=0, atol=_PROBABILITY_TOLERANCE)
