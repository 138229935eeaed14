"""Batches for evaluation: every image once, letterboxed, with what it takes to map boxes back to the original."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from yolov7.data.annotated import read_annotated
from yolov7.data.decode import load_size, resize_to_long_side
from yolov7.data.index import Index
from yolov7.data.workers import OrderedMap
from yolov7.letterbox import pad_to, unletterbox


@dataclass
class EvalBatch:
    """Letterboxed images of one shape, and the way back."""

    images: torch.Tensor
    """(B, 3, H, W) uint8 RGB, contiguous."""
    image_ids: list[int]
    """COCO ids."""
    indices: list[int]
    """Positions in the index."""
    original_sizes: NDArray[np.int64]
    """(B, 2) height, width of the originals in pixels."""
    scales: NDArray[np.float64]
    """(B, 2) batch pixels per original pixel along x, y (they differ by the rounding of the sides)."""
    pads: NDArray[np.int64]
    """(B, 2) x, y of the image's top-left corner in the batch."""

    def __len__(self) -> int:
        return len(self.indices)

    def pin_memory(self) -> EvalBatch:
        """Page-locked images, for copies to a device that do not block."""
        self.images = self.images.pin_memory()
        return self

    def to_original(self, position: int, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes (n, 4) xyxy in pixels of the batch image at `position`, in clipped pixels of its original."""
        height, width = (int(side) for side in self.original_sizes[position])
        scale_x, scale_y = (float(scale) for scale in self.scales[position])
        pad_x, pad_y = (float(pad) for pad in self.pads[position])
        return unletterbox(boxes, (scale_x, scale_y), (pad_x, pad_y), height, width)

    def to_batch(self, position: int, boxes: NDArray[np.floating]) -> NDArray[np.float32]:
        """Boxes (n, 4) xyxy in pixels of the original, in pixels of the batch image at `position`."""
        scale, pad = np.tile(self.scales[position], 2), np.tile(self.pads[position], 2)
        return (np.asarray(boxes, np.float64).reshape(-1, 4) * scale + pad).astype(np.float32)


@dataclass(frozen=True)
class _Key:
    """What makes a batch: positions in the index, and the shape."""

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

    Each image is resized so that its long side is `image_size` (areas averaged where it shrinks) and centred on grey.
    Square batches are `image_size` on both sides, images in the order of the index; of a (height, width) every batch
    has that shape, and an image is fitted into it: its long side decides unless the other one would not fit.
    Rectangular ones (training sheet, section 9) hold images of similar ratio, sorted by height / width, on the
    smallest shape that fits them, rounded up to multiples of `stride` with half a stride to spare. Raises
    :class:`DataError` for an image that cannot be read or whose size is not the annotated one: an evaluation on part
    of the data would be a wrong figure.
    """
    if rectangular:
        if not isinstance(image_size, int):
            raise ValueError("batches of the smallest shape that fits are made for a side, not for a height and width")
        keys = _rectangular_keys(index, image_size, batch_size, stride)
    else:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        starts = range(0, len(index), batch_size)
        batches = (tuple(range(start, min(start + batch_size, len(index)))) for start in starts)
        keys = [_Key(indices, height, width) for indices in batches]
    read = OrderedMap(_EvalReader(index, image_size if isinstance(image_size, int) else None), workers=workers)
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
    image_size: int | None
    """Long side of every image; None: as long as fits the batch's shape."""

    def __call__(self, key: _Key) -> EvalBatch:
        count = len(key.indices)
        pixels = np.empty((count, key.height, key.width, 3), np.uint8)
        sizes, pads = np.empty((count, 2), np.int64), np.empty((count, 2), np.int64)
        scales = np.empty((count, 2))
        for row, i in enumerate(key.indices):
            sizes[row] = self.index.size(i)
            image = read_annotated(self.index, i)
            long_side = self.image_size
            if long_side is None:
                ratio = min(key.height / image.shape[0], key.width / image.shape[1])
                long_side = round(max(image.shape[:2]) * ratio)
            height, width = load_size(image.shape[0], image.shape[1], long_side)
            scales[row] = width / image.shape[1], height / image.shape[0]
            resized = resize_to_long_side(image, long_side, area=True)
            pixels[row], pads[row] = pad_to(resized, key.height, key.width)
        return EvalBatch(
            images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            image_ids=[self.index.image_id(i) for i in key.indices],
            indices=list(key.indices),
            original_sizes=sizes,
            scales=scales,
            pads=pads,
        )
