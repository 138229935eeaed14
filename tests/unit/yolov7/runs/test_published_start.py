"""A training without the pipeline that starts from a variant's published weights, by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import yolov7
from tests.unit.yolov7.model.test_published import published_state
from yolov7.errors import ConfigError
from yolov7.model import load_checkpoint
from yolov7.weights.places import CACHE, MIRROR
from yolov7.weights.releases import RELEASED

TINY = "yolov7-tiny"


def coco(folder: Path) -> dict[str, dict[str, str]]:
    """Two grey images with a box each, for both splits."""
    folder.mkdir()
    records = []
    for number in (1, 2):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((48, 64, 3), 60 * number, np.uint8))
        records.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
    boxes = [
        {"id": one["id"], "image_id": one["id"], "category_id": 1, "bbox": [8, 8, 30, 24], "area": 720, "iscrowd": 0}
        for one in records
    ]
    document = {"images": records, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "boxes.json").write_text(json.dumps(document))
    split = {"images": str(folder), "annotations": str(folder / "boxes.json")}
    return {"train": split, "val": split}


def test_published_weights_by_name_start_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tmp_path / "mirror" / RELEASED[TINY].path("training")
    published.parent.mkdir(parents=True)
    torch.save({"model": published_state(TINY, form="deploy"), "ema": None, "epoch": -1}, published)
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv(MIRROR, str(tmp_path / "mirror"))
    data = coco(tmp_path / "set")
    few = {"epochs": 1, "batch_size": 2, "image_size": 64, "cache": "none", "optimizer": {"learning_rate": 1e-6}}

    with pytest.raises(
        ConfigError, match=rf"train\.weights_sha256: {'1' * 64} is expected, but yolov7-tiny has {digest}"
    ):
        yolov7.train_detector(TINY, data=data, out=tmp_path / "run", weights=TINY, weights_sha256="1" * 64, **few)
    trained = yolov7.train_detector(TINY, data=data, out=tmp_path / "run", weights=TINY, weights_sha256=digest, **few)

    model, metadata = load_checkpoint(trained.weights)
    assert metadata.extra["published_weights"]["sha256"] == digest
    assert metadata.extra["published_weights"]["licence"] == "GPL-3.0"
    first = model.state_dict()
    name, kernel = next((name, value) for name, value in first.items() if value.ndim == 4)
    random = yolov7.create_model(TINY, 1, seed=0).state_dict()[name]
    started = torch.load(published, weights_only=True)["model"]
    near = min((kernel - value.float()).abs().max() for value in started.values() if value.shape == kernel.shape)
    assert near < 0.01 * (kernel - random).abs().max(), "an epoch of tiny steps stays near the published kernels"
