"""Annotations given twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 20
"""Boxes compared at a time."""


def find_repeated(images: NDArray[Any], labels: NDArray[Any], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True for every box (N, 4) that an earlier one repeats exactly: same image, class and box. NaN equals nothing.

    `images` (N,) and `labels` (N,) are any numbers that tell images and classes apart.
    """
    repeated = np.zeros(len(boxes), np.bool_)
    sorted_already = bool((images[1:] >= images[:-1]).all())
    by_image = None if sorted_already else np.argsort(images, kind="stable")
    ordered = images if by_image is None else images[by_image]
    first = 0
    while first < len(ordered):
        # Whole images, about `_PIECE` boxes of them.
        end = int(np.searchsorted(ordered, ordered[min(first + _PIECE, len(ordered)) - 1], side="right"))
        some: Any = slice(first, end) if by_image is None else by_image[first:end]
        image, label, box = ordered[first:end], labels[some], boxes[some]
        # Sorted by everything (stable, so the first of the file stays first), a repetition follows its original.
        order = np.lexsort((*box.T, label, image))
        same = (box[order[1:]] == box[order[:-1]]).all(1)
        same &= (label[order[1:]] == label[order[:-1]]) & (image[order[1:]] == image[order[:-1]])
        again = order[1:][same]
        repeated[again + first if by_image is None else some[again]] = True
        first = end
    return repeated
