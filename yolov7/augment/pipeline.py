"""From an image number to an augmented sample (training sheet, section 4)."""

from __future__ import annotations

import cv2
import numpy as np

from yolov7.augment.affine import MIN_SIDE, draw_matrix, flip_boxes_left_right, flip_boxes_up_down
from yolov7.augment.color import draw_hsv_tables, jitter
from yolov7.augment.mixup import mix
from yolov7.augment.mosaic import Rendered, gather, plan_mosaic4, plan_mosaic9, plan_single, render
from yolov7.augment.paste import copy_paste, paste_in
from yolov7.augment.sample import Sample, SampleSource
from yolov7.config import Augment


def augment_sample(
    source: SampleSource, index: int, *, augment: Augment, size: int, rng: np.random.Generator, closed: bool = False
) -> Sample:
    """The sample around image `index`, `size` pixels square; everything random comes from `rng`.

    `closed` turns off mosaic, mixup and pasting, as is usual for the last epochs. Errors of
    `source.image` pass through.
    """
    if not closed and rng.random() < augment.mosaic:
        rendered = _mosaic(source, index, augment, size, rng)
        if rng.random() < augment.mixup:
            other = _mosaic(source, int(rng.integers(len(source))), augment, size, rng)
            rendered = mix(rendered, other, rng.beta(augment.mixup_beta, augment.mixup_beta))
    else:
        matrix, scale = draw_matrix(rng, augment, size, size)
        scene = gather(source, plan_single(source, index, size), size)
        if not augment.outlines_without_mosaic:
            scene.polygons = None
        rendered = render(source, scene, matrix, scale, size, augment.max_aspect)
    tables = draw_hsv_tables(rng, augment)
    if augment.hsv_on_device:
        image = cv2.cvtColor(rendered.image, cv2.COLOR_RGBA2RGB)
    else:
        image = jitter(rendered.image, tables, rendered.content)
    boxes, labels = rendered.boxes, rendered.labels
    if not closed and rng.random() < augment.paste_in:
        boxes, labels = paste_in(image, boxes, labels, source, rng)
    if rng.random() < augment.flip_up_down:
        image, boxes = cv2.flip(image, 0), flip_boxes_up_down(boxes, size)
    if rng.random() < augment.flip_left_right:
        image, boxes = cv2.flip(image, 1), flip_boxes_left_right(boxes, size)
    # Rounding to float32 must not push a box out of the image or below the least side.
    rounded = np.clip(boxes, 0, size).astype(np.float32)
    kept = (rounded[:, 2:] - rounded[:, :2] > MIN_SIDE).all(1)
    return Sample(image, rounded[kept], labels[kept], tables if augment.hsv_on_device else None)


def _mosaic(source: SampleSource, index: int, augment: Augment, size: int, rng: np.random.Generator) -> Rendered:
    if rng.random() < augment.mosaic9:
        tiles = plan_mosaic9(source, index, size, rng)
    else:
        tiles = plan_mosaic4(source, index, size, rng, augment.shuffle_mosaic)
    scene = copy_paste(gather(source, tiles, 2 * size), augment.copy_paste, rng, of=augment.copy_paste_of)
    matrix, scale = draw_matrix(rng, augment, 2 * size, size)
    return render(source, scene, matrix, scale, size, augment.max_aspect)
