"""OpenVINO files from the ONNX graph: an .xml with the graph, and a .bin with the weights, in float32 or float16.

The .xml holds the metadata of the ONNX file and the sha256 of its .bin, so that the pair can be run and checked on its
own. The same graph gives the same bytes. OpenVINO's telemetry is not imported (:mod:`yolov7.predict.openvino_runtime`).
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import onnx

from yolov7.errors import ModelError
from yolov7.export.onnx import described, load_graph
from yolov7.files import sha256_file, write_atomic
from yolov7.predict.about import CONTRACT_KEY, METADATA_KEY
from yolov7.predict.openvino_runtime import WEIGHTS_KEY, first_line, import_openvino, openvino_core


def export_openvino(
    graph: onnx.ModelProto | str | os.PathLike[str], path: str | os.PathLike[str], *, half: bool = False
) -> None:
    """Write a graph of this project (decoded output, suppression inside, or int8) as `path` (.xml) and its .bin.

    `half` stores the weights as float16, half the size; arithmetic stays float32 on processors without float16. Raises
    :class:`ModelError` for a graph that is not of this project or that OpenVINO cannot read, and if the package is not
    installed.
    """
    target = Path(path)
    if target.suffix != ".xml":
        raise ModelError(f"{target}: an OpenVINO file is named .xml; its weights go into the .bin beside it")
    openvino = import_openvino()
    source = load_graph(graph)
    metadata, contract = described(source)
    precision = "float16" if half else contract.get("precision", "float32")
    contract_text = json.dumps({**contract, "precision": precision}, sort_keys=True)
    entries = {METADATA_KEY: metadata.to_json(), CONTRACT_KEY: contract_text}
    bare = onnx.ModelProto()
    bare.CopyFrom(source)
    # OpenVINO would copy these too, under its own name.
    del bare.metadata_props[:]
    target.parent.mkdir(parents=True, exist_ok=True)
    # OpenVINO maps the weights from the file it reads, so the folder must outlive the model.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as folder:
        xml, weights = _written(openvino, bare, entries, Path(folder), half)
        # The weights first: a reader in between finds that they are not those of the old .xml and says so.
        write_atomic(target.with_suffix(".bin"), lambda file: file.write(weights))
        write_atomic(target, lambda file: file.write(xml))


def _written(
    openvino: Any, graph: onnx.ModelProto, entries: dict[str, str], folder: Path, half: bool
) -> tuple[bytes, bytes]:
    """The bytes of .xml and .bin. The second is written first, because the first holds its sha256."""
    onnx.save(graph, folder / "graph.onnx")
    out = folder / "model.xml"
    try:
        model = openvino_core().read_model(os.fspath(folder / "graph.onnx"))
        _rename(model)
        for key, value in entries.items():
            model.set_rt_info(value, [key])
        openvino.save_model(model, os.fspath(out), compress_to_fp16=half)
        model.set_rt_info(sha256_file(out.with_suffix(".bin")), [WEIGHTS_KEY])
        openvino.save_model(model, os.fspath(out), compress_to_fp16=half)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot convert the graph: {first_line(error)}") from None
    return out.read_bytes(), out.with_suffix(".bin").read_bytes()


def _rename(model: Any) -> None:
    """Name nodes by their place: the names OpenVINO invents are numbered across all files of a process."""
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
