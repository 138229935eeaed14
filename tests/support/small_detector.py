"""A small detector with every kind of layer, and a small data set, for tests of what comes after training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import Index, build_index
from yolov7.model import Detector, ModelMetadata, create_model
from yolov7.model.block_specs import Conv, RepConv, SpaceToDepth, StridedConv, UpConcat
from yolov7.model.heads.anchor import AnchorHead, Level
from yolov7.model.spec import Network, Stage

SIDE = 96


def small_network() -> Network:
    """Strides 4 and 8; space to depth, RepConv, implicit vectors, an auxiliary head."""
    return Network(
        name="small",
        backbone=(Stage("stem", SpaceToDepth()), Stage("P2", StridedConv(12)), Stage("P3", StridedConv(16))),
        neck=(Stage("U2", UpConcat(8), of=("P3", "P2")),),
        head=AnchorHead(
            anchors=(((12, 14), (18, 26), (30, 20)), ((40, 44), (60, 50), (50, 72))),
            lead=(Level("H2", RepConv(12), of="U2"), Level("H3", Conv(16), of="P3")),
            auxiliary=(Level("A2", Conv(8), of="U2"), Level("A3", Conv(8), of="P3")),
        ),
    )


def small_detector(num_classes: int = 3, seed: int = 0) -> Detector:
    """Training form, eval mode, with statistics, implicit vectors and biases as if it had been trained: outputs vary
    from cell to cell and from class to class, and nothing folds to nothing.
    """
    model = create_model(replace(small_network(), image_size=SIDE), num_classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                normal(module.running_mean, 0.0, 0.1)
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
                normal(module.weight, 1.0, 0.2)
                normal(module.bias, 0.0, 0.2)
            elif isinstance(module, nn.Conv2d):
                gain = 3.0 if name.endswith("predict.conv") else 1.6
                normal(module.weight, 0.0, gain / module.weight[0].numel() ** 0.5)
        for name, parameter in model.named_parameters():
            if name.endswith("implicit"):
                normal(parameter, 1.0 if "after" in name else 0.0, 0.1)
            if name.endswith("predict.conv.bias"):
                normal(parameter, 0.0, 0.3)
                parameter.view(-1, 5 + num_classes)[:, 4] -= 3.0  # most cells hold nothing
    return model.eval()


def metadata_of(model: Detector, **extra: object) -> ModelMetadata:
    names = tuple(f"kind {number}" for number in range(model.num_classes))
    ids = tuple(range(10, 10 + model.num_classes))  # not the class numbers, so that a mix-up shows
    return ModelMetadata.of(model, class_names=names, category_ids=ids, image_size=SIDE, extra=extra)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth coloured images of various sizes, channels unlike each other."""
    rng = np.random.default_rng(seed)
    sizes = [(SIDE, SIDE), (80, 120), (150, 70), (48, 61), (200, 333), (33, 90)]
    images = []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        coarse[..., 2] //= 3
        images.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    return images


def small_index(folder: Path, found: list, images: list[np.ndarray], metadata: ModelMetadata) -> Index:
    """A data set whose truth is what a detector `found` (Detections), some of it shifted: AP lies between 0 and 1."""
    rng = np.random.default_rng(1)
    records, annotations = [], []
    for number, (image, detections) in enumerate(zip(images, found, strict=True)):
        height, width = image.shape[:2]
        cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])
        records.append({"id": 500 + number, "file_name": f"{number}.png", "width": width, "height": height})
        boxes, _, labels = detections.to_numpy()
        for box, label in zip(boxes[::2].astype(float), labels[::2], strict=True):
            moved = box + rng.normal(0, 1.5, 4)
            low, high = np.clip(moved[:2], 0, [width - 3, height - 3]), np.clip(moved[2:], 3, [width, height])
            sides = np.maximum(high - low, 2.0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 500 + number,
                    "category_id": metadata.category_ids[label],
                    "bbox": [*low.tolist(), *sides.tolist()],
                }
            )
    categories = [{"id": i, "name": n} for i, n in zip(metadata.category_ids, metadata.class_names, strict=True)]
    coco = CocoAnnotations(folder / "truth.json", records, annotations, categories)
    return build_index(coco, folder, folder / "index")
