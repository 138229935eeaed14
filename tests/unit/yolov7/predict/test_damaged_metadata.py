"""Damaged metadata in every container: a file either works, or is refused in one line, and in no other way."""

from __future__ import annotations

import contextlib
import json
import shutil

import damaged_metadata as damage
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yolov7.artefact import check_folder
from yolov7.errors import ConfigError, ModelError, TrainingError
from yolov7.model import load_checkpoint
from yolov7.predict import load_detector
from yolov7.train.state import StateFolder, TrainingState

FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=60)
MODEL, CONTRACT = "yolov7", "yolov7.contract"
ONNX_FILES = ("model.onnx", "model-nms.onnx", "optional/model-raw.onnx")


@contextlib.contextmanager
def refused_in_one_line_or_works():
    try:
        yield
    except (ModelError, ConfigError, TrainingError) as error:
        text = str(error)
        assert text, "a refusal says why"
        assert "\n" not in text, text
        assert len(text) < 1500, text[:200]


def use(path):
    with refused_in_one_line_or_works():
        detector = load_detector(path)
        assert max(detector.canvas) <= 8192
        detector.predict(np.zeros((40, 50, 3), np.uint8))


@given(data=st.data())
@MANY
def test_safetensors(exported, tmp_path_factory, data):
    header, tensors = damage.safetensors_header(exported / "model.safetensors")
    text = data.draw(damage.damaged(json.loads(header["__metadata__"][MODEL])))
    header["__metadata__"][MODEL] = text.encode("utf-8", "replace").decode()
    use(damage.write_safetensors(tmp_path_factory.getbasetemp() / "fuzzed.safetensors", header, tensors))


@given(data=st.data())
@MANY
def test_safetensors_frame(exported, tmp_path_factory, data):
    """The header of the container itself: shapes, types and places of the tensors."""
    header, tensors = damage.safetensors_header(exported / "model.safetensors")
    text = data.draw(damage.damaged(header))
    path = tmp_path_factory.getbasetemp() / "framed.safetensors"
    content = text.encode("utf-8", "replace")
    length = data.draw(st.sampled_from([len(content), len(content), 2**63, 0, len(content) + 5]))
    path.write_bytes(length.to_bytes(8, "little") + content + tensors)
    use(path)


@pytest.mark.parametrize("file", ONNX_FILES)
@given(data=st.data())
@FEW
def test_onnx(exported, tmp_path_factory, file, data):
    key = data.draw(st.sampled_from([MODEL, CONTRACT]))
    text = data.draw(damage.damaged(json.loads(damage.onnx_entries(exported / file)[key])))
    text = text.encode("utf-8", "replace").decode()
    use(damage.with_onnx_entry(exported / file, tmp_path_factory.getbasetemp() / "fuzzed.onnx", key, text))


@given(data=st.data())
@FEW
def test_openvino(exported, tmp_path_factory, data):
    pytest.importorskip("openvino")
    key = data.draw(st.sampled_from([MODEL, CONTRACT]))
    text = data.draw(damage.damaged(json.loads(damage.onnx_entries(exported / "model.onnx")[key])))
    text = "".join(letter for letter in text if letter.isprintable() and letter.isascii())
    target = tmp_path_factory.getbasetemp() / "fuzzed.xml"
    use(damage.with_openvino_entry(exported / "optional/openvino.xml", target, key, text))


@given(data=st.data())
@MANY
def test_manifest(exported, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzzed-folder"
    if not folder.is_dir():
        shutil.copytree(exported, folder)
    text = data.draw(damage.damaged(json.loads((exported / "model.json").read_text())))
    (folder / "model.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with refused_in_one_line_or_works():
        check_folder(folder)
    use(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "model.onnx", "optional/openvino.xml"])
@given(data=st.data())
@FEW
def test_cut_off_and_flipped_files(exported, tmp_path_factory, file, data):
    content = bytearray((exported / file).read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = (tmp_path_factory.getbasetemp() / "broken").with_suffix((exported / file).suffix)
    path.write_bytes(content)
    if path.suffix == ".xml":
        path.with_suffix(".bin").write_bytes((exported / file).with_suffix(".bin").read_bytes())
    use(path)


@given(data=st.data())
@MANY
def test_training_states(exported, tmp_path_factory, data):
    """A state that was not saved whole is skipped, as after a kill."""
    folder = tmp_path_factory.getbasetemp() / "states"
    states = StateFolder(folder, {"train": {"epochs": 3}}, code="abc")
    values = {"position": {"epoch": 1, "finished": False}, "optimizer": {"0": {"step": 3}}}
    header, tensors = damage.safetensors_header(states.save(TrainingState({}, values), 5))
    text = data.draw(damage.damaged(json.loads(header["__metadata__"]["state"])))
    header["__metadata__"]["state"] = text.encode("utf-8", "replace").decode()
    damage.write_safetensors(folder / "state-000000005.safetensors", header, tensors)
    states.last()
    with refused_in_one_line_or_works():
        states.newest()


def test_a_network_of_absurd_depth_is_not_built(exported, tmp_path):
    """The blocks of a description cost time before any weight is compared."""
    header, tensors = damage.safetensors_header(exported / "model.safetensors")
    described = json.loads(header["__metadata__"][MODEL])
    elan = {"kind": "Elan", "out": 8, "hidden": 8, "depth": 60_000}
    described["network"]["backbone"].append({"kind": "Stage", "name": "more", "block": elan, "of": None})
    header["__metadata__"][MODEL] = json.dumps(described)
    path = damage.write_safetensors(tmp_path / "deep.safetensors", header, tensors)
    with pytest.raises(ModelError, match="modules"):
        load_checkpoint(path)
