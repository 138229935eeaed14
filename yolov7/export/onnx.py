"""ONNX files that describe themselves: decoded output, or detections with the non-maximum suppression inside.

Input of both: `images`, float32 (B, 3, H, W), RGB in [0, 1], sides multiples of the network's stride. The file's
metadata_props describe it as JSON, the model under `yolov7` (ModelMetadata), input and output under `yolov7.contract`,
so a lone file can be run and checked.

The network goes through PyTorch's exporter. The suppression is appended to its graph as a few standard operators, so
both files hold exactly the same network.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import onnx
from google.protobuf.message import DecodeError

from yolov7.errors import ConfigError, ModelError
from yolov7.export.suppression import append_suppression
from yolov7.export.trace import Output, trace_dynamic, trace_fixed
from yolov7.files import write_atomic
from yolov7.letterbox import FILL
from yolov7.metadata import StatedContract, read_stated
from yolov7.model.checkpoint import ModelMetadata
from yolov7.model.detector import Detector
from yolov7.model.spec import HeadModule
from yolov7.nms import Thresholds
from yolov7.predict.about import CONTRACT_KEY, METADATA_KEY
from yolov7.predictions import column_names, contract_scoring

ROW = ("image", "x1", "y1", "x2", "y2", "score", "class")
"""Columns of the output with suppression."""
MIN_OPSET = 18


def export_onnx(
    model: Detector,
    path: str | os.PathLike[str],
    *,
    metadata: ModelMetadata,
    image_size: int | tuple[int, int] | None = None,
    opset: int = MIN_OPSET,
    dynamic: bool = True,
) -> onnx.ModelProto:
    """Write `model` with decoded output `detections`, float32 (B, N, F), and return the graph.

    A training form is re-parameterised first. `dynamic` leaves batch size and sides open; otherwise they are fixed to
    one image of `image_size` (a side or (height, width); default: the metadata's). The contract names the columns and
    says how a score is made of them (:mod:`yolov7.predictions`).
    Raises :class:`ConfigError` for a size that does not fit the network's stride or an unknown operator set,
    :class:`ModelError` if `metadata` describes another model.
    """
    export = traced(model, metadata=metadata, image_size=image_size, opset=opset, dynamic=dynamic, output="decoded")
    head, shape = cast(HeadModule, model.head), export.input["shape"]
    columns = column_names(head.scoring())
    predictions = "predictions" if dynamic else head.predictions(*shape[2:])
    output = {
        "kind": "decoded",
        "name": "detections",
        "type": "float32",
        "shape": [shape[0], predictions, len(columns) + model.num_classes],
        "columns": [*columns, f"{model.num_classes} class probabilities"],
        "order": head.order,
        "boxes": "pixels of the input",
        "score": head.scoring(),
    }
    write_graph(path, export.graph, export.metadata, {"input": export.input, "output": output})
    return export.graph


@dataclass(frozen=True)
class Traced:
    """A network's graph, with the metadata and contract for its file."""

    graph: onnx.ModelProto
    metadata: ModelMetadata
    input: dict[str, Any]
    """The contract's part of that name."""


def traced(
    model: Detector,
    *,
    metadata: ModelMetadata,
    image_size: int | tuple[int, int] | None,
    opset: int,
    dynamic: bool,
    output: Output,
) -> Traced:
    """Trace `model` in deploy form. Parameters and errors are those of :func:`export_onnx`."""
    if not MIN_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise ConfigError(f"opset {opset}: {MIN_OPSET} to {onnx.defs.onnx_opset_version()} can be written")
    if (metadata.variant, metadata.num_classes) != (model.variant, model.num_classes):
        raise ModelError(f"the metadata is of {metadata.variant}, the model is a {model.variant}")
    height, width = _sides(metadata.image_size if image_size is None else image_size, model.stride)
    deploy = (model if model.form == "deploy" else model.reparameterize()).to("cpu").eval()
    graph = trace_dynamic(deploy, opset, output) if dynamic else trace_fixed(deploy, height, width, opset, output)
    deployed = replace(metadata, form="deploy")
    if not dynamic and height == width:
        deployed = replace(deployed, image_size=height)
    return Traced(graph, deployed, _input_contract(model.stride, (height, width), dynamic))


def export_onnx_nms(
    decoded: onnx.ModelProto | str | os.PathLike[str],
    path: str | os.PathLike[str],
    thresholds: Thresholds,
) -> onnx.ModelProto:
    """Append the non-maximum suppression to a graph of :func:`export_onnx`, write it, and return it.

    Output `detections`, float32 (rows, 7): image index, x1, y1, x2, y2 (input pixels), score, class number; image by
    image, by falling score; no rows where nothing exceeds the confidence. Each box is reported with its best class
    only, scored as the decoded file's contract says, and suppresses boxes of its own class.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(load_graph(decoded))
    metadata, contract = described(graph)
    if contract["output"]["kind"] != "decoded":
        raise ModelError(f"a graph with decoded output is needed, this one has {contract['output']['kind']!r}")
    scoring = contract_scoring(contract["output"], metadata.num_classes)
    merged = append_suppression(graph, thresholds, classes=metadata.num_classes, scoring=scoring)
    contract["output"] = {
        "kind": "nms",
        "name": "detections",
        "type": "float32",
        "shape": ["rows", len(ROW)],
        "columns": list(ROW),
        "order": "image, then falling score",
        "boxes": "pixels of the input",
        "classes": "best class of a box only; suppression within a class",
        **asdict(thresholds),
    }
    write_graph(path, merged, replace(metadata, extra={**metadata.extra, "thresholds": asdict(thresholds)}), contract)
    return merged


def contract_of(graph: onnx.ModelProto) -> dict[str, Any]:
    """Contract in the metadata of a graph of this project: its input and output."""
    return described(graph)[1]


def _input_contract(stride: int, sides: tuple[int, int], dynamic: bool) -> dict[str, Any]:
    return {
        "name": "images",
        "type": "float32",
        "shape": ["batch", 3, "height", "width"] if dynamic else [1, 3, *sides],
        "layout": "NCHW",
        "color": "RGB",
        "range": [0.0, 1.0],
        "stride": stride,
        "letterbox": {"fill": FILL, "place": "centre", "shrink": "area", "enlarge": "bilinear"},
    }


def load_graph(graph: onnx.ModelProto | str | os.PathLike[str]) -> onnx.ModelProto:
    """A graph of this project from its file; a loaded graph is returned as it is.

    Raises :class:`ModelError` with the file's name if it is missing, not ONNX, truncated, or of another origin.
    """
    if isinstance(graph, onnx.ModelProto):
        return graph
    path = Path(graph)
    try:
        loaded = onnx.load(os.fspath(path), format="protobuf")  # whatever its suffix
    except (DecodeError, onnx.checker.ValidationError, ValueError):
        raise ModelError(f"{path}: not an ONNX file, or a damaged one") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        described(loaded)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return loaded


def described(graph: onnx.ModelProto) -> tuple[ModelMetadata, dict[str, Any]]:
    """Metadata and contract of a graph of this project; :class:`ModelError` for a graph of another origin."""
    entries = {entry.key: entry.value for entry in graph.metadata_props}
    if METADATA_KEY not in entries or CONTRACT_KEY not in entries:
        raise ModelError("an ONNX graph of this project is expected, with its metadata")
    try:
        contract = read_stated(StatedContract, entries[CONTRACT_KEY])[1]
    except ModelError as error:
        raise ModelError(f"the ONNX graph's contract is damaged: {error}") from None
    return ModelMetadata.from_json(entries[METADATA_KEY]), contract


def write_graph(
    path: str | os.PathLike[str], graph: onnx.ModelProto, metadata: ModelMetadata, contract: dict[str, Any]
) -> None:
    """Attach the description, check the graph, write the file atomically. The same model gives the same bytes."""
    entries = {METADATA_KEY: metadata.to_json(), CONTRACT_KEY: json.dumps(contract, sort_keys=True)}
    onnx.helper.set_model_props(graph, entries)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{Path(path)}: the exported graph is not valid ONNX: {error}") from None
    content = graph.SerializeToString(deterministic=True)
    write_atomic(path, lambda file: file.write(content))


def _sides(image_size: int | tuple[int, int], stride: int) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for side in (height, width):
        if side < stride or side % stride:
            raise ConfigError(
                f"image size {height} x {width}: sides must be multiples of the network's stride {stride}"
            )
    return height, width
