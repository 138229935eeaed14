"""TensorRT: a check of graphs against its ONNX parser, and the engine, if the package and a GPU are present.

The check needs neither: it compares a graph with the parser's published restrictions for TensorRT 10. It cannot replace
building the engine, and predicts no speed. An engine fits one kind of GPU and one version of TensorRT, so it is built
where it will run and is never part of an export folder.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from yolov7.device import has_nvidia_gpu
from yolov7.errors import ConfigError, ModelError
from yolov7.export.onnx import described, load_graph
from yolov7.files import write_atomic

REQUIREMENT, SUPPORTED = "tensorrt>=10,<11", 10
"""TensorRT 11 builds strongly typed networks only: `BuilderFlag.FP16` is gone, float16 has to be in the graph."""

MAX_OPSET = 20
"""Newest operator set that every TensorRT 10 reads."""

_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu
Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid HardSwish Identity If
InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM MatMul
Max MaxPool Mean Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow PRelu QuantizeLinear Range
Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round Scan ScatterElements ScatterND Selu Shape
Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_NAMES.split())
"""Operators of the standard domain on the parser's list."""

_TYPES = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.BOOL,
    )
)
_MUST_BE_CONSTANT = {"NonMaxSuppression": (2, 3, 4), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2)}
_MOST_RANKED = 3840
"""Largest k of TopK."""


@dataclass
class TensorrtReport:
    """Result of the static check."""

    problems: list[str] = field(default_factory=list)
    """Reasons for which the parser would refuse the graph."""
    notes: list[str] = field(default_factory=list)
    """Advice for building the engine."""
    operators: dict[str, int] = field(default_factory=dict)
    """Operator -> number of nodes."""

    @property
    def passed(self) -> bool:
        """No problem was found."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """For formats.json."""
        return {"passed": self.passed, "problems": self.problems, "notes": self.notes}


def check_tensorrt(graph: onnx.ModelProto | str | os.PathLike[str]) -> TensorrtReport:
    """Check a graph of this project against the restrictions of TensorRT's ONNX parser.

    Raises :class:`ModelError` for a graph of another project.
    """
    model = load_graph(graph)
    contract = described(model)[1]
    report = TensorrtReport(operators=dict(Counter(node.op_type for node in model.graph.node).most_common()))
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version > MAX_OPSET:
        report.problems.append(f"operator set {version}: TensorRT 10 reads up to {MAX_OPSET}; export with opset 18")
    for domain, name in sorted({(node.domain, node.op_type) for node in model.graph.node}):
        if domain not in ("", "ai.onnx") or name not in OPERATORS:
            report.problems.append(f"operator {domain + '::' if domain else ''}{name} is not on the parser's list")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    _check_types(model, report)
    _check_constants(model, constants, report)
    _check_quantization(model, constants, report)
    _note_ranking(model, constants, report)
    if any(not isinstance(side, int) for side in contract["input"]["shape"]):
        report.notes.append("open batch or sides: the engine needs an optimisation profile (smallest, usual, largest)")
    return report


def build_engine(
    onnx_file: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    half: bool = True,
    batch: tuple[int, int, int] = (1, 1, 8),
    sides: tuple[int, int, int] | None = None,
    workspace: int = 1 << 30,
) -> None:
    """Build an engine for this machine's GPU and write it to `path`.

    `half` allows float16 (beside int8, if the file is of the format onnx-int8-tensorrt); `batch` and `sides` are the
    smallest, usual and largest where the graph leaves them open (sides by default: the model's own image size);
    `workspace` is in bytes. Raises :class:`ModelError` without the package (TensorRT 10) or a GPU, and with the
    parser's message if it refuses the graph.
    """
    tensorrt = _import_tensorrt()
    graph = load_graph(onnx_file)
    metadata, contract = described(graph)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(graph.SerializeToString()):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ModelError(f"{Path(onnx_file)}: TensorRT cannot read it: {' '.join(errors.split())}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, workspace)
    if half:
        config.set_flag(tensorrt.BuilderFlag.FP16)
    if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        config.set_flag(tensorrt.BuilderFlag.INT8)
    shape = contract["input"]["shape"]
    if any(not isinstance(side, int) for side in shape):
        chosen = sides or (metadata.image_size,) * 3
        profile = builder.create_optimization_profile()
        profile.set_shape("images", *profile_shapes(batch, chosen, int(contract["input"]["stride"])))
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ModelError(f"{Path(onnx_file)}: TensorRT built no engine; its log on stderr says why")
    write_atomic(path, lambda file: file.write(bytes(built)))


def profile_shapes(
    batch: tuple[int, int, int], sides: tuple[int, int, int], stride: int
) -> list[tuple[int, int, int, int]]:
    """Smallest, usual and largest input (B, 3, H, W). Raises :class:`ConfigError` for wrong sizes."""
    rises = all(0 < low <= usual <= high for low, usual, high in (batch, sides))
    if not rises or any(side % stride for side in sides):
        raise ConfigError(f"batch {batch}, sides {sides}: smallest, usual, largest; sides multiples of {stride}")
    return [(count, 3, side, side) for count, side in zip(batch, sides, strict=True)]


def _import_tensorrt() -> Any:
    try:
        package = importlib.import_module("tensorrt")
    except ImportError:
        raise ModelError(
            f"TensorRT is not installed: pip install '{REQUIREMENT}' on the machine with the GPU"
        ) from None
    version = str(getattr(package, "__version__", "unknown"))
    if version.split(".")[0] != str(SUPPORTED):
        raise ModelError(
            f"TensorRT {version} cannot build this engine: versions from 11 on have no flag for float16, and earlier "
            f"ones than 10 are untested; pip install '{REQUIREMENT}'"
        )
    if not has_nvidia_gpu():
        raise ModelError("no GPU found: an engine is built on the GPU that will run it")
    return package


def _check_types(model: onnx.ModelProto, report: TensorrtReport) -> None:
    quantised = {name for node in model.graph.node if node.op_type.endswith("uantizeLinear") for name in node.input}
    found = {
        TensorProto.DataType.Name(tensor.data_type)
        for tensor in model.graph.initializer
        if tensor.data_type not in _TYPES and tensor.name not in quantised
    }
    report.problems.extend(f"constants of type {name}: not a type of TensorRT's" for name in sorted(found))


def _check_constants(model: onnx.ModelProto, constants: dict[str, TensorProto], report: TensorrtReport) -> None:
    for node in model.graph.node:
        for position in _MUST_BE_CONSTANT.get(node.op_type, ()):
            if position < len(node.input) and node.input[position] and node.input[position] not in constants:
                report.problems.append(f"{node.op_type} {node.name!r}: input {position} must be a constant")


def _check_quantization(model: onnx.ModelProto, constants: dict[str, TensorProto], report: TensorrtReport) -> None:
    """What the parser demands of QuantizeLinear and DequantizeLinear (onnx-tensorrt, docs/operators.md, and TensorRT's
    guide, "Explicit quantization"): int8, zero points 0, positive scales, scales per channel of weights only."""
    asymmetric, kinds = 0, set()
    made_by = {value: node for node in model.graph.node for value in node.output}
    for node in model.graph.node:
        if not node.op_type.endswith("uantizeLinear"):
            continue
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None:
            kinds.add(TensorProto.DataType.Name(zero.data_type))
            asymmetric += bool(np.any(numpy_helper.to_array(zero)))
        elif len(node.input) < 3 and node.op_type == "QuantizeLinear":
            kinds.add("UINT8")  # the type without a zero point
        if node.input[1] in constants:
            source = made_by.get(node.input[0])
            data = source.input[0] if source is not None and source.op_type == "QuantizeLinear" else node.input[0]
            _check_scales(node, numpy_helper.to_array(constants[node.input[1]]), constants.get(data), report)
    if kinds - {"INT8"} or asymmetric:
        report.problems.append(
            f"{asymmetric} zero points other than 0, types {', '.join(sorted(kinds | {'INT8'}))}: TensorRT takes "
            "symmetric int8 only; give it the file of the format onnx-int8-tensorrt, or the float graph and float16"
        )


def _check_scales(node: onnx.NodeProto, scales: np.ndarray, data: TensorProto | None, report: TensorrtReport) -> None:
    """Scales of one operator; `data` is the constant that it reads, None for a value."""
    what = f"{node.op_type} {node.name!r}"
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        report.problems.append(f"{what}: scales must be positive")
    if scales.size == 1:
        return
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if data is None:
        report.problems.append(f"{what}: {scales.size} scales of a value that is not a weight; only one is allowed")
    elif not -len(data.dims) <= axis < len(data.dims) or data.dims[axis] != scales.size:
        report.problems.append(f"{what}: {scales.size} scales along axis {axis} of {list(data.dims)}")


def _note_ranking(model: onnx.ModelProto, constants: dict[str, TensorProto], report: TensorrtReport) -> None:
    for node in model.graph.node:
        if node.op_type == "TopK":
            if node.input[1] not in constants:
                report.notes.append(
                    f"TopK with a count computed from the image sides: keep it at {_MOST_RANKED} or less"
                )
            elif int(numpy_helper.to_array(constants[node.input[1]]).max()) > _MOST_RANKED:
                report.problems.append(f"TopK gives at most {_MOST_RANKED}")
        if node.op_type == "NonMaxSuppression":
            report.notes.append(
                "NonMaxSuppression makes the number of rows data-dependent: outputs are sized at run time"
            )
