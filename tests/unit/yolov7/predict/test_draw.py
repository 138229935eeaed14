"""Drawing: where boxes and labels land, what stays untouched, colours that differ."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from yolov7.detections import Detections
from yolov7.predict.draw import class_color, draw_boxes, draw_detections, encode_picture, write_picture


def one(box, label=0, score=0.87):
    return Detections(torch.tensor([box], dtype=torch.float32), torch.tensor([score]), torch.tensor([label]))


def test_a_box_is_drawn_in_its_class_colour_and_the_image_stays():
    image = np.zeros((700, 800, 3), np.uint8)
    drawn = draw_detections(image, one([100, 200, 300, 400], label=2), ("a", "b", "c"))
    assert drawn.shape == image.shape and not image.any()
    color = class_color(2)
    for x, y in ((100, 300), (300, 300), (200, 200), (200, 400)):
        assert tuple(drawn[y, x]) == color
    assert not drawn[210:390, 110:290].any()  # the object itself is not covered
    assert drawn[170:199, 100:140].any()  # the label lies above
    assert not drawn[420:].any() and not drawn[:, 320:].any()


def test_small_images_are_enlarged_so_that_labels_can_be_read():
    image = np.full((160, 120, 3), 7, np.uint8)
    drawn = draw_detections(image, one([20, 60, 60, 100]), ("a",))
    assert drawn.shape == (640, 480, 3)
    assert tuple(drawn[320, 80]) == class_color(0)
    assert draw_detections(image, one([20, 60, 60, 100]), ("a",), smallest_side=100).shape == image.shape


def test_labels_stay_inside_and_beside_each_other():
    image = np.zeros((640, 640, 3), np.uint8)
    corners = np.array(
        [[0, 0, 200, 100], [560, 0, 640, 60], [0, 600, 40, 640], [300, 300, 400, 400], [300, 300, 400, 400]]
    )
    labels = np.array([0, 1, 2, 3, 4])
    drawn = draw_boxes(image, corners, labels, [f"class number {i}" for i in labels])
    for label in labels:  # the ground of each label is a solid patch of its colour
        solid = (drawn == class_color(int(label))).all(axis=2)
        assert solid.sum() > 1000
    assert (drawn[:20, :100].reshape(-1, 3) != 0).any() and (drawn[-60:, :100].reshape(-1, 3) != 0).any()


def test_texts_in_any_script_and_nothing_to_draw():
    image = np.zeros((640, 640, 3), np.uint8)
    plain = draw_detections(image, one([100, 100, 300, 300]), ("?",))
    assert (draw_detections(image, one([100, 100, 300, 300]), ("Käfer 人",)) != plain).any()
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert not draw_detections(image, nothing, ("a",)).any()


def test_neighbouring_classes_look_different():
    colors = np.array([class_color(i) for i in range(20)], float)
    for step in (1, 2, 3):
        assert np.abs(colors[step:] - colors[:-step]).sum(axis=1).min() > 60
    assert len({class_color(i) for i in range(80)}) == 80


@pytest.mark.parametrize("size", [(64, 33_000), (1, 40_000), (40_000, 1), (1, 1), (10, 66_000)])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_picture_of_any_size_is_drawn_and_written(tmp_path, size, suffix):
    height, width = size
    image = np.full((height, width, 3), 60, np.uint8)
    boxes = np.array([[width * 0.1, 0, width * 0.9, height]])
    drawn = draw_boxes(image, boxes, np.array([0]), ["a name"])
    assert max(drawn.shape) <= 32_000 and min(drawn.shape[:2]) >= 1
    write_picture(tmp_path / f"x{suffix}", np.concatenate([drawn, drawn], axis=1), quality=90)
    assert cv2.imread(str(tmp_path / f"x{suffix}")) is not None
    assert encode_picture(np.full((2, 65_600, 3), 9, np.uint8), ".jpg", quality=90)
