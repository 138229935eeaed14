"""Loading a detector: files, folders whose bytes are checked, registry addresses, and what is none of these."""

from __future__ import annotations

import json
import shutil
from importlib import metadata as importlib_metadata

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_detector import pictures

import yolov7.predict.load as load
from yolov7.device import onnx_providers
from yolov7.errors import ModelError
from yolov7.predict import load_detector


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def test_a_changed_byte_is_refused(copied):
    for name, runtime in (("model.onnx", "onnx"), ("model.safetensors", "torch")):
        content = bytearray((copied / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copied / name).write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name}: its bytes are not those model.json lists"):
            load_detector(copied, runtime=runtime)


def test_a_missing_file_or_description_is_named(copied):
    (copied / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: missing"):
        load_detector(copied)
    (copied / "model.json").write_text("{")
    with pytest.raises(ModelError, match=r"model\.json: not readable as JSON"):
        load_detector(copied)
    (copied / "model.json").unlink()
    with pytest.raises(ModelError, match=r"not an export folder, it has no model\.json"):
        load_detector(copied)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd"])
def test_a_description_leads_nowhere_else(copied, name):
    description = json.loads((copied / "model.json").read_text())
    description["files"] = {name: {"sha256": "0"}}
    with pytest.raises(ModelError, match="is not a file with its sha256"):
        load.check_files(copied, description)


def test_foreign_and_damaged_files_are_refused_in_one_line(tmp_path, exported):
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    foreign = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "damaged.onnx").write_bytes((exported / "model.onnx").read_bytes()[:-3000])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "weights.pt").write_bytes(b"x")
    broken = onnx.load(exported / "model.onnx")
    next(entry for entry in broken.metadata_props if entry.key == "yolov7").value = "{}"
    onnx.save(broken, tmp_path / "nameless.onnx")
    for name, message in (
        ("foreign.onnx", "not of this project"),
        ("damaged.onnx", "cannot load it"),
        ("empty.onnx", "cannot load it|not of this project"),
        ("nameless.onnx", "its metadata is damaged"),
        ("text.safetensors", "damaged, or not a .safetensors"),
        ("weights.pt", "import-weights"),
        ("nothing.onnx", "no such model"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            load_detector(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_runtime_that_does_not_fit_the_file(exported):
    with pytest.raises(ModelError, match=r"runtime 'torch' needs a \.safetensors file"):
        load_detector(exported / "model.onnx", runtime="torch")
    with pytest.raises(ModelError, match="install onnxruntime-gpu"):
        load_detector(exported, device="cuda")


def test_an_address_goes_through_the_resolver_given(exported):
    asked = []

    def resolve(uri):
        asked.append(uri)
        return exported

    detector = load_detector("models:/small@champion", resolve=resolve)
    assert asked == ["models:/small@champion"]
    assert len(detector.predict(pictures(1))[0]) > 0


class FakeEntry:
    def __init__(self, loaded):
        self.loaded = loaded

    def load(self):
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def test_an_address_goes_through_the_installed_resolver(exported, monkeypatch):
    def entry_points(*, group, name):
        assert group == "yolov7.resolvers"
        return [FakeEntry(lambda uri: exported)] if name == "models" else []

    monkeypatch.setattr(load, "entry_points", entry_points)
    assert load_detector("models:/small/1").metadata.variant == "small"
    with pytest.raises(
        ModelError, match=r"nothing installed resolves s3:/; `pip install '.\[pipeline\]'` in the project"
    ):
        load_detector("s3://bucket/model")


def test_a_resolver_whose_packages_are_missing_says_what_to_install(monkeypatch):
    missing = FakeEntry(ModuleNotFoundError("No module named 'mlflow'"))
    monkeypatch.setattr(load, "entry_points", lambda **_: [missing])
    with pytest.raises(ModelError, match=r"No module named 'mlflow'.*pip install '.\[pipeline\]'`"):
        load_detector("models:/small@champion")


def test_the_entry_point_group_is_real():
    assert importlib_metadata.entry_points(group=load.RESOLVERS) is not None
    assert load._URI.match("C:/models/x.onnx") is None


def test_a_folder_may_be_moved(copied, tmp_path):
    moved = copied.rename(tmp_path / "elsewhere with spaces")
    found = load_detector(str(moved)).predict(pictures(2))
    assert sum(map(len, found)) > 0
    assert all(np.isfinite(one.boxes.numpy()).all() for one in found)


def test_devices_are_named_as_everywhere(exported):
    for runtime in ("onnx", "openvino", "torch"):
        assert len(load_detector(exported, runtime=runtime, device="auto").predict(pictures(1))) == 1
    assert onnx_providers("cpu", ["CPUExecutionProvider"]) == [("CPUExecutionProvider", {})]
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    for device, number in (("auto", "0"), ("cuda", "0"), ("cuda:1", "1")):
        first, second = onnx_providers(device, both)
        assert first == ("CUDAExecutionProvider", {"device_id": number}) and second == ("CPUExecutionProvider", {})
    for device in ("cuda:x", "mps", "gpu"):
        with pytest.raises(ModelError, match=device):
            onnx_providers(device, both)
