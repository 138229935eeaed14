"""OpenVINO: what ONNX Runtime gives, pairs of files that describe themselves, clear refusals, no word to its maker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import onnx
import pytest
import torch
from small_detector import pictures

import yolov7.predict.openvino_runtime as openvino_runtime
from yolov7.errors import ModelError
from yolov7.export import export_openvino
from yolov7.export.matching import agreement
from yolov7.files import sha256_file
from yolov7.nms import Thresholds
from yolov7.predict import OpenvinoNmsRuntime, OpenvinoRuntime, load_detector, open_onnx, open_openvino


@pytest.fixture(scope="module")
def files(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openvino")
    export_openvino(exported / "model.onnx", folder / "m.xml")
    export_openvino(exported / "model.onnx", folder / "half.xml", half=True)
    export_openvino(exported / "model-nms.onnx", folder / "nms.xml")
    return folder


def random_batch(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_any_number_of_shapes_gives_what_onnx_runtime_gives(files, exported):
    runtime, reference = open_openvino(files / "m.xml", threads=1), open_onnx(exported / "model.onnx", threads=1)
    assert isinstance(runtime, OpenvinoRuntime)
    shapes = [(2, 3, 96, 128), (1, 3, 64, 64), (3, 3, 8, 16), (1, 3, 200, 40), (2, 3, 48, 48), (2, 3, 96, 128)]
    for shape in shapes:
        batch = random_batch(*shape)
        found, expected = runtime.decoded(batch), reference.decoded(batch)
        torch.testing.assert_close(found[..., 4:], expected[..., 4:], atol=1e-5, rtol=0)
        torch.testing.assert_close(found[..., :4], expected[..., :4], atol=5e-3, rtol=0)
    # Three shapes of their own and one network for all others: memory does not grow with the number of shapes.
    assert len(runtime.file._requests) == 4 and None in runtime.file._requests


def test_suppression_inside(files, exported):
    runtime, batch = open_openvino(files / "nms.xml"), random_batch(3, 3, 96, 128)
    assert isinstance(runtime, OpenvinoNmsRuntime)
    assert runtime.thresholds == Thresholds(0.2, 0.5, 20)
    expected = open_onnx(exported / "model-nms.onnx").detect(batch)
    assert sum(map(len, expected)) > 20
    for ours, theirs in zip(runtime.detect(batch), expected, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=5e-3, rtol=0)


def test_fixed_sides_and_batches_of_another_size(exported, trained, tmp_path):
    graph = onnx.load(exported / "model.onnx")
    for dimension, size in zip(graph.graph.input[0].type.tensor_type.shape.dim, (1, 3, 48, 80), strict=True):
        dimension.dim_value = size
    graph.graph.output[0].type.tensor_type.ClearField("shape")
    export_openvino(graph, tmp_path / "m.xml")
    runtime, batch = open_openvino(tmp_path / "m.xml"), random_batch(3, 3, 48, 80)
    assert runtime.input_shape == (1, 48, 80)
    with torch.inference_mode():
        expected = trained(batch.float() / 255)
    torch.testing.assert_close(runtime.decoded(batch)[..., 4:], expected[..., 4:], atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="exported for images of 48 x 80"):
        runtime.decoded(batch.transpose(2, 3))


def test_half_is_half_the_size_and_nearly_the_same(files, exported):
    assert (files / "half.bin").stat().st_size < 0.55 * (files / "m.bin").stat().st_size
    batch = random_batch(2, 3, 96, 96)
    found, expected = (
        open_openvino(files / "half.xml").decoded(batch),
        open_onnx(exported / "model.onnx").decoded(batch),
    )
    difference = float((found[..., 4:] - expected[..., 4:]).abs().max())
    assert 1e-6 < difference < 0.01
    assert open_openvino(files / "half.xml").file.about.contract["precision"] == "float16"


def test_a_lone_pair_describes_itself_and_bytes_repeat(files, exported, tmp_path):
    runtime = open_openvino(files / "m.xml")
    assert runtime.metadata == open_onnx(exported / "model.onnx").metadata
    assert runtime.file.about.contract["output"]["columns"][:4] == ["x1", "y1", "x2", "y2"]
    for name, half in (("m", False), ("half", True)):
        export_openvino(exported / "model.onnx", tmp_path / "again.xml", half=half)
        for suffix in (".xml", ".bin"):
            assert sha256_file(tmp_path / f"again{suffix}") == sha256_file(files / f"{name}{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.bin", "again.xml"]


def test_files_that_cannot_be_opened_give_one_line(files, exported, tmp_path):
    for name in ("alone", "other", "damaged", "foreign", "mixed"):
        shutil.copy(files / "m.xml", tmp_path / f"{name}.xml")
        shutil.copy(files / "m.bin", tmp_path / f"{name}.bin")
    (tmp_path / "alone.bin").unlink()
    changed = bytearray((tmp_path / "other.bin").read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "other.bin").write_bytes(changed)
    shutil.copy(files / "half.bin", tmp_path / "mixed.bin")
    text = (tmp_path / "damaged.xml").read_text()
    (tmp_path / "damaged.xml").write_text(text[: len(text) // 2])
    (tmp_path / "foreign.xml").write_text(text[: text.index("<rt_info>")] + "</net>")
    for name, message in (
        ("alone", r"alone\.bin: no such model file; it belongs to alone\.xml"),
        ("other", "not the weights other.xml was written with"),
        ("mixed", "not the weights mixed.xml was written with|cannot load it"),
        ("damaged", "OpenVINO cannot load it"),
        ("foreign", "not of this project"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            load_detector(tmp_path / f"{name}.xml")
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="OpenVINO runs on the cpu here"):
        load_detector(files / "m.xml", device="cuda")
    with pytest.raises(ModelError, match=r"runtime 'onnx' needs a \.onnx file"):
        load_detector(files / "m.xml", runtime="onnx")
    with pytest.raises(ModelError, match=r"named \.xml"):
        export_openvino(exported / "model.onnx", tmp_path / "m.onnx")
    foreign = onnx.load(exported / "model.onnx")
    del foreign.metadata_props[:]
    with pytest.raises(ModelError, match="of this project is expected"):
        export_openvino(foreign, tmp_path / "new.xml")
    assert not (tmp_path / "new.xml").exists()


def test_without_the_package_the_line_says_what_to_install(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"OpenVINO is not installed .*pip install"):
        load_detector(files / "m.xml")


def test_a_folder_with_further_formats(exported, tmp_path):
    expected = load_detector(exported).predict(pictures(2))
    for precision, tolerance in (("float32", 1e-3), ("float16", 0.02)):
        detector = load_detector(exported, runtime="openvino", precision=precision)
        assert isinstance(detector.runtime, OpenvinoRuntime)
        found = agreement(
            expected, detector.predict(pictures(2)), thresholds=Thresholds(0.2, 0.5), score_tolerance=tolerance
        )
        assert found.matched > 20 and found.unmatched_share == 0
        assert found.max_score_difference < tolerance
    with pytest.raises(ModelError, match=r"lists no optional/openvino-int8\.xml; add it to params\.yaml"):
        load_detector(exported, runtime="openvino", precision="int8")
    with pytest.raises(ModelError, match="no float16 file for the runtime onnx"):
        load_detector(exported, precision="float16")
    folder = shutil.copytree(exported, tmp_path / "copy")
    weights = folder / "optional/openvino.bin"
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(ModelError, match=r"openvino\.bin: its bytes are not those model\.json lists"):
        load_detector(folder, runtime="openvino")


ALONE = """
import socket, sys
def refuse(*arguments, **more):
    print("connects")
    raise OSError("no network in this test")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from yolov7.export import export_openvino
from yolov7.predict import load_detector
import numpy as np
loaded = [name for name in sys.modules if name.split(".")[0] == "openvino"]
assert not loaded, loaded  # not before it is needed
export_openvino(sys.argv[1], sys.argv[2])
load_detector(sys.argv[2]).predict(np.zeros((40, 60, 3), np.uint8))
assert "openvino" in sys.modules
print(sorted(name for name in sys.modules if name.startswith("openvino_telemetry")), sys.modules["openvino_telemetry"])
"""


def test_nothing_is_reported_to_anyone(exported, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    # CI switches its telemetry off: without that variable it would be on.
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    command = [sys.executable, "-c", ALONE, str(exported / "model.onnx"), str(tmp_path / "m.xml")]
    done = subprocess.run(
        command, env={**environment, "HOME": str(home)}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['openvino_telemetry'] None\n"
    assert list(home.rglob("*openvino*")) == [] and not (home / "intel").exists()


def test_errors_of_openvino_lose_their_sources():
    text = (
        "Exception from src/inference/src/cpp/core.cpp:97:\nException from src/core.cpp:5:\nUnable to read the model\n"
    )
    assert openvino_runtime.first_line(RuntimeError(text)) == "Unable to read the model"


SIGNALS = """
import faulthandler, os, signal, sys
import numpy as np
from yolov7.predict import open_openvino
faulthandler.enable()  # gives signal handlers a stack of their own
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
image = np.zeros((1, 3, 64, 64), np.uint8)
first, second = (open_openvino(sys.argv[1], threads=1) for _ in range(2))
for one in (first, second):
    one.file.run(image)
del first
del second, one
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_networks_are_gone(files):
    """OpenVINO's processor plugin replaces the stack of signal handlers and does not give it back in order."""
    done = subprocess.run([sys.executable, "-c", SIGNALS, str(files / "m.xml")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
