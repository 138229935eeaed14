"""Batches for evaluation: every image once, fitted to the network's input, and boxes back to the original."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.data.annotated import read_annotated
from yolov7.data.index import Index
from yolov7.data.workers import OrderedMap
from yolov7.letterbox import fit, to_original


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
    """(B, 2) batch pixels per original pixel along x, y."""
    pads: NDArray[np.int64]
    """(B, 2) x, y of the image's top-left corner in the batch."""

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
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[EvalBatch, None, None]:
    """Every image of `index` exactly once, over all ranks together.

    Images are fitted to `image_size`, a side or (height, width), in the order of the index. Rectangular batches
    (training sheet, section 9) hold images of similar ratio instead, sorted by height / width, their long sides
    `image_size`, on the smallest shape that fits them, rounded up to multiples of `stride` with half a stride to
    spare. Raises :class:`DataError` for an image that is unreadable or not of the annotated size: an evaluation on
    part of the data would be a wrong figure.
    """
    if rectangular:
        if not isinstance(image_size, int):
            raise ValueError("rectangular batches need one side, not a height and a width")
        keys = _rectangular_keys(index, image_size, batch_size, stride)
    else:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        starts = range(0, len(index), batch_size)
        batches = (tuple(range(start, min(start + batch_size, len(index)))) for start in starts)
        keys = [_Key(indices, height, width) for indices in batches]
    long_side = image_size if rectangular and isinstance(image_size, int) else None
    read = OrderedMap(_EvalReader(index, long_side), workers=workers)
    try:
        yield from read(keys[rank::world_size])
    finally:
        read.close()


def _rectangular_keys(index: Index, image_size: int, batch_size: int, stride: int) -> list[_Key]:
    sizes = np.array([index.size(i) for i in range(len(index))], np.float64).reshape(-1, 2)
    ratios = sizes[:, 0] / sizes[:, 1]
    order = np.argsort(ratios, kind="stable")
    keys = []
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        low, high = ratios[indices].min(), ratios[indices].max()
        shape = (high, 1.0) if high < 1 else (1.0, 1 / low) if low > 1 else (1.0, 1.0)
        height, width = (math.ceil(side * image_size / stride + 0.5) * stride for side in shape)
        keys.append(_Key(tuple(int(i) for i in indices), height, width))
    return keys


@dataclass(frozen=True)
class _EvalReader:
    """Reads one batch; runs in the workers."""

    index: Index
    long_side: int | None
    """Of every image; None: as long as fits the batch's shape."""

    def __call__(self, key: _Key) -> EvalBatch:
        count = len(key.indices)
        pixels = np.empty((count, key.height, key.width, 3), np.uint8)
        sizes, pads = np.empty((count, 2), np.int64), np.empty((count, 2), np.int64)
        scales = np.empty((count, 2))
        for row, i in enumerate(key.indices):
            fitted = fit(read_annotated(self.index, i), key.height, key.width, long_side=self.long_side)
            pixels[row], scales[row], pads[row], sizes[row] = fitted.image, fitted.scale, fitted.pad, fitted.size
        return EvalBatch(
            images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            image_ids=[self.index.image_id(i) for i in key.indices],
            indices=list(key.indices),
            original_sizes=sizes,
            scales=scales,
            pads=pads,
        )
