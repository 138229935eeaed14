"""Files of two exports in one folder, as a kill, a copy or a careless upload leaves them, are refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from small_detector import metadata_of, small_detector

import yolov7.export.folder
from yolov7.errors import ModelError
from yolov7.export import export_folder
from yolov7.files import sha256_file
from yolov7.predict import load_detector

LISTED = r"model\.json lists"
RUNTIME_OF = {"model.onnx": "onnx", "model.safetensors": "torch", "optional/openvino.xml": "openvino"}


@pytest.fixture
def mixed(exported, tmp_path):
    """A copy of an export, and a function that puts the file of another export into it."""
    folder = shutil.copytree(exported, tmp_path / "export")

    def replace(name):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return folder, replace


@pytest.mark.parametrize("name", ["model.onnx", "model-nms.onnx", "model.safetensors", "optional/model-raw.onnx"])
def test_a_file_of_another_export_is_refused_by_folder_and_by_file(mixed, name):
    folder, replace = mixed
    replace(name)
    with pytest.raises(ModelError, match=LISTED):
        load_detector(folder / name)
    if name in RUNTIME_OF:
        with pytest.raises(ModelError, match=LISTED):
            load_detector(folder, runtime=RUNTIME_OF[name])


@pytest.mark.parametrize("name", ["optional/openvino.bin", "optional/openvino.xml"])
def test_openvino_files_of_another_export(mixed, name):
    pytest.importorskip("openvino")
    folder, replace = mixed
    replace(name)
    with pytest.raises(ModelError, match=LISTED):
        load_detector(folder / "optional/openvino.xml")


def test_a_manifest_of_another_export_is_refused(mixed):
    folder, _ = mixed
    manifest = json.loads((folder / "model.json").read_text())
    for entry in manifest["files"].values():
        entry["sha256"] = "0" * 64
    (folder / "model.json").write_text(json.dumps(manifest))
    for name in RUNTIME_OF:
        with pytest.raises(ModelError, match=LISTED):
            load_detector(folder / name)


def test_files_outside_an_export_folder_are_not_compared(exported, tmp_path):
    shutil.copy(exported / "model.onnx", tmp_path / "model.onnx")
    image = np.zeros((30, 40, 3), np.uint8)
    for manifest in (None, "not ours", '{"format": "layers-model", "modelTopology": {}}', '{"files": {}}'):
        if manifest is not None:
            (tmp_path / "model.json").write_text(manifest)
        assert len(load_detector(tmp_path / "model.onnx").predict(image)) == 1


class Killed(BaseException):
    """As a signal would."""


STEPS = ("save_checkpoint", "export_onnx", "export_onnx_nms", "_write_optional", "listed")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_export_that_is_killed_leaves_no_manifest(exported, tmp_path, monkeypatch, step, when):
    """Whatever lies in the folder then, old, new or both, does not pass for an export."""
    folder = shutil.copytree(exported, tmp_path / "export")
    before = {path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()}
    model = small_detector(seed=1)

    def copied(name):
        """The step without its work, which takes seconds."""

        def write(*args, **_):
            if name == "listed":
                return {}
            if name == "_write_optional":
                return []
            path = next(arg for arg in args if hasattr(arg, "suffix"))
            path.write_bytes(b"new " + path.name.encode())
            return None

        return write

    def killing(*args, **kwargs):
        if when == "after":
            copied(step)(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(yolov7.export.folder, "contract_of", lambda graph: {})
    for name in STEPS:
        monkeypatch.setattr(yolov7.export.folder, name, killing if name == step else copied(name))
    with pytest.raises(Killed):
        export_folder(model, folder, metadata=metadata_of(model))
    with pytest.raises(ModelError, match="interrupted"):
        load_detector(folder)
    assert before.keys() - {"model.json"} <= {path.name for path in folder.iterdir()}


def test_an_export_that_cannot_begin_leaves_the_old_one(exported, tmp_path):
    from yolov7.errors import ConfigError

    folder = shutil.copytree(exported, tmp_path / "export")
    with pytest.raises(ConfigError):
        export_folder(small_detector(), folder, metadata=metadata_of(small_detector()), confidence=7.0)
    assert load_detector(folder).metadata.variant == "small"
