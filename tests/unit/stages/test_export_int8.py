"""The export stage's int8: calibration images as `params.yaml` asks for them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_detector import metadata_of, pictures, small_index

from stages.export import int8_exporter, limits_of
from stages.project.params import Params
from yolov7.artefact import INT8_FORMATS
from yolov7.export import INT8
from yolov7.predict import load_detector


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
