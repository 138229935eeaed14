"""Requirements of export and evaluation: packages, a readable operator set, compatible settings."""

from __future__ import annotations

from importlib.util import find_spec

from stages.preflight.findings import Findings
from stages.project.params import Export, Params
from yolov7.model.variants.borders import published_border
from yolov7.predict.augmented import VIEWS

_ALWAYS = ("onnx", "onnxruntime", "onnxscript", "pycocotools", "mlflow", "pandas")
_OF_FORMAT = {"openvino": "openvino"}
"""Packages by the beginning of a format's name."""


def check_formats(export: Export, found: Findings) -> None:
    """The packages that write and check the files."""
    needed = dict.fromkeys(_ALWAYS, "export and registration")
    needed |= {
        package: f"export.formats: {name}"
        for name in export.formats
        for prefix, package in _OF_FORMAT.items()
        if name.startswith(prefix)
    }
    missing = {package: why for package, why in needed.items() if find_spec(package) is None}
    for package, why in missing.items():
        found.problem(f"{why} needs the package {package}, which is not installed: run `make setup`")


def check_opset(export: Export, found: Findings) -> None:
    """The operator set must be one that ONNX can write and ONNX Runtime can read."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    highest = onnx.defs.onnx_opset_version()
    if export.opset > highest:
        found.problem(f"params.yaml: export.opset: {export.opset} cannot be written; the highest is {highest}")
        return
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", export.opset)], ir_version=10)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
    except (RuntimeError, state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented):
        runtime = onnxruntime.__version__
        found.problem(f"params.yaml: export.opset: ONNX Runtime {runtime} does not read {export.opset}; 18 works")


def check_evaluation(params: Params, found: Findings) -> None:
    """A border without room for an image, and settings of `evaluate` that a file with fixed sides cannot serve."""
    for variant, training in params.trainings.items():
        given = params.evaluate.border.pixels
        pixels = published_border(variant) if given == "published" else given
        if pixels >= training.image_size:
            side = training.image_size
            found.problem(f"params.yaml: evaluate.border.pixels: {pixels} leave no room in {variant}'s input of {side}")
    if params.export.dynamic:
        return
    settings = params.evaluate
    if settings.rectangular:
        found.problem("params.yaml: evaluate.rectangular needs export.dynamic: true")
    views = "all" if settings.augment is True else settings.augment
    if views and any(scale != 1.0 for scale, _ in VIEWS[views]):
        found.problem(f"params.yaml: evaluate.augment: {views} needs export.dynamic: true; `flip` does not")
