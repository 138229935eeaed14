"""Fixture of several test files: one export of the small detector, because an export takes seconds."""

from __future__ import annotations

import os

import pytest
from filelock import FileLock
from small_detector import metadata_of, small_detector

from yolov7.export import export_folder


@pytest.fixture(scope="session")
def trained():
    return small_detector()


@pytest.fixture(scope="session")
def exported(tmp_path_factory, trained):
    # Test processes that run side by side share one export.
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small-detector-export"
    with FileLock(f"{folder}.lock"):
        if not (folder / "model.json").is_file():  # written last
            metadata = metadata_of(trained, run="r1")
            formats = ("openvino", "openvino-float16", "onnx-raw")
            thresholds = {"confidence": 0.2, "iou": 0.5, "max_detections": 20}
            export_folder(trained, folder, metadata=metadata, formats=formats, **thresholds)
    return folder
