"""Fixtures of several test files: one export of each small detector, because an export takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from filelock import FileLock
from small_aligned import small_aligned
from small_detector import metadata_of, small_detector
from small_efficient import small_efficient, trained_efficient

from yolov7.export import export_folder
from yolov7.model import Detector


@pytest.fixture(scope="session")
def trained():
    return small_detector()


@pytest.fixture(scope="session")
def exported(tmp_path_factory, trained):
    return _exported(tmp_path_factory, trained)


@pytest.fixture(scope="session")
def traced(exported):
    """In place of `yolov7.export.folder.export_onnx` for `trained`: tracing takes seconds, and is tested elsewhere."""

    def copy(model, path, **options):
        path.write_bytes((exported / "model.onnx").read_bytes())
        return onnx.load(path)

    return copy


@pytest.fixture(scope="session")
def trained_aligned():
    return small_aligned()


@pytest.fixture(scope="session")
def exported_aligned(tmp_path_factory, trained_aligned):
    return _exported(tmp_path_factory, trained_aligned)


@pytest.fixture(scope="session")
def trained_yolov6():
    return trained_efficient(small_efficient("3.0", anchor_aided=True, distributions=True))


@pytest.fixture(scope="session")
def exported_yolov6(tmp_path_factory, trained_yolov6):
    return _exported(tmp_path_factory, trained_yolov6)


def _exported(tmp_path_factory: pytest.TempPathFactory, trained: Detector) -> Path:
    # Test processes that run side by side share one export.
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"{trained.variant}-export"
    with FileLock(f"{folder}.lock"):
        if not (folder / "model.json").is_file():  # written last
            metadata = metadata_of(trained, run="r1")
            formats = ("openvino", "openvino-float16", "onnx-raw")
            thresholds = {"confidence": 0.2, "iou": 0.5, "max_detections": 20}
            export_folder(trained, folder, metadata=metadata, formats=formats, **thresholds)
    return folder
