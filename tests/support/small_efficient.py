"""A small YOLOv6 of any release, stage and mode, of the stages that the published sizes have."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from small_detector import SIDE, pictures
from torch import nn

from yolov7.model import Detector, create_model
from yolov7.model.heads.efficient import with_options
from yolov7.model.spec import Network
from yolov7.model.variants.yolov6 import P5, Base, Size, bifusion, efficient


def small_efficient(
    release: str = "2.0",
    *,
    base: Base = P5,
    anchor_aided: bool = False,
    distributions: bool = False,
    objectness: bool = False,
    **size: Any,
) -> Network:
    """Widths of a sixteenth of the base's, two blocks or a unit in a stage; `size` are further fields of `Size`."""
    made = Size(**{"depth": 0.17, "width": 1 / 16, "csp_spp": release == "3.0"} | size)
    network = efficient(made, "small-efficient", base=base, top_down=bifusion if release == "3.0" else None)
    options = {"anchor_aided": anchor_aided, "distributions": distributions, "objectness": objectness}
    return with_options(network, **options)


def small_efficient_detector(num_classes: int = 3, seed: int = 0, release: str = "2.0", **size: Any) -> Detector:
    """Training form with fresh weights."""
    return create_model(small_efficient(release, **size), num_classes, seed=seed)


def trained_efficient(network: Network, num_classes: int = 3, seed: int = 3) -> Detector:
    """Training form, eval mode, with statistics, weights and biases as if it had been trained: distances and scores
    vary from cell to cell, and most cells hold nothing.
    """
    model = create_model(network, num_classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of the one batch below
                normal(module.weight, 1.0, 0.2)
                normal(module.bias, 0.0, 0.2)
            elif isinstance(module, nn.Conv2d):
                gain = 0.5 if name.endswith("box_output.conv") and not model.head.bins else 1.6
                normal(module.weight, 0.0, gain / module.weight[0].numel() ** 0.5)
                if name.endswith(".class_output.conv"):
                    normal(module.bias, -4.0, 0.3)
                elif name.endswith(".box_output.conv") and not model.head.bins:
                    module.bias.fill_(2.0)  # strides to each side
        images = [cv2.resize(image, (2 * SIDE, 2 * SIDE)) for image in pictures(6)]
        model.train()(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255)
    return model.eval()
