"""Blending two samples into one (training sheet, section 4, step 1)."""

from __future__ import annotations

import cv2
import numpy as np

from yolov7.augment.mosaic import Rendered, bounding_rectangle


def mix(first: Rendered, second: Rendered, ratio: float) -> Rendered:
    """`ratio` of the first image plus the rest of the second, rounded; the labels of both, with equal weight."""
    return Rendered(
        image=cv2.addWeighted(first.image, ratio, second.image, 1 - ratio, 0),
        content=bounding_rectangle([first.content, second.content]),
        boxes=np.concatenate([first.boxes, second.boxes]),
        labels=np.concatenate([first.labels, second.labels]),
    )
