"""The straightforward mosaic pipeline, for comparison: every image is decoded and pasted on a 2S canvas.

It takes the same plans and the same random numbers as the library, so that labels and pixels can be compared too.
"""

from __future__ import annotations

import cv2
import numpy as np

from yolov7.augment.affine import draw_matrix, pixel_matrix
from yolov7.augment.color import draw_hsv_tables
from yolov7.augment.mosaic import plan_mosaic4, plan_mosaic9, plan_single


def draw_canvas(source, tiles, side):
    canvas = np.full((side, side, 3), 114, np.uint8)
    boxes, labels = [], []
    for tile in tiles:
        image = source.image(tile.source)
        x1, y1, x2, y2 = tile.clip
        if x1 < x2 and y1 < y2:
            canvas[y1:y2, x1:x2] = image[y1 - tile.y : y2 - tile.y, x1 - tile.x : x2 - tile.x]
        objects = source.objects(tile.source)
        moved = objects.boxes + np.array([tile.x, tile.y, tile.x, tile.y])
        boxes.append(moved)
        labels.append(objects.labels)
    boxes = np.clip(np.concatenate(boxes), 0, side)
    return canvas, boxes, np.concatenate(labels)


def warp_canvas(canvas, matrix, size):
    pixel = pixel_matrix(matrix)
    if matrix[2, 0] or matrix[2, 1]:
        return cv2.warpPerspective(canvas, pixel, (size, size), borderValue=(114, 114, 114))
    return cv2.warpAffine(canvas, pixel[:2], (size, size), borderValue=(114, 114, 114))


def warp_boxes(boxes, labels, matrix, scale, size):
    corners = np.ones((len(boxes) * 4, 3))
    corners[:, :2] = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2)
    corners = corners @ matrix.T
    corners = (corners[:, :2] / corners[:, 2:3]).reshape(-1, 8)
    x, y = corners[:, [0, 2, 4, 6]], corners[:, [1, 3, 5, 7]]
    after = np.clip(np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1), 0, size)
    w1, h1 = (boxes[:, 2:] - boxes[:, :2]).T
    w2, h2 = (after[:, 2:] - after[:, :2]).T
    tiny = 1e-16
    aspect = np.maximum(w2 / (h2 + tiny), h2 / (w2 + tiny))
    kept = (w2 > 2) & (h2 > 2) & (w2 * h2 / (w1 * h1 * scale**2 + tiny) > 0.10) & (aspect < 20)
    return after[kept], labels[kept]


def jitter(image, tables):
    planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    planes = [cv2.LUT(plane, table) for plane, table in zip(planes, tables, strict=True)]
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB)


def mosaic(source, index, augment, size, rng):
    plan = plan_mosaic9 if rng.random() < augment.mosaic9 else plan_mosaic4
    tiles = plan(source, index, size, rng)
    canvas, boxes, labels = draw_canvas(source, tiles, 2 * size)
    matrix, scale = draw_matrix(rng, augment, 2 * size, size)
    return warp_canvas(canvas, matrix, size), *warp_boxes(boxes, labels, matrix, scale, size)


def augment_sample(source, index, augment, size, rng):
    """A sample of a data set without outlines: (S, S, 3) uint8 RGB, boxes, labels."""
    if rng.random() < augment.mosaic:
        image, boxes, labels = mosaic(source, index, augment, size, rng)
        if rng.random() < augment.mixup:
            other = mosaic(source, int(rng.integers(len(source))), augment, size, rng)
            ratio = rng.beta(augment.mixup_beta, augment.mixup_beta)
            image = (image * ratio + other[0] * (1 - ratio)).astype(np.uint8)
            boxes, labels = np.concatenate([boxes, other[1]]), np.concatenate([labels, other[2]])
    else:
        matrix, scale = draw_matrix(rng, augment, size, size)
        canvas, boxes, labels = draw_canvas(source, plan_single(source, index, size), size)
        image = warp_canvas(canvas, matrix, size)
        boxes, labels = warp_boxes(boxes, labels, matrix, scale, size)
    image = jitter(image, draw_hsv_tables(rng, augment))
    if rng.random() < augment.paste_in:
        # Looking for cut-outs means building a mosaic first, even where the data set has no outline in the end.
        draw_canvas(source, plan_mosaic4(source, int(rng.integers(len(source))), size, rng), 2 * size)
    if rng.random() < augment.flip_up_down:
        image, boxes = np.flipud(image), np.stack([boxes[:, 0], size - boxes[:, 3], boxes[:, 2], size - boxes[:, 1]], 1)
    if rng.random() < augment.flip_left_right:
        image, boxes = np.fliplr(image), np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1)
    return np.ascontiguousarray(image), boxes.astype(np.float32), labels
