"""Training batches: an order for every epoch, a share for every rank, workers that change nothing but the speed.

The order of an epoch is a permutation drawn from (seed, epoch). It is cut into global batches of
`batch_size * world_size` images, and each rank takes every `world_size`-th image of each of them: two processes with
batches of B see, step by step, the images that one process sees with batches of 2B.

Unless images are drawn by weights, every one is seen in every epoch: the last, shorter batch is kept, because data
sets of a few hundred images cannot spare it. Where the images do not divide among the ranks, the epoch's first ones
(at most `world_size - 1`) are seen twice, so that all ranks take equally many steps of equal size and none waits for
another. An image that comes again in an epoch is augmented otherwise each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolov7.data.dataset import TrainDataset
from yolov7.data.workers import OrderedMap

_ORDER = 3
"""Names the random stream of the epochs' orders, apart from those of the samples."""


@dataclass
class Batch:
    """Augmented samples of one step."""

    images: Tensor
    """(B, 3, S, S) uint8 RGB, in channels_last memory order."""
    targets: Tensor
    """(n, 6) float32: image of the batch, class, x1, y1, x2, y2 in pixels."""
    image_ids: list[int]
    """COCO ids of the images the samples were made around."""
    epoch: int
    """Epoch, from 0."""
    batch_index: int
    """Number of the batch in the epoch, from 0, the same on all ranks."""
    tables: Tensor | None = None
    """(B, 3, 256) uint8 tables that the images still need (:mod:`yolov7.augment.device_color`); None: nothing is left
    to do."""
    skipped: list[str] = field(default_factory=list)
    """Images that could not be read, each with file and reason; another image took its place."""
    unreadable: dict[str, int] = field(default_factory=dict)
    """The number of the image of each of these lines."""

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """Page-locked tensors, for copies to a device that do not block."""
        self.images, self.targets = self.images.pin_memory(), self.targets.pin_memory()
        self.tables = None if self.tables is None else self.tables.pin_memory()
        return self


class BatchKey(NamedTuple):
    """Everything that determines a batch, so that a worker needs no state."""

    epoch: int
    batch_index: int
    indices: tuple[int, ...]
    repeats: tuple[int, ...]
    """Earlier occurrences of each image in the epoch."""


def epoch_order(length: int, *, seed: int, epoch: int, weights: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """The order of `length` images in an epoch: a permutation (length,), a pure function of (seed, epoch).

    With `weights` (length,) as many images are drawn by them, with replacement: some are seen again, some not at all.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(_ORDER,)))
    if weights is None:
        return rng.permutation(length)
    return rng.choice(length, size=length, p=weights / weights.sum())


def epoch_keys(
    length: int,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    start_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    weights: NDArray[np.float64] | None = None,
) -> list[BatchKey]:
    """The batches of one rank in an epoch, from number `start_batch` on. `batch_size` is this rank's."""
    order = epoch_order(length, seed=seed, epoch=epoch, weights=weights)
    missing = -length % world_size
    order = np.concatenate([order, np.resize(order, missing)])
    repeats = _repeats(order)  # over all ranks and from the first batch on, wherever this call begins
    step = batch_size * world_size
    keys = []
    for start in range(start_batch * step, len(order), step):
        own = slice(start + rank, start + step, world_size)
        keys.append(BatchKey(epoch, start // step, tuple(order[own].tolist()), tuple(repeats[own].tolist())))
    return keys


def _repeats(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each place of `order` (n,) how often its image stands before it."""
    places = np.argsort(order, kind="stable")
    # Equal images side by side, in the order of their places: each counts from the first of its kind.
    ranked = order[places]
    first = np.searchsorted(ranked, ranked)
    repeats = np.empty_like(order)
    repeats[places] = np.arange(len(order)) - first
    return repeats


@dataclass(frozen=True)
class _BatchBuilder:
    """Makes one batch; runs in the workers."""

    dataset: TrainDataset

    def __call__(self, key: BatchKey) -> Batch:
        size = self.dataset.image_size
        pixels = np.empty((len(key.indices), size, size, 3), np.uint8)
        targets = [np.zeros((0, 6), np.float32)]
        skipped: list[str] = []
        unreadable: dict[str, int] = {}
        tables = []
        for position, (index, repeat) in enumerate(zip(key.indices, key.repeats, strict=True)):
            sample = self.dataset[key.epoch, index, repeat]
            pixels[position] = sample.image
            rows = np.full((len(sample.boxes), 6), position, np.float32)
            rows[:, 1], rows[:, 2:] = sample.labels, sample.boxes
            targets.append(rows)
            if sample.tables is not None:
                tables.append(sample.tables)
            skipped += sample.skipped
            unreadable |= zip(sample.skipped, sample.unreadable, strict=True)
        return Batch(
            images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            targets=torch.from_numpy(np.concatenate(targets)),
            image_ids=[self.dataset.index.image_id(index) for index in key.indices],
            epoch=key.epoch,
            batch_index=key.batch_index,
            tables=torch.from_numpy(np.stack(tables)) if tables else None,
            skipped=skipped,
            unreadable=unreadable,
        )


class TrainLoader:
    """Batches of any epoch, from workers that live as long as the loader.

    `batch_size` is the number of images per batch of this rank. With 0, 1 or more workers the batches are the same.
    `weights` (one for each image): how often it is drawn; None: every image once an epoch.
    """

    def __init__(
        self,
        dataset: TrainDataset,
        *,
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}")
        self.dataset, self.batch_size = dataset, batch_size
        self.rank, self.world_size = rank, world_size
        self.weights = weights
        self._build = OrderedMap(_BatchBuilder(dataset), workers=workers, pin_memory=pin_memory)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of an epoch, the last, shorter one included; the same on all ranks."""
        return -(-len(self.dataset) // (self.batch_size * self.world_size))

    def image_ids(self, epoch: int, batch: int) -> list[int]:
        """COCO ids of the images of batch number `batch` of `epoch`, those of all ranks."""
        order = epoch_order(len(self.dataset), seed=self.dataset.seed, epoch=epoch, weights=self.weights)
        step = self.batch_size * self.world_size
        return [self.dataset.index.image_id(index) for index in order[batch * step : (batch + 1) * step].tolist()]

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from number `start_batch` on: exactly those an uninterrupted run would see there."""
        keys = epoch_keys(
            len(self.dataset),
            seed=self.dataset.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            start_batch=start_batch,
            rank=self.rank,
            world_size=self.world_size,
            weights=self.weights,
        )
        return self._build(keys)

    def close(self) -> None:
        """End the workers."""
        self._build.close()
