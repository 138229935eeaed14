"""TensorRT: graphs are read for what its parser refuses; an engine needs the package and a GPU, which most have not."""

from __future__ import annotations

import importlib.util
import sys
import types

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from yolov7.cli import main
from yolov7.errors import ConfigError, ModelError
from yolov7.export import build_engine, check_tensorrt, export_onnx_nms
from yolov7.export.calibrate import calibrate
from yolov7.export.quantize import quantizable, quantized
from yolov7.export.tensorrt import profile_shapes
from yolov7.nms import Thresholds
from yolov7.predict.runtimes import onnx_session
from yolov7.ranges import full_weight_scales


@pytest.fixture
def graph(exported):
    return onnx.load(exported / "model.onnx")


def test_what_this_project_exports_passes(exported, graph):
    report = check_tensorrt(graph)
    assert report.passed and report.operators["Conv"] == 8
    assert any("optimisation profile" in note for note in report.notes)
    with_nms = check_tensorrt(exported / "model-nms.onnx")
    assert with_nms.passed
    assert any("data-dependent" in note for note in with_nms.notes)


def insert(graph, node, *constants):
    graph.graph.node.append(node)
    graph.graph.initializer.extend(constants)


def test_each_reason_to_refuse_is_seen(exported, graph):
    insert(graph, helper.make_node("StringNormalizer", ["x"], ["y"]))
    insert(graph, helper.make_node("Fancy", ["x"], ["z"], domain="com.acme"))
    insert(graph, helper.make_node("Add", ["x", "double"], ["w"]), numpy_helper.from_array(np.zeros(1), "double"))
    graph.opset_import[0].version = 23
    problems = "\n".join(check_tensorrt(graph).problems)
    for text in ("operator set 23", "StringNormalizer is not", "com.acme::Fancy is not", "type DOUBLE"):
        assert text in problems
    with_nms = onnx.load(exported / "model-nms.onnx")
    node = next(node for node in with_nms.graph.node if node.op_type == "NonMaxSuppression")
    node.input[3] = "computed"
    assert any("input 3 must be a constant" in problem for problem in check_tensorrt(with_nms).problems)
    del graph.metadata_props[:]
    with pytest.raises(ModelError, match="of this project is expected"):
        check_tensorrt(graph)


def test_bytes_with_two_ends_are_not_for_tensorrt(graph):
    batch = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    result = quantized(graph, quantizable(graph), calibrate(graph, lambda: [batch]))
    result.metadata_props.extend(graph.metadata_props)
    operator, types = check_tensorrt(result).problems
    assert "QuickGelu is not on the parser's list" in operator and "symmetric int8 only" in types


@pytest.fixture
def symmetric(graph):
    batch = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    result = quantized(graph, quantizable(graph), calibrate(graph, lambda: [batch]), placement="tensorrt")
    result.metadata_props.extend(graph.metadata_props)
    return result


def test_symmetric_bytes_at_convolutions_pass(graph, symmetric):
    onnx.checker.check_model(symmetric, full_check=True)
    report = check_tensorrt(symmetric)
    assert report.passed, report.problems
    chosen, constants = set(quantizable(graph)), {tensor.name: tensor for tensor in symmetric.graph.initializer}
    made_by = {value: node for node in symmetric.graph.node for value in node.output}
    for node in symmetric.graph.node:
        if node.name in chosen:
            assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert constants[node.input[2]].data_type == onnx.TensorProto.FLOAT  # the bias
            weight = made_by[made_by[node.input[1]].input[0]]
            assert weight.op_type == "QuantizeLinear" and constants[weight.input[0]].data_type == onnx.TensorProto.FLOAT
            scales = numpy_helper.to_array(constants[weight.input[1]])
            values = numpy_helper.to_array(constants[weight.input[0]])
            np.testing.assert_array_equal(scales, full_weight_scales(values))  # per output channel
    zeros = [tensor for name, tensor in constants.items() if name.endswith("_zero_point")]
    assert zeros and all(t.data_type == onnx.TensorProto.INT8 and not numpy_helper.to_array(t).any() for t in zeros)
    batch = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
    found, expected = (
        onnx_session(one).run(None, {"images": batch.astype(np.float32) / 255})[0][..., 4:]
        for one in (symmetric, graph)
    )
    assert 1e-4 < np.abs(found - expected).mean() < 0.05


def weight_pair(graph):
    """QuantizeLinear of the first weight, its scales and zero points."""
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    node = next(n for n in graph.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants)
    return node, constants[node.input[1]], constants[node.input[2]]


def replace_values(tensor, values):
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def test_what_the_parser_demands_of_quantised_values_is_checked(symmetric):
    node, scales, _ = weight_pair(symmetric)
    values = numpy_helper.to_array(scales).copy()
    values[0] = 0
    replace_values(scales, values)
    (problem, *more) = check_tensorrt(symmetric).problems
    assert problem == f"QuantizeLinear {node.name!r}: scales must be positive" and len(more) == 1  # and the other half
    replace_values(scales, np.ones(len(values) + 1, np.float32))
    assert f"{len(values) + 1} scales along axis 0 of [" in check_tensorrt(symmetric).problems[0]


def test_zero_points_and_types_are_checked(symmetric):
    node, _, zeros = weight_pair(symmetric)
    replace_values(zeros, np.ones(zeros.dims, np.int8))
    assert "zero points other than 0" in check_tensorrt(symmetric).problems[0]
    replace_values(zeros, np.zeros(zeros.dims, np.uint8))
    assert "types INT8, UINT8" in check_tensorrt(symmetric).problems[0]
    replace_values(zeros, np.zeros(zeros.dims, np.int8))
    assert check_tensorrt(symmetric).passed
    del node.input[2]
    assert "types INT8, UINT8" in check_tensorrt(symmetric).problems[0]  # what its absence means


def test_a_value_has_one_scale(symmetric):
    constants = {tensor.name: tensor for tensor in symmetric.graph.initializer}
    node = next(n for n in symmetric.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants)
    replace_values(constants[node.input[1]], np.ones(3, np.float32))
    problems = check_tensorrt(symmetric).problems
    assert problems and all(
        "3 scales of a value that is not a weight; only one is allowed" in problem for problem in problems
    )


def test_an_optimisation_profile_needs_sizes_that_rise_and_fit():
    assert profile_shapes((1, 2, 8), (320, 640, 640), 32) == [(1, 3, 320, 320), (2, 3, 640, 640), (8, 3, 640, 640)]
    for batch, sides in (((2, 1, 8), (640,) * 3), ((1, 1, 1), (320, 640, 650)), ((0, 1, 1), (640,) * 3)):
        with pytest.raises(ConfigError, match="smallest, usual, largest"):
            profile_shapes(batch, sides, 32)


def fake_tensorrt(version):
    """The package as far as its version tells it: 11 has no flag for float16."""
    package = types.ModuleType("tensorrt")
    if version is not None:
        package.__version__ = version
    package.BuilderFlag = types.SimpleNamespace(**({"FP16": 0} if str(version).startswith("10.") else {}))
    return package


@pytest.mark.parametrize("version", ["11.4.0.106", "12.0", "8.6.1", "110.1", None])
@pytest.mark.parametrize("gpu", [True, False])
def test_other_versions_of_tensorrt_are_refused_before_they_fail(exported, tmp_path, monkeypatch, capsys, version, gpu):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(version))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(ModelError, match=r"pip install 'tensorrt>=10,<11'") as caught:
        build_engine(exported / "model.onnx", tmp_path / "m.engine")
    assert f"TensorRT {version or 'unknown'} " in str(caught.value)
    assert main(["tensorrt", str(exported / "model.onnx"), "-o", str(tmp_path / "m.engine")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_or_a_gpu_the_line_says_so(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ModelError, match="TensorRT is not installed"):
        build_engine(exported / "model.onnx", tmp_path / "m.engine")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("10.13.3.9"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no GPU found"):
        build_engine(exported / "model.onnx", tmp_path / "m.engine")
    assert main(["tensorrt", str(exported / "model.onnx")]) == 0
    assert "nothing in it that TensorRT's ONNX parser refuses" in capsys.readouterr().out
    assert main(["tensorrt", str(exported / "model.onnx"), "-o", str(tmp_path / "m.engine")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["tensorrt", str(tmp_path / "none.onnx")]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"# A readme\n", b"", b"\x08\x0a\xff\xff", "half", "foreign"])
def test_a_foreign_onnx_file_gives_one_line(exported, graph, tmp_path, capsys, content):
    file = tmp_path / "file.json"  # a suffix that onnx would read as another format
    if content == "half":
        content = (exported / "model.onnx").read_bytes()[:-2000]
    elif content == "foreign":
        del graph.metadata_props[:]
        content = graph.SerializeToString()
    file.write_bytes(content)
    assert main(["tensorrt", str(file)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {file}: ") and told.count("\n") == 1
    for use in (check_tensorrt, add_suppression(tmp_path)):
        with pytest.raises(ModelError, match=r"file\.json: "):
            use(file)
    with pytest.raises(ModelError, match=r"none\.onnx: cannot be read: No such file"):
        check_tensorrt(tmp_path / "none.onnx")


def add_suppression(folder):
    return lambda path: export_onnx_nms(path, folder / "nms.onnx", Thresholds(0.2, 0.5, 9))


@pytest.mark.gpu
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is None or not torch.cuda.is_available(),
    reason="an engine is built with the tensorrt package, on a GPU",
)
def test_an_engine_is_built(exported, tmp_path):
    build_engine(exported / "model.onnx", tmp_path / "m.engine", sides=(32, 96, 96))
    assert (tmp_path / "m.engine").stat().st_size > 10_000
