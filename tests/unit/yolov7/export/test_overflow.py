"""Int8 on processors without dot products of bytes (VNNI), whose kernels add two products in sixteen bits."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_maker import GraphMaker
from onnx import numpy_helper

from yolov7.export import quantize
from yolov7.export.calibrate import calibrate
from yolov7.predict.runtimes import onnx_session
from yolov7.ranges import full_weight_scales

RUN = """
import sys
import numpy as np
from yolov7.predict.openvino_runtime import openvino_core

core = openvino_core()
model = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(sys.argv[3], next(iter(model(np.load(sys.argv[2])).values())))
"""
"""OpenVINO's kernels are oneDNN's, which can be held back from newer instructions before they are loaded."""


def bright(count=4):
    return [np.random.default_rng(i).integers(230, 256, (1, 3, 16, 16), np.uint8) for i in range(count)]


def a_graph():
    """Values near the ends of their ranges, and weights whose neighbours are alike: the largest sums."""
    maker = GraphMaker()
    value = maker.add("Relu", maker.conv("images", inputs=3))
    for _ in range(2):
        value = maker.add("Relu", maker.conv(value))
    graph = maker.model(maker.conv(value, channels=3))
    for constant in graph.graph.initializer:
        if len(constant.dims) == 4:
            even = np.abs(numpy_helper.to_array(constant)).clip(0.05, 0.06)
            constant.CopyFrom(numpy_helper.from_array(even, constant.name))
    return graph


def run_on(instructions: str, graph: onnx.ModelProto, folder: Path) -> np.ndarray:
    onnx.save(graph, folder / "m.onnx")
    np.save(folder / "x.npy", bright()[-1].astype(np.float32) / 255)
    files = [str(folder / name) for name in ("m.onnx", "x.npy", "y.npy")]
    root = str(Path(__file__).parents[4])
    environment = {**os.environ, "PYTHONPATH": root, "ONEDNN_MAX_CPU_ISA": instructions}
    subprocess.run([sys.executable, "-c", RUN, *files], env=environment, check=True, timeout=110)
    return np.load(files[-1])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 adds products in sixteen bits")
@pytest.mark.parametrize("full", [False, True])
def test_a_file_gives_the_same_without_dot_products_of_bytes(monkeypatch, tmp_path, full):
    graph = a_graph()
    ranges = calibrate(graph, bright, method="max")
    if full:  # eight bits whatever the neighbours: what the scales are there to prevent
        monkeypatch.setattr(quantize, "weight_scales", full_weight_scales)
    made = quantize.quantized(graph, quantize.quantizable(graph), ranges, placement="openvino")
    (float_result,) = onnx_session(graph).run(None, {"images": bright()[-1].astype(np.float32) / 255})
    old = run_on("AVX2", made, tmp_path)
    size = np.abs(float_result).max()
    assert (np.abs(old - float_result).max() > 0.1 * size) == full, "saturated sums"
    if not full:
        np.testing.assert_allclose(old, run_on("ALL", made, tmp_path), rtol=1e-5, atol=1e-5 * size)
