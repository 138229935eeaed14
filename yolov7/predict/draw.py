"""Detections drawn onto an image: crisp boxes, readable labels, a fixed colour per class.

Small images are enlarged first: 160 pixels leave no room for a label.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from yolov7.nms import Detections

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

_WEIGHT = 600  # of the font: semi-bold is readable on a coloured background


def class_color(label: int) -> Color:
    """RGB colour of a class number, the same in every image and data set.

    Hues advance by the golden angle, so neighbouring numbers differ strongly; brightness varies every few classes.
    """
    hue = (0.02 + label * 0.61803398875) % 1.0
    saturation, value = ((0.85, 0.95), (0.65, 1.0), (0.95, 0.75))[(label // 6) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image: np.ndarray, detections: Detections, class_names: Sequence[str], *, smallest_side: int = 640
) -> np.ndarray:
    """`image` (uint8 HWC RGB) with the detections (pixels of that image) drawn on a copy.

    An image whose longer side is under `smallest_side` pixels is enlarged by a whole factor to reach it.
    """
    boxes, scores, labels = detections.to_numpy()
    texts = [f"{class_names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    return draw_boxes(image, boxes, labels, texts, smallest_side=smallest_side)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[str], *, smallest_side: int = 640
) -> np.ndarray:
    """`image` (uint8 HWC RGB) with `boxes` ((n, 4) xyxy pixels) in their classes' colours and a text at each.

    The first boxes are drawn last, so that the most confident detection lies on top.
    """
    height, width = image.shape[:2]
    factor = max(1, -(-smallest_side // max(height, width)))
    if factor > 1:
        canvas = cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
    else:
        canvas = np.ascontiguousarray(image).copy()
    longer = max(canvas.shape[:2])
    thickness = max(2, round(longer / 400))
    font, size = cv2.FontFace("sans"), int(np.clip(round(longer / 45), 13, 48))
    corners = np.rint(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * factor).astype(int).tolist()
    order = range(len(corners) - 1, -1, -1)
    for i in order:
        left, top, right, bottom = corners[i]
        cv2.rectangle(canvas, (left, top), (right, bottom), class_color(int(labels[i])), thickness)
    taken: list[Rectangle] = []
    places = {}
    for i in reversed(order):  # the most confident detections choose the place of their label first
        places[i] = _place(canvas.shape, corners[i], _text_size(texts[i], font, size), thickness, taken)
        taken.append(places[i])
    for i in order:
        _draw_label(canvas, places[i], texts[i], class_color(int(labels[i])), font, size)
    return canvas


def _text_size(text: str, font: cv2.FontFace, size: int) -> tuple[int, int]:
    """Width and height of a label's background; the height is the same for every text."""
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), font, size, _WEIGHT)
    return width + size // 2, round(size * 1.35)


def _place(
    shape: tuple[int, ...], box: Sequence[int], label: tuple[int, int], thickness: int, taken: Sequence[Rectangle]
) -> Rectangle:
    """Place of a label above, inside or below its box that hides the least of the labels placed so far."""
    height, width = shape[:2]
    left, top, right, bottom = box
    half = thickness // 2
    wide, high = label
    candidates = [
        (left - half, top - high),
        (right + half - wide, top - high),
        (left - half, bottom),
        (right + half - wide, bottom),
        (left - half, top),
        (right + half - wide, bottom - high),
    ]
    best: tuple[int, Rectangle] | None = None
    for x, y in candidates:
        inside_x, inside_y = max(0, min(x, width - wide)), max(0, min(y, height - high))
        place = (inside_x, inside_y, inside_x + wide, inside_y + high)
        hidden = sum(_overlap(place, other) for other in taken) + abs(
            inside_y - y
        )  # a label pushed in covers its object
        if best is None or hidden < best[0]:
            best = (hidden, place)
        if hidden == 0:
            break
    assert best is not None
    return best[1]


def _overlap(a: Rectangle, b: Rectangle) -> int:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0) * max(high, 0)


def _draw_label(canvas: np.ndarray, place: Rectangle, text: str, color: Color, font: cv2.FontFace, size: int) -> None:
    left, top, right, bottom = place
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), color, cv2.FILLED)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    cv2.putText(canvas, text, (left + size // 4, bottom - round(size * 0.36)), ink, font, size, _WEIGHT)
