"""The device of an evaluation: PyTorch's files on the one that the environment names, exported ones on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_detector import metadata_of, small_detector

from stages.evaluate import device_for
from yolov7.errors import ConfigError
from yolov7.model import save_checkpoint
from yolov7.predict import load_detector


def test_the_device_is_a_matter_of_the_environment_and_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("YOLOV7_DEVICE", raising=False)
    assert device_for("best.safetensors") == "auto"
    monkeypatch.setenv("YOLOV7_DEVICE", "cuda:9")
    assert {device_for(model) for model in ("model.onnx", "models/v/export", "models:/v@champion")} == {"cpu"}
    model, path = small_detector(), tmp_path / "w.safetensors"
    save_checkpoint(path, model, metadata_of(model))
    with pytest.raises(ConfigError, match="device 'cuda:9' is not available"):
        load_detector(path, device=device_for(str(path)))
