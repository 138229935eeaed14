"""What the network is shown, as a picture: a batch after augmentation, with its labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from yolov7.data.loader import Batch
from yolov7.files import atomic_path
from yolov7.predict.draw import draw_boxes


def draw_batch(batch: Batch, class_names: Sequence[str], path: Path, *, most: int = 16) -> None:
    """Write the first images of a batch, in a grid, with their target boxes and class names."""
    tiles = []
    targets = batch.targets.numpy()
    for number, image in enumerate(batch.images[:most].numpy()):
        own = targets[targets[:, 0] == number]
        labels = own[:, 1].astype(np.int64)
        names = [class_names[label] for label in labels]
        tiles.append(draw_boxes(image.transpose(1, 2, 0), own[:, 2:6], labels, names, smallest_side=320))
    columns = int(np.ceil(np.sqrt(len(tiles))))
    blank = np.full_like(tiles[0], 114)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    grid = cv2.cvtColor(np.concatenate(rows, axis=0), cv2.COLOR_RGB2BGR)
    with atomic_path(path) as temporary:
        if not cv2.imwrite(str(temporary), grid):
            raise OSError(f"{path}: the picture could not be written")
