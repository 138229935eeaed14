"""Tiles: everything in a large image is found once, whole, wherever the edges of the tiles fall."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_detector import SIDE, metadata_of

from yolov7.errors import ConfigError
from yolov7.predict import Predictor, TiledPredictor
from yolov7.predict.tiles import _pieces, tile_corners


class WhiteBlobs:
    """A runtime that finds white rectangles of at least 5 pixels, and nothing else."""

    def __init__(self, metadata):
        self.metadata, self.stride, self.input_shape = metadata, 8, (None, None, None)
        self.scoring = "objectness x class probability"

    def decoded(self, batch):
        rows = torch.zeros(len(batch), 40, 8)
        for position, image in enumerate(batch):
            white = (image.min(dim=0).values > 200).numpy().astype(np.uint8)
            _, _, boxes, _ = cv2.connectedComponentsWithStats(white)
            boxes = [box for box in boxes[1:] if min(box[2], box[3]) >= 5]
            for row, (left, top, width, height, area) in enumerate(boxes[:40]):
                score = 0.5 + min(area / 40000, 0.4)  # of two views of a thing, the fuller one is surer
                rows[position, row] = torch.tensor([left, top, left + width, top + height, score, 1, 0, 0])
        return rows


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(WhiteBlobs(metadata_of(trained)), confidence=0.3, iou=0.5)


def painted(size, boxes):
    image = np.zeros((*size, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 255
    return image


def test_small_ones_at_full_size_and_large_ones_as_a_whole(predictor):
    tile = SIDE
    small = [(10, 10, 20, 22), (tile - 6, 40, tile + 6, 50), (380, 280, 398, 298), (200, 5, 216, 14)]
    large = (120, 60, 340, 270)
    image = painted((300, 400), [*small, large])
    (plain,) = predictor.predict(image)
    assert len(plain) == 1, "fitted into the input, only the large one is left"
    (found,) = TiledPredictor(predictor, 0.25).predict(image)
    assert len(found) == 5
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.boxes[0].tolist() == pytest.approx(large, abs=6)
    rest = sorted(tuple(round(side) for side in box) for box in found.boxes[1:].tolist())
    assert rest == sorted(small)


def test_the_limit_of_one_input_is_not_that_of_a_large_image(trained):
    few = Predictor(WhiteBlobs(metadata_of(trained)), confidence=0.3, iou=0.5, max_detections=20)
    boxes = [(x, y, x + 8, y + 8) for y in range(4, 380, 24) for x in range(4, 380, 24)]
    image = painted((384, 384), boxes)
    (found,) = TiledPredictor(few, 0.2).predict(image)
    assert sorted(tuple(round(side) for side in box) for box in found.boxes.tolist()) == sorted(boxes)
    assert len(boxes) == 256
    (limited,) = TiledPredictor(few, 0.2, max_detections=30).predict(image)
    assert len(limited) == 30
    with pytest.raises(ConfigError, match="at least 1"):
        TiledPredictor(few, max_detections=0)


def test_pieces_are_the_cut_boxes_inside_larger_ones_however_many_there_are():
    rng = np.random.default_rng(0)
    corners = torch.from_numpy(rng.uniform(0, 300, (900, 2)).astype(np.float32))
    boxes = torch.cat([corners, corners + torch.from_numpy(rng.uniform(2, 90, (900, 2)).astype(np.float32))], dim=1)
    labels, cut = torch.from_numpy(rng.integers(0, 3, 900)), torch.from_numpy(rng.random(900) < 0.7)
    found = _pieces(boxes, labels, cut)
    for i in range(0, 900, 7):
        sides = (torch.minimum(boxes[:, 2:], boxes[i, 2:]) - torch.maximum(boxes[:, :2], boxes[i, :2])).clamp(min=0)
        area, areas = (boxes[i, 2:] - boxes[i, :2]).prod(), (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        covers = (sides.prod(dim=1) >= 0.6 * area) & (areas > area) & (labels == labels[i])
        assert bool(found[i]) == bool(cut[i] and covers.any())
    assert 0 < found.sum() < 900


def test_an_image_of_one_tile_is_predicted_without_tiling(predictor):
    image = painted((60, 90), [(10, 10, 30, 30)])
    (plain,), (tiled,) = predictor.predict(image), TiledPredictor(predictor, 0.2).predict(image)
    assert torch.equal(plain.boxes, tiled.boxes) and len(tiled) == 1
    assert [len(one) for one in TiledPredictor(predictor).predict([image, np.zeros((500, 500, 3), np.uint8)])] == [1, 0]


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(1, 2000)] * 2), st.tuples(*[st.integers(8, 640)] * 2), st.floats(0, 0.8))
def test_tiles_cover_the_image_overlap_enough_and_stay_inside(size, tile, overlap):
    corners = tile_corners(size, tile, overlap)
    assert len(set(corners)) == len(corners)
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in corners})
        assert starts[0] == 0
        assert starts[-1] + tile[axis] == size[axis] or (len(starts) == 1 and tile[axis] >= size[axis])
        steps = np.diff(starts)
        assert (steps <= tile[axis] * (1 - overlap) + 1).all()


def test_an_impossible_overlap_is_refused(predictor):
    with pytest.raises(ConfigError, match=r"from 0 to 0\.9, got 1"):
        TiledPredictor(predictor, 1.0)
