"""The export stage's int8: calibration images as `params.yaml` asks for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from small_detector import metadata_of, pictures, small_detector, small_index

from stages.export import int8_exporter, limits_of, verified
from stages.project.params import Params
from yolov7.artefact import INT8_FORMATS
from yolov7.export import INT8, export_folder
from yolov7.model import save_checkpoint
from yolov7.model.quantized import calibrate, quantized
from yolov7.predict import load_detector
from yolov7.train.quantization import calibration_images


@pytest.fixture
def index(exported, trained, tmp_path):
    images = pictures(3)
    return small_index(tmp_path, load_detector(exported).predict(images), images, metadata_of(trained))


def test_mosaics_are_those_of_the_variants_training(exported, index, monkeypatch):
    monkeypatch.setattr("stages.export.open_index", lambda split: index)

    def batches(**int8):
        params = Params.model_validate(
            {
                "train": {"image_size": 64, "seed": 3},
                "per_variant": {"yolov7-tiny": {"augment": {"mosaic": 0.0}}},
                "export": {"int8": int8},
            }
        )
        file = exported / "model.onnx"
        made = int8_exporter(onnx.load(file), file, index, params, "yolov7-tiny")
        return made, list(made._batches(3))

    made, augmented = batches(images="mosaic")
    assert (made._augmented.image_size, made._augmented.seed, made._augmented.augment.mosaic) == (64, 3, 0.0)
    assert [batch.shape for batch in augmented] == [(1, 3, 64, 64)] * 3
    made, fitted = batches()
    assert made._augmented is None and [batch.dtype for batch in fitted] == [np.uint8] * 3
    assert all(limits_of(name, Params().export) == INT8 for name in INT8_FORMATS)


def test_int8_files_of_a_quantised_network_are_verified_against_it(trained, index, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.export.open_index", lambda split: index)
    int8 = {"calibration_images": 2, "max_ap_drop": 1.0}
    params = Params.model_validate({"export": {"formats": ["onnx-int8"], "verify_images": 3, "int8": int8}})
    other = small_detector(trained.num_classes, seed=5)  # as after a training that changed everything
    form, folded = quantized(other), other.reparameterize()
    described = replace(metadata_of(trained), form="deploy")
    calibrate(form, calibration_images(folded, described, index, 3), "max")
    save_checkpoint(tmp_path / "quantized.safetensors", form, replace(described, form="quantized"))
    out = tmp_path / "export"
    export_folder(
        trained,
        out,
        metadata=metadata_of(trained),
        formats=["onnx-int8"],
        int8=lambda graph, floats: int8_exporter(
            graph, floats, index, params, "small", quantized=tmp_path / "quantized.safetensors"
        ),
    )

    def report(**how):
        return verified(trained, out, index, params.export, metadata=metadata_of(trained), **how)

    found = report(quantized=tmp_path / "quantized.safetensors")
    assert [form.name for form in found.forms] == ["deploy", "onnx", "onnx-nms", "onnx-int8"]
    assert found.passed and found.forms[0].trained_ap != found.forms[-1].trained_ap
    assert [problem.partition(":")[0] for problem in report().problems][:1] == ["onnx-int8"]
