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
    problems = check_tensorrt(result).problems
    assert len(problems) == 1 and "symmetric int8 only" in problems[0]


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
