"""`export_weights` of the network of a quantisation-aware training."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import onnx.numpy_helper
import pytest
import torch
from small_detector import metadata_of, small_detector
from small_int8 import write_coco
from small_training import training_data

from yolov7.artefact import FILE_OF_FORMAT, FORMATS_FILE, ONNX, SAFETENSORS
from yolov7.export.calibrate import learnt_values
from yolov7.model import load_checkpoint, save_checkpoint
from yolov7.model.quantized import calibrate, learnt_ranges, quantized
from yolov7.ranges import steps
from yolov7.runs.exporting import export_weights
from yolov7.train.quantization import calibration_images


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("images"))


@pytest.fixture
def weights(tmp_path, index):
    """Ranges that are wider than calibration makes them, as a training may."""
    teacher = small_detector().reparameterize()
    form = quantized(teacher)
    described = replace(metadata_of(small_detector()), form="deploy")
    calibrate(form, calibration_images(teacher, described, index, 6), "max")
    for module in form.modules():
        if hasattr(module, "unit"):
            low, high = module.range()
            module.set(1.01 * low, 1.01 * high)
    path = tmp_path / "quantized.safetensors"
    save_checkpoint(path, form, replace(described, form="quantized"))
    return path


def test_int8_files_have_the_learnt_ranges_and_float_files_the_weights(weights, index, tmp_path):
    truth = {"annotations": str(write_coco(index, tmp_path / "truth.json")), "images": str(index.image_path(0).parent)}
    made = export_weights(
        weights, out=tmp_path / "export", formats=["onnx-int8"], data={"train": truth, "val": truth}, verify_images=6
    )
    assert made.report is not None and made.report.passed
    assert json.loads((made.folder / FORMATS_FILE).read_text())["int8"]["onnx-int8"]["trained"]
    form, (deployed, told) = load_checkpoint(weights)[0], load_checkpoint(made.folder / SAFETENSORS)
    assert told.form == "deploy"
    ours = deployed.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in form.reparameterize().state_dict().items())

    learnt = learnt_values(onnx.load(made.folder / ONNX), learnt_ranges(form))
    graph = onnx.load(made.folder / FILE_OF_FORMAT["onnx-int8"]).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {
        node.input[0]: (constants[node.input[1]], constants[node.input[2]])
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    read = {value: steps(*ends) for value, ends in learnt.items() if value in found}
    assert read and read == {value: found[value] for value in read}
