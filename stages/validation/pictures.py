"""Labelled samples for the report: the picture embedded, its boxes drawn over it as vector graphics."""

from __future__ import annotations

import base64
import colorsys
import contextlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from stages.ingested import images_folder
from stages.validation.tables import Tables
from yolov7.data.decode import read_image
from yolov7.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_LONG_SIDE = 480
"""Larger pictures are shrunk to this many pixels; boxes keep their coordinates."""


@dataclass(frozen=True)
class _Label:
    """One box of a picture."""

    left: float
    top: float
    width: float
    height: float
    name: str
    colour: str


def sample_pictures(tables: Tables, ingested: Path, count: int) -> list[str]:
    """Up to `count` SVG elements, evenly spread over the images of all splits that are sound and have boxes."""
    images = tables.images
    mismatched = images["size_matches"].eq(False)
    sound = images["file_exists"] & images["defect"].isna() & images["size_is_valid"] & ~mismatched
    usable = images[sound & (images["boxes"] > 0)]
    count = min(count, len(usable))
    chosen = usable.iloc[[round(i * (len(usable) - 1) / max(1, count - 1)) for i in range(count)]]
    pictures = []
    for row in chosen.to_dict("records"):
        # Without the image checks nobody has decoded this file yet, and a picture less is no reason to fail.
        with contextlib.suppress(DataError):
            pictures.append(_picture(row, tables, ingested))
    return pictures


def _picture(image: dict[str, Any], tables: Tables, ingested: Path) -> str:
    path = images_folder(ingested, image["split"]) / image["file_name"]
    title = f"{image['split']}/{image['file_name']}"
    width, height = int(image["width"]), int(image["height"])
    labels = "".join(_label_svg(label, max(width, height)) for label in _labels(image, tables))
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<image href="{_data_uri(path)}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f"{labels}</svg><figcaption>{escape(title)}</figcaption></figure>"
    )


def _labels(image: dict[str, Any], tables: Tables) -> list[_Label]:
    """The image's boxes that can be drawn, each with the name and the colour of its class."""
    boxes: pd.DataFrame = tables.annotations
    boxes = boxes[(boxes["split"] == image["split"]) & (boxes["image_id"] == image["image_id"])]
    boxes = boxes[boxes["category_is_known"] & boxes["box_is_finite"]]
    names = dict(zip(tables.classes["category_id"], tables.classes["name"], strict=True))
    numbers = {identity: number for number, identity in enumerate(sorted(names))}
    return [
        _Label(
            box["left"],
            box["top"],
            max(box["box_width"], 0.0),
            max(box["box_height"], 0.0),
            names[box["category_id"]],
            _colour(numbers[box["category_id"]]),
        )
        for box in boxes.to_dict("records")
    ]


def _label_svg(label: _Label, side: int) -> str:
    """A box with its class written above it, or inside where the image ends; sizes follow the image's."""
    size = max(side / 24, 7.0)
    baseline = label.top - 0.25 * size if label.top > size else label.top + size
    return (
        f'<rect x="{label.left:g}" y="{label.top:g}" width="{label.width:g}" height="{label.height:g}" fill="none" '
        f'stroke="{label.colour}" stroke-width="{side / 200:g}"/>'
        f'<text x="{label.left:g}" y="{baseline:g}" font-size="{size:g}" fill="{label.colour}" stroke="#000" '
        f'stroke-width="{size / 6:g}" paint-order="stroke">{escape(label.name)}</text>'
    )


def _colour(number: int) -> str:
    """A bright colour for a class; the golden ratio keeps neighbours apart, however many there are."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.75, 1.0)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _data_uri(path: Path) -> str:
    """The image as a JPEG inside the page."""
    pixels = read_image(path)[..., ::-1]
    scale = _LONG_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode('ascii')}"
