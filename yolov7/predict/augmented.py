"""Test-time augmentation: several smaller and mirrored views of each batch (training sheet, section 9).

The predictions of all views are mapped back and concatenated; the suppression that follows merges them. Works for
prediction and evaluation with any runtime.

Legend: B batch, N predictions of a view, F columns.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from yolov7.errors import ModelError
from yolov7.letterbox import FILL
from yolov7.predict.runtimes import ImageBatch, Runtime

Views = Literal["all", "scales", "flip"]

VIEWS: dict[Views, tuple[tuple[float, bool], ...]] = {
    "all": ((1.0, False), (0.83, True), (0.67, False)),
    "scales": ((1.0, False), (0.83, False), (0.67, False)),
    "flip": ((1.0, False), (1.0, True)),
}
"""(scale, mirrored) of each view. `all` is the published set; `scales` is for objects that mirroring changes, such as
letters."""


class AugmentedRuntime:
    """A runtime around another one, which it runs once per view.

    Raises :class:`ModelError` for a runtime with the suppression inside, and for scaled views of an input whose sides
    were fixed when it was exported.
    """

    def __init__(self, runtime: Runtime, views: Views = "all"):
        if not isinstance(runtime, Runtime):
            raise ModelError("this file has the suppression inside, so its views cannot be merged; use model.onnx")
        _, height, width = runtime.input_shape
        if height is not None and any(scale != 1.0 for scale, _ in VIEWS[views]):
            raise ModelError(
                f"{runtime.metadata.variant}: exported for images of {height} x {width} alone; augment by `flip` only, "
                "or export with dynamic sides"
            )
        self.runtime, self.views = runtime, VIEWS[views]
        self.metadata, self.input_shape, self.stride = runtime.metadata, runtime.input_shape, runtime.stride
        self.scoring = runtime.scoring

    def decoded(self, images: ImageBatch) -> Tensor:
        """As :meth:`Runtime.decoded`: (B, sum of N, F), boxes in pixels of `images`, view after view."""
        batch = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        return torch.cat([self._seen(batch, scale, mirrored) for scale, mirrored in self.views], dim=1)

    def _seen(self, batch: Tensor, scale: float, mirrored: bool) -> Tensor:
        height, width = batch.shape[2:]
        tall, wide = max(round(height * scale), 1), max(round(width * scale), 1)
        view = batch if scale == 1.0 else _resized(batch, tall, wide)
        view = view.flip(3) if mirrored else view
        below, beside = -tall % self.stride, -wide % self.stride
        found = self.runtime.decoded(F.pad(view, (0, beside, 0, below), value=FILL) if below or beside else view)
        x1, y1, x2, y2 = found[..., :4].unbind(-1)
        if mirrored:
            x1, x2 = wide - x2, wide - x1
        boxes = torch.stack([x1 * (width / wide), y1 * (height / tall), x2 * (width / wide), y2 * (height / tall)], -1)
        return torch.cat([boxes, found[..., 4:]], dim=-1)


def _resized(batch: Tensor, height: int, width: int) -> Tensor:
    """uint8 (B, 3, H, W) shrunk, with antialiasing."""
    smaller = F.interpolate(batch.float(), (height, width), mode="bilinear", antialias=True, align_corners=False)
    return smaller.round().clamp(0, 255).to(torch.uint8)
