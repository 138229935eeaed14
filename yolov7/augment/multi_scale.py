"""Training at varying sizes: a whole batch is resized at once (training sheet, section 4.7)."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

_STREAM = 1
"""Keeps these numbers apart from those of the samples, which are drawn from (seed, epoch, index)."""


def multi_scale_size(image_size: int, stride: int, *, seed: int, epoch: int, batch: int) -> int:
    """The side for one batch, a pure function of (seed, epoch, batch): uniform over the multiples of `stride` from
    half to one and a half times `image_size`.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, batch], spawn_key=(_STREAM,)))
    side = int(rng.integers(image_size // 2, image_size * 3 // 2 + stride))
    return max(side // stride, 1) * stride


def resize_batch(images: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resize images (B, 3, H, W), floating point, to `size` x `size`, bilinear; targets (n, 6) move along.

    Targets are image index, class, x1, y1, x2, y2 in pixels of the batch. Unchanged where the size fits already.
    """
    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images, targets
    factors = targets.new_tensor([1, 1, size / width, size / height, size / width, size / height])
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False), targets * factors
