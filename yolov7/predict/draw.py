"""Detections drawn onto an image: crisp boxes, readable labels, a fixed colour per class.

Small images are enlarged first: 160 pixels leave no room for a label.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from yolov7.detections import Detections
from yolov7.files import atomic_path

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom

LONGEST = 32_000
"""Pixels of a drawn side: OpenCV draws to 32,763, and two such pictures side by side still fit a JPEG (65,500)."""
_LONGEST_SIDE = {".jpg": 65_500, ".png": 1_000_000}
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
    image: np.ndarray,
    detections: Detections,
    class_names: Sequence[str] | Mapping[int, str],
    *,
    smallest_side: int = 640,
) -> np.ndarray:
    """`image` (uint8 HWC RGB) with the detections (pixels of that image) drawn on a copy.

    `class_names` by class number.

    An image whose longer side is under `smallest_side` pixels is enlarged by a whole factor to reach it.
    """
    boxes, scores, labels = detections.to_numpy()
    texts = [f"{class_names[label]} {score:.2f}" for label, score in zip(labels.tolist(), scores, strict=True)]
    return draw_boxes(image, boxes, labels, texts, smallest_side=smallest_side)


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[str], *, smallest_side: int = 640
) -> np.ndarray:
    """`image` (uint8 HWC RGB) with `boxes` ((n, 4) xyxy pixels) in their classes' colours and a text at each.

    The first boxes are drawn last, so that the most confident detection lies on top. An image whose longer side is
    over :data:`LONGEST` pixels is shrunk to it.
    """
    height, width = image.shape[:2]
    factor = max(1, -(-smallest_side // max(height, width)))
    if factor > 1:
        canvas = cv2.resize(image, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC)
    else:
        canvas = np.ascontiguousarray(shrink(image, LONGEST)).copy()
    scale = np.array([canvas.shape[1] / width, canvas.shape[0] / height] * 2)
    longer = max(canvas.shape[:2])
    thickness = max(2, round(longer / 400))
    font, size = cv2.FontFace("sans"), int(np.clip(round(longer / 45), 13, 48))
    corners = np.rint(np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale).astype(int).tolist()
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


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """The image (HWC) with a longer side of at most `longest` pixels and no side under 1."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def write_picture(path: Path, picture: np.ndarray, *, quality: int) -> None:
    """Write a picture (uint8 HWC RGB) as PNG or, by any other suffix, as JPEG, in one step.

    Raises :class:`OSError` where it cannot be written.
    """
    content = encode_picture(picture, ".png" if path.suffix.lower() == ".png" else ".jpg", quality=quality)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)  # OpenCV opens no path: it takes names in UTF-8 alone


def encode_picture(picture: np.ndarray, suffix: str, *, quality: int) -> bytes:
    """A picture (uint8 HWC RGB) as the bytes of a `.png` or a `.jpg`, shrunk to what the format holds."""
    picture = shrink(picture, _LONGEST_SIDE[suffix])
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == ".jpg" else []  # OpenCV warns about other formats'
    done, content = cv2.imencode(suffix, np.ascontiguousarray(picture[:, :, ::-1]), options)
    if not done:
        size = f"{picture.shape[1]} x {picture.shape[0]}"
        raise OSError(f"a picture of {size} pixels could not be encoded as {suffix}: probably for lack of memory")
    return content.tobytes()


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
