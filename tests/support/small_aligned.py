"""A small YOLOv9: blocks, head and auxiliary branch of the published ones on two levels, for tests of what comes after
training.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from small_detector import SIDE, pictures
from torch import nn

from yolov7.model import Detector, create_model
from yolov7.model.blocks import AvgConv, AvgDown, Concat, Conv, Gelan, SppElan, Upsample
from yolov7.model.heads.gelan import GelanHead
from yolov7.model.pgi import fused, linear_taps
from yolov7.model.spec import IMAGE, Network, Stage

_WIDTHS = (12, 16)
_GAINS = {"box.2.conv": 4.0, "classes.2.conv": 2.0}  # of the last convolutions, whose outputs differ most


def small_aligned_network() -> Network:
    """Strides 4 and 8; every kind of layer of YOLOv9, with CBLinear and CBFuse in the auxiliary branch."""
    return Network(
        name="small-aligned",
        backbone=(
            Stage("stem", Conv(8, 3, 2)),
            Stage("D2", AvgDown(12)),
            Stage("B2", Gelan(12, 12, 6, block="csp")),
            Stage("D3", AvgConv(16)),
            Stage("B3", Gelan(16, 16, 8, block="plain")),
        ),
        neck=(
            Stage("SPP", SppElan(16, 8)),
            Stage("U2", Upsample()),
            Stage("J2", Concat(), of=("U2", "B2")),
            Stage("T2", Conv(12, 3)),
        ),
        auxiliary=(
            *linear_taps(("B2", "B3"), _WIDTHS, prefix="AC"),
            Stage("Astem", Conv(8, 3, 2), of=(IMAGE,)),
            Stage("AD2", Conv(12, 3, 2)),
            fused("AF2", "AD2", 0, _WIDTHS, prefix="AC"),
            Stage("AD3", Conv(16, 3, 2)),
            fused("AF3", "AD3", 1, _WIDTHS, prefix="AC"),
        ),
        head=GelanHead(lead=("T2", "SPP"), auxiliary=("AF2", "AF3")),
    )


def small_aligned(num_classes: int = 3, seed: int = 3) -> Detector:
    """Training form, eval mode, with statistics, weights and biases as if it had been trained: distributions and
    scores vary from cell to cell, and most cells hold nothing.
    """
    model = create_model(replace(small_aligned_network(), image_size=SIDE), num_classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    bins = torch.arange(16.0)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of the one batch below
                normal(module.weight, 1.0, 0.2)
                normal(module.bias, 0.0, 0.2)
            elif isinstance(module, nn.Conv2d):
                gain = _GAINS.get(name.split(".", 3)[-1], 1.6)
                normal(module.weight, 0.0, gain / module.weight[0].numel() ** 0.5)
                if name.endswith(".box.2.conv"):  # a few strides to each side
                    module.bias.copy_((-0.3 * (bins - 3.0).abs()).repeat(4))
                elif name.endswith(".classes.2.conv"):
                    normal(module.bias, -4.0, 0.3)
        images = [cv2.resize(image, (SIDE, SIDE)) for image in pictures(6)]
        model.train()(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255)
    return model.eval()
