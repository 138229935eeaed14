"""What a notebook shows of a detector and of an image with its detections. Names from outside are escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from yolov7.detections import Detections
from yolov7.model.checkpoint import ModelMetadata
from yolov7.nms import Thresholds
from yolov7.predict.draw import draw_detections, encode_picture, shrink
from yolov7.text import listed, printable

_LONGEST = 1280
"""Pixels of a picture's longer side: a notebook keeps every picture in its file."""
_CLASSES = 20


@dataclass(frozen=True)
class Shown:
    """An image with its detections; the last value of a notebook's cell shows it."""

    picture: np.ndarray
    """uint8 (H, W, 3) RGB: the image with boxes and labels; small images are enlarged."""
    detections: Detections
    """Pixels of the original image."""

    def _repr_png_(self) -> bytes:
        return encode_picture(shrink(self.picture, _LONGEST), ".png", quality=0)

    def _repr_html_(self) -> str:
        """Picture and table."""
        address = f"data:image/png;base64,{base64.b64encode(self._repr_png_()).decode()}"
        picture = Markup('<img src="{}" alt="Detections" style="max-width: 100%">').format(address)
        return f"{picture}{self.detections._repr_html_()}"


def show(image: np.ndarray, detections: Detections) -> Shown:
    """Draw an image (uint8 HWC RGB) with detections in its pixels."""
    # Only the classes that were found need names: there may be none for any.
    names = dict(zip(detections.labels.tolist(), detections.names, strict=True))
    return Shown(draw_detections(image, detections, names), detections)


def detector_table(metadata: ModelMetadata, thresholds: Thresholds, canvas: tuple[int, int], file: str) -> str:
    """A detector as an HTML table: variant, classes, input, thresholds, file."""
    classes = listed([printable(name) for name in metadata.class_names], most=_CLASSES)
    facts: Mapping[str, str] = {
        "variant": metadata.variant,
        "classes": f"{metadata.num_classes}: {classes}",
        "input": f"{canvas[1]} x {canvas[0]} pixels",
        "confidence": f"{thresholds.confidence:g}",
        "IoU": f"{thresholds.iou:g}",
        "most detections": f"{thresholds.max_detections:,}",
        "file": file,
    }
    rows = (Markup("<tr><th>{}</th><td>{}</td></tr>").format(name, printable(value)) for name, value in facts.items())
    return str(Markup("<table>{}</table>").format(Markup("").join(rows)))
