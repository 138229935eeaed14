"""Shared by the export tests: images whose truth is what the small detector finds."""

from __future__ import annotations

import pytest
from small_detector import metadata_of, pictures, small_index

from yolov7.predict import Predictor, TorchRuntime


@pytest.fixture(scope="module")
def index(tmp_path_factory, trained):
    metadata = metadata_of(trained)
    images = pictures(6)
    found = Predictor(TorchRuntime(trained, metadata), confidence=0.2, iou=0.5, max_detections=12).predict(images)
    return small_index(tmp_path_factory.mktemp("index"), found, images, metadata)
