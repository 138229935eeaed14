"""Batches for evaluation: every image once, fitted to the network's input, and boxes back to the original."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.data.annotated import read_annotated
from yolov7.data.index import Index
from yolov7.data.workers import OrderedMap
from yolov7.letterbox import Border, Image, check_border, fit, to_original

NO_BORDER = Border()


@dataclass
class EvalBatch:
    """Images fitted to one shape, and the way back."""

    images: torch.Tensor
    """(B, 3, H, W) uint8 RGB, contiguous."""
    image_ids: list[int]
    """COCO ids."""
    indices: list[int]
    """Positions in the index."""
    original_sizes: NDArray[np.int64]
    """(B, 2) height, width of the originals in pixels."""
    scales: NDArray[np.float64]
    """(B, 2) batch pixels per original pixel along x, y, as boxes are divided by."""
    pads: NDArray[np.float64]
    """(B, 2) x, y of the image's top-left corner in the batch, as it is subtracted from boxes."""

    def __len__(self) -> int:
        return len(self.indices)

    def pin_memory(self) -> EvalBatch:
        """Page-lock the images, so that copies to a device do not block."""
        self.images = self.images.pin_memory()
        return self

    def to_original(self, position: int, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes (n, 4) xyxy in pixels of the batch image at `position`, in pixels of its original, clipped to it."""
        rows = self.scales[position].tolist(), self.pads[position].tolist(), self.original_sizes[position].tolist()
        scale, pad, size = (tuple(row) for row in rows)
        return to_original(boxes, scale=scale, pad=pad, size=size)


@dataclass(frozen=True)
class _Key:
    """A batch to read: positions in the index, and the shape."""

    indices: tuple[int, ...]
    height: int
    width: int


def evaluation_batches(
    index: Index,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    stride: int,
    rectangular: bool = False,
    border: Border = NO_BORDER,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[EvalBatch, None, None]:
    """Every image of `index` exactly once, over all ranks together.

    Images are fitted to `image_size`, a side or (height, width), in the order of the index. Rectangular batches
    (training sheet, section 9) hold images of similar ratio instead, sorted by height / width, their long sides
    `image_size`, on the smallest shape that fits them, rounded up to multiples of `stride` with half a stride to
    spare (`border.spare`). `border` shortens the long sides. Raises :class:`DataError` for an image that is unreadable
    or not of the annotated size: an evaluation on part of the data would be a wrong figure; :class:`ConfigError` for a
    border that leaves no room for the image.
    """
    check_border(border.pixels, (image_size, image_size) if isinstance(image_size, int) else image_size)
    if rectangular:
        if not isinstance(image_size, int):
            raise ValueError("rectangular batches need one side, not a height and a width")
        keys = _rectangular_keys(index, image_size, batch_size, stride, border.spare)
    else:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        starts = range(0, len(index), batch_size)
        batches = (tuple(range(start, min(start + batch_size, len(index)))) for start in starts)
        keys = [_Key(indices, height, width) for indices in batches]
    long_side = image_size - border.pixels if rectangular and isinstance(image_size, int) else None
    read = OrderedMap(_EvalReader(index, long_side, border), workers=workers)
    try:
        yield from read(keys[rank::world_size])
    finally:
        read.close()


def batch_shape(lowest: float, highest: float, image_size: int, stride: int, spare: float) -> tuple[int, int]:
    """(height, width) of a rectangular batch whose images have ratios height / width from `lowest` to `highest`."""
    shape = (highest, 1.0) if highest < 1 else (1.0, 1 / lowest) if lowest > 1 else (1.0, 1.0)
    height, width = (math.ceil(side * image_size / stride + spare) * stride for side in shape)
    return height, width


def _rectangular_keys(index: Index, image_size: int, batch_size: int, stride: int, spare: float) -> list[_Key]:
    sizes = np.array([index.size(i) for i in range(len(index))], np.float64).reshape(-1, 2)
    ratios = sizes[:, 0] / sizes[:, 1]
    order = np.argsort(ratios, kind="stable")
    keys = []
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        height, width = batch_shape(ratios[indices].min(), ratios[indices].max(), image_size, stride, spare)
        keys.append(_Key(tuple(int(i) for i in indices), height, width))
    return keys


@dataclass(frozen=True)
class _EvalReader:
    """Reads one batch; runs in the workers."""

    index: Index
    long_side: int | None
    """Of every image; None: as long as fits the batch's shape with the border."""
    border: Border

    def __call__(self, key: _Key) -> EvalBatch:
        images = (read_annotated(self.index, i) for i in key.indices)
        shape = key.height, key.width
        return framed(self.index, key.indices, images, shape, border=self.border, long_side=self.long_side)


def framed(
    index: Index,
    indices: Sequence[int],
    images: Iterable[Image],
    shape: tuple[int, int],
    *,
    border: Border = NO_BORDER,
    long_side: int | None = None,
) -> EvalBatch:
    """A batch of the images at these `indices`, fitted to `shape` (height, width). `long_side`: see :func:`fit`."""
    count = len(indices)
    pixels = np.empty((count, *shape, 3), np.uint8)
    sizes, pads, scales = np.empty((count, 2), np.int64), np.empty((count, 2)), np.empty((count, 2))
    for row, image in enumerate(images):
        fitted = fit(image, *shape, long_side=long_side, border=border.pixels)
        pixels[row], sizes[row] = fitted.image, fitted.size
        scales[row], pads[row] = border.way_back(fitted)
    return EvalBatch(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        image_ids=[index.image_id(i) for i in indices],
        indices=list(indices),
        original_sizes=sizes,
        scales=scales,
        pads=pads,
    )
