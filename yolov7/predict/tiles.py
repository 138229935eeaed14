"""Detection on images far larger than the network's input: overlapping tiles at full size, and the image as a whole.

A photograph of 8000 pixels, fitted to the input, leaves nothing of an object of 30. Tiles overlap, so that anything
smaller than the overlap lies whole in one of them; the view of the whole image finds objects larger than a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from yolov7.detections import Detections
from yolov7.errors import ConfigError
from yolov7.model.checkpoint import ModelMetadata
from yolov7.nms import batched_nms
from yolov7.predict.predictor import Predictor

_CUT = 2.0
"""Pixels: a box that ends this near a tile's inner edge was probably cut by it."""
_CHUNK = 256
"""Cut boxes compared with all others at a time."""
_COVERED = 0.6
"""Share of a cut box that lies inside a larger box of its class if it is a piece of it."""


class TiledPredictor:
    """Detections of images by overlapping tiles of the size of the network's input.

    `overlap`: share of a tile's side that it has in common with the next. `max_detections`: limit for a whole image
    (default: none); the predictor's own limit applies to each tile. Images that fit into one tile are predicted without
    tiling. Raises :class:`ConfigError` for values out of range.
    """

    def __init__(self, predictor: Predictor, overlap: float = 0.2, *, max_detections: int | None = None):
        if not 0.0 <= overlap < 0.9:
            raise ConfigError(f"the overlap of tiles is a share of their side from 0 to 0.9, got {overlap}")
        if max_detections is not None and max_detections < 1:
            raise ConfigError(f"max_detections: at least 1 is needed, got {max_detections}")
        self.predictor, self.overlap, self.max_detections = predictor, overlap, max_detections

    @property
    def metadata(self) -> ModelMetadata:
        """Metadata of the model."""
        return self.predictor.metadata

    @property
    def batch_size(self) -> int:
        """Images, or tiles, per forward pass."""
        return self.predictor.batch_size

    @property
    def confidence(self) -> float:
        """Score threshold."""
        return self.predictor.confidence

    @property
    def iou(self) -> float:
        """IoU threshold of the suppression, inside a tile and between tiles."""
        return self.predictor.iou

    def predict(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Detections]:
        """As :meth:`Predictor.predict`: detections in pixels of each image, by falling score."""
        several = [images] if isinstance(images, np.ndarray) and images.ndim == 3 else list(images)
        return [self._predict(image) for image in several]

    def _predict(self, image: np.ndarray) -> Detections:
        (whole,) = self.predictor.predict(image)
        height, width = image.shape[:2]
        corners = tile_corners((height, width), self.predictor.canvas, self.overlap)
        if len(corners) == 1:
            return whole
        tall, wide = self.predictor.canvas
        views = [image[top : top + tall, left : left + wide] for top, left in corners]
        found = [whole, *self.predictor.predict(views)]
        offsets = [(0, 0), *corners]
        boxes = torch.cat(
            [
                view.boxes + torch.tensor([left, top, left, top])
                for view, (top, left) in zip(found, offsets, strict=True)
            ]
        )
        cut = torch.cat(
            [torch.zeros(len(whole), dtype=torch.bool)]
            + [
                _cut(detections.boxes, view.shape, corner, (height, width))
                for detections, view, corner in zip(found[1:], views, corners, strict=True)
            ]
        )
        scores = torch.cat([view.scores for view in found])
        labels = torch.cat([view.labels for view in found])
        kept = batched_nms(boxes, scores, labels, self.iou)
        boxes, scores, labels, cut = boxes[kept], scores[kept], labels[kept], cut[kept]
        kept = (~_pieces(boxes, labels, cut)).nonzero()[: self.max_detections, 0]
        return replace(whole, boxes=boxes[kept], scores=scores[kept], labels=labels[kept])


def tile_corners(size: tuple[int, int], tile: tuple[int, int], overlap: float) -> list[tuple[int, int]]:
    """(top, left) of the tiles that cover an image of `size`, all (height, width): evenly spread, overlapping by at
    least `overlap` of a tile's side."""
    tops, lefts = (_starts(whole, part, overlap) for whole, part in zip(size, tile, strict=True))
    return [(top, left) for top in tops for left in lefts]


def _starts(whole: int, part: int, overlap: float) -> list[int]:
    if whole <= part:
        return [0]
    count = 1 + int(np.ceil((whole - part) / max(part * (1 - overlap), 1)))
    return [int(start) for start in np.linspace(0, whole - part, count).round()]


def _cut(boxes: Tensor, shape: tuple[int, ...], corner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(n,) whether a box of a tile ends at an edge of the tile that is not an edge of the image."""
    (top, left), (tall, wide) = corner, shape[:2]
    ends = torch.stack([boxes[:, 0], boxes[:, 1], wide - boxes[:, 2], tall - boxes[:, 3]], dim=1) < _CUT
    inner = torch.tensor([left > 0, top > 0, left + wide < size[1], top + tall < size[0]])
    return (ends & inner).any(dim=1)


def _pieces(boxes: Tensor, labels: Tensor, cut: Tensor) -> Tensor:
    """(n,) whether a box that is `cut` lies mostly inside a larger one of its class."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    pieces = torch.zeros(len(boxes), dtype=torch.bool)
    for rows in cut.nonzero()[:, 0].split(_CHUNK):  # tens of thousands are possible: never all against all
        low = torch.maximum(boxes[rows, None, :2], boxes[None, :, :2])
        high = torch.minimum(boxes[rows, None, 2:], boxes[None, :, 2:])
        shared = (high - low).clamp(min=0).prod(dim=2)  # (rows, n)
        inside = shared >= _COVERED * areas[rows, None]
        larger = areas[None, :] > areas[rows, None]
        pieces[rows] = (inside & larger & (labels[rows, None] == labels[None, :])).any(dim=1)
    return pieces
