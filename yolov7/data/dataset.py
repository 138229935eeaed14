"""Training samples as a pure function of (seed, epoch, index, how often it came before in the epoch)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import numpy as np

from yolov7.augment.pipeline import augment_sample
from yolov7.augment.sample import Image, Objects, Sample, Shown
from yolov7.config import Augment
from yolov7.data.cache import ImageCache
from yolov7.data.decode import reduction_for
from yolov7.data.index import Index
from yolov7.data.shown import read_shown
from yolov7.errors import ConfigError, DataError
from yolov7.letterbox import load_size

MAX_BROKEN = 16
"""Give up a sample after this many unreadable images: then the storage is gone, not an image."""

_KEPT = 9
"""Images of a sample that are kept until it is complete: the tiles of the largest mosaic."""

_REPLACEMENT = 2
"""Names the random stream that finds replacements for unreadable images."""


class TrainDataset:
    """`dataset[(epoch, index)]` is the augmented sample around image `index`, the same wherever and whenever asked.

    `dataset[(epoch, index, n)]` is another one around it, for the n-th time that it comes again in the epoch.
    Nothing changes between calls, so workers may be forked, spawned, killed and restarted at will.
    """

    def __init__(
        self,
        index: Index,
        *,
        image_size: int,
        augment: Augment,
        seed: int,
        epochs: int | None = None,
        cache: Literal["none", "ram", "disk"] = "none",
        cache_folder: str | os.PathLike[str] = ".state/cache",
    ) -> None:
        """`epochs` is the length of the run; the last `augment.close_mosaic_epochs` of them are without mosaic.

        `cache="ram"` decodes all images now and keeps them, at training size, in memory that the workers share;
        `"disk"` keeps them in a file in `cache_folder`, which serves later runs on the same images too.
        Raises :class:`DataError` for an index without images, or a cache folder that cannot be written, and
        :class:`ConfigError` for a cache beside `augment.reduced_decode`.
        """
        if not len(index):
            raise DataError("there are no images to train on", path=index.folder)
        if augment.reduced_decode and cache != "none":
            raise ConfigError(f"augment.reduced_decode and cache {cache!r} exclude each other; set one of them")
        self.index = index
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.epochs = epochs
        self.has_polygons = index.has_polygons and augment.outlines
        self._cache = None
        if cache != "none":
            shapes = np.array([self.size(i) for i in range(len(index))])
            file = Path(cache_folder) / f"{self._cache_key()}.pixels" if cache == "disk" else None
            self._cache = ImageCache(shapes, lambda i: self._read(i, self.reduction(i)).image, file=file)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, ...]) -> Sample:
        """The sample for (epoch, index), or (epoch, index, n); n = 0 is the one without it.

        An image that cannot be read is replaced, wherever it would have appeared, by a random other one, and named in
        `Sample.skipped`; :class:`DataError` when that happens more than 16 times for one sample.
        """
        epoch, index = int(key[0]), int(key[1])
        entropy = [self.seed, epoch, index, *(int(repeat) for repeat in key[2:] if repeat)]
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        replacements: dict[int, int] = {}
        skipped: list[str] = []
        while True:
            rng = np.random.default_rng(entropy)
            source = _ReplacingSource(self, replacements)
            try:
                sample = augment_sample(
                    source,
                    index,
                    augment=self.augment,
                    size=self.image_size,
                    rng=rng,
                    closed=self.is_closed(epoch),
                )
            except _UnreadableError as broken:
                skipped.append(str(broken.reason))
                if len(skipped) > MAX_BROKEN or len(skipped) >= len(self):
                    message = f"{len(skipped)} images of one sample could not be read; the last: {broken.reason}"
                    raise DataError(message) from None
                replacements[broken.image] = self._replacement(entropy, broken.image, replacements)
            else:
                sample.skipped, sample.unreadable = tuple(skipped), tuple(replacements)
                return sample

    def is_closed(self, epoch: int) -> bool:
        """True if mosaic, mixup and pasting are off in this epoch."""
        return self.epochs is not None and epoch >= self.epochs - self.augment.close_mosaic_epochs

    def _replacement(self, entropy: list[int], image: int, taken: dict[int, int]) -> int:
        """A random image that was not found broken in this sample."""
        stream = np.random.SeedSequence(entropy, spawn_key=(_REPLACEMENT, image))
        rng = np.random.default_rng(stream)
        while True:
            other = int(rng.integers(len(self)))
            if other != image and other not in taken:
                return other

    # The source of images that augmentation asks ---------------------------------------------------------------------

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) of image `i` with its long side at `image_size`."""
        height, width = self.index.size(i)
        return load_size(height, width, self.image_size)

    def objects(self, i: int) -> Objects:
        """Trainable objects of image `i` in pixels of :meth:`size`, boxes clipped to the image."""
        old_height, old_width = self.index.size(i)
        height, width = self.size(i)
        scale = (width / old_width, height / old_height)
        chosen = self.index.trainable(i)
        boxes = self.index.coco_boxes(i)[chosen]
        boxes[:, 2:] += boxes[:, :2]
        boxes *= (*scale, *scale)
        boxes = np.minimum(np.maximum(boxes, 0), (width, height, width, height))
        polygons = None
        if self.has_polygons:
            polygons = self.index.ragged_polygons(i).take(chosen).mapped(scale, (0, 0))
        return Objects(boxes, self.index.labels(i)[chosen], polygons)

    def image(self, i: int) -> Image:
        """Pixels (h, w, 3) RGB of image `i` at :meth:`size`; :class:`DataError` if it cannot be read."""
        return self.shown(i, self.reduction(i)).image

    def reduction(self, i: int, scale: float = 1.0) -> int:
        """Divisor of the sides at which image `i` is decoded if it is a JPEG.

        It depends on the `scale` at which a sample shows the image only with `augment.reduced_decode`.
        """
        if not self.augment.reduced_decode:
            return reduction_for(*self.index.size(i), self.image_size)
        # Never for more than the load size: an enlarged image is as sharp as it is without the option.
        return reduction_for(*self.index.size(i), self.image_size * min(scale, 1.0), rest=True)

    def shown(self, i: int, reduction: int) -> Shown:
        """Pixels of image `i`, decoded at 1 / `reduction`, at :meth:`size` or smaller; errors as of :meth:`image`."""
        cached = None if self._cache is None else self._cache.get(i)
        return self._read(i, reduction) if cached is None else Shown(cached)

    def _cache_key(self) -> str:
        """Changes when an image file does, or the size it is wanted at."""
        root = self.index.image_root.resolve()
        digest = hashlib.sha256(f"1 {self.image_size} {root}".encode())  # 1: version of what _read makes of a file
        for i in range(len(self)):
            try:
                status = self.index.image_path(i).stat()
                found = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                found = "missing"
            digest.update(f"\n{self.index.file_name(i)} {self.index.size(i)} {found}".encode())
        return digest.hexdigest()[:16]

    def _read(self, i: int, reduction: int) -> Shown:
        return read_shown(self.index, i, self.image_size, reduction)


class _UnreadableError(Exception):
    """Image number `image` cannot be read, because of `reason`."""

    def __init__(self, image: int, reason: DataError) -> None:
        super().__init__(image, reason)
        self.image, self.reason = image, reason


class _ReplacingSource:
    """The data set as augmentation sees it, with some images replaced by others in every respect.

    The last images it decoded are kept: each object that is pasted asks for the pixels of its image once more.
    """

    def __init__(self, dataset: TrainDataset, replacements: dict[int, int]) -> None:
        self.dataset = dataset
        self.replacements = replacements
        self.has_polygons = dataset.has_polygons
        self._decoded: dict[tuple[int, int], Shown] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def _actual(self, i: int) -> int:
        while i in self.replacements:
            i = self.replacements[i]
        return i

    def size(self, i: int) -> tuple[int, int]:
        return self.dataset.size(self._actual(i))

    def objects(self, i: int) -> Objects:
        return self.dataset.objects(self._actual(i))

    def image(self, i: int) -> Image:
        return self.shown(i, 1.0).image

    def shown(self, i: int, scale: float) -> Shown:
        actual = self._actual(i)
        key = actual, self.dataset.reduction(actual, scale)
        found = self._decoded.pop(key, None)
        try:
            found = self.dataset.shown(*key) if found is None else found
        except DataError as error:
            raise _UnreadableError(actual, error) from error
        self._decoded[key] = found  # the newest stands last
        if len(self._decoded) > _KEPT:
            del self._decoded[next(iter(self._decoded))]
        return found
