"""A small export folder made by the real exporter: an untrained, narrow relative of yolov7-tiny with three classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import torch

from yolov7.export.onnx import export_onnx, export_onnx_nms
from yolov7.files import sha256_file, write_json
from yolov7.letterbox import FILL
from yolov7.model import Detector, ModelMetadata, create_model, save_checkpoint
from yolov7.model.scaling import scale
from yolov7.model.variants import find_variant
from yolov7.nms import Thresholds

CLASSES = ("cat", "dog", "owl")
CATEGORY_IDS = (7, 11, 42)
SIZE = 64


def make_export(folder: Path) -> Path:
    """Write model.safetensors, model.onnx, model-nms.onnx and model.json."""
    folder.mkdir(parents=True)
    # An eighth of the width: the tests copy and upload it many times.
    narrow = scale(find_variant("yolov7-tiny"), width=0.125)
    model = create_model(narrow, num_classes=len(CLASSES), seed=1).eval()
    spread_scores(model)
    model = model.reparameterize()
    metadata = ModelMetadata(
        variant=model.variant,
        form="deploy",
        num_classes=len(CLASSES),
        class_names=CLASSES,
        category_ids=CATEGORY_IDS,
        image_size=SIZE,
        anchors=tuple(tuple((float(w), float(h)) for w, h in level) for level in model.anchors.tolist()),
        extra={"thresholds": {"confidence": 0.3, "iou": 0.5}},
    )
    save_checkpoint(folder / "model.safetensors", model, metadata)
    export_onnx(model, folder / "model.onnx", metadata=metadata)
    export_onnx_nms(folder / "model.onnx", folder / "model-nms.onnx", Thresholds(0.3, 0.5, 20))
    describe(folder, "first")
    return folder


def sample_image() -> np.ndarray:
    """uint8 (64, 48, 3): noise."""
    return np.random.default_rng(0).integers(0, 255, (SIZE, 48, 3), np.uint8)


def image_bytes() -> bytes:
    """The sample as a PNG file."""
    return cv2.imencode(".png", sample_image()[..., ::-1])[1].tobytes()


def spread_scores(model: Detector) -> None:
    """Let an untrained network give scores far from each other, so that rounding cannot change their order.

    Batch statistics are taken from an image, or the signal dies out on its way; then the predictions are spread.
    """
    padded = np.full((SIZE, SIZE, 3), FILL, np.uint8)
    padded[:, 8:56] = sample_image()
    image = torch.from_numpy(padded).permute(2, 0, 1)[None] / 255.0
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.9
    with torch.no_grad():
        for _ in range(4):
            model.train()(image)
        model.eval()
        for level, raw in zip(model.head.lead, model.raw(image), strict=True):
            mean = raw.mean(dim=(0, 2, 3))  # (A, 5 + C)
            factor = 2.0 / (raw - mean[:, None, None]).std()
            conv = level.predict.conv
            conv.weight.mul_(factor)
            conv.bias.copy_((conv.bias - mean.flatten()) * factor)


def describe(folder: Path, note: str) -> None:
    """Write the manifest; another `note` makes it another artefact as far as the registry can tell."""
    files = {path.name: {"sha256": sha256_file(path)} for path in sorted(folder.iterdir()) if path.suffix != ".json"}
    write_json(folder / "model.json", {"note": note, "files": files})


def another(folder: Path, source: Path, note: str) -> Path:
    """A copy that differs in its manifest."""
    shutil.copytree(source, folder)
    describe(folder, note)
    assert json.loads((folder / "model.json").read_text())["note"] == note
    return folder
