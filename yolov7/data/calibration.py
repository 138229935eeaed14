"""A check of the images that ranges are calibrated on, whatever is calibrated: files or the quantised form."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import numpy as np

from yolov7.errors import DataError
from yolov7.letterbox import FILL

log = logging.getLogger(__name__)


def checked(batches: Iterable[np.ndarray], what: str) -> Iterator[np.ndarray]:
    """The batches, uint8 (B, 3, H, W), unchanged; `what` starts the messages.

    After the last one, images that are all the same give a warning. Raises :class:`DataError` if there were none, or
    none with more than one colour.
    """
    count, plain, differ, first = 0, 0, False, None
    for batch in batches:
        for image in batch:
            count += 1
            plain += _is_plain(image)
            first = image if first is None else first
            differ = differ or not np.array_equal(image, first)
        yield batch
    if not count:
        raise DataError(f"{what}: no images to calibrate with; the training split is empty")
    if plain == count:
        raise DataError(
            f"{what}: the {count} calibration images are of a single colour each, so they say nothing about the "
            "ranges; check the images of the training split"
        )
    if count > 1 and not differ:
        log.warning(
            "%s: the %d calibration images are all the same, so the ranges are those of one image; check the images "
            "of the training split",
            what,
            count,
        )


def _is_plain(image: np.ndarray) -> bool:
    """A single colour (3, H, W), apart from a border of grey."""
    flat = image.reshape(len(image), -1)
    inside = flat[:, (flat != FILL).any(axis=0)]
    return bool((inside == inside[:, :1]).all())
