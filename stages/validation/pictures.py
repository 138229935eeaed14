"""Pictures for the report: labelled samples, and the images with the gravest findings.

The picture is embedded as a JPEG, its boxes are drawn over it as vector graphics.
"""

from __future__ import annotations

import base64
import colorsys
import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stages.dataset.layout import images_folder
from stages.validation.check import Finding
from stages.validation.tables import Tables
from yolov7.data.decode import read_image
from yolov7.errors import DataError

_LONG_SIDE = 480
"""Larger pictures are shrunk to this many pixels; boxes keep their coordinates."""
_WORDS = 3
"""Findings listed below a picture."""
_BAD = "#ff2d55"


@dataclass(frozen=True)
class _Label:
    """One box of a picture."""

    left: float
    top: float
    width: float
    height: float
    name: str
    colour: str
    accused: bool = False
    """A finding is about it."""


def sample_pictures(tables: Tables, ingested: Path, count: int) -> list[Markup]:
    """Up to `count` SVG elements, evenly spread over the images of all splits that are sound and have boxes."""
    usable = np.flatnonzero(_drawable(tables, with_boxes=True))
    count = min(count, len(usable))
    places = [round(i * (len(usable) - 1) / max(1, count - 1)) for i in range(count)]
    pictures = []
    for row in tables.images.records(usable[places]):
        # Without the image checks this file has not been decoded yet, and a missing picture is no reason to fail.
        with contextlib.suppress(DataError):
            pictures.append(_figure(row, tables, ingested, []))
    return pictures


def worst_pictures(tables: Tables, findings: Sequence[Finding], ingested: Path, count: int) -> list[Markup]:
    """Up to `count` SVG elements of images that findings are about: a few of every rule, blocking ones first.

    Boxes that a finding is about stand out, and a box of no size or outside its image is marked where it would lie.
    """
    usable = _drawn(tables, {(finding.split, finding.file) for finding in findings})
    by_image: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        if (finding.split, finding.file) in usable:
            by_image.setdefault((finding.split, finding.file), []).append(finding)
    pictures: list[Markup] = []
    for place in _in_turns(findings):
        if len(pictures) == count:
            break
        if place in by_image:
            with contextlib.suppress(DataError):
                pictures.append(_figure(usable[place], tables, ingested, by_image.pop(place)))
    return pictures


def _in_turns(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    """Places of the findings: the first of every rule, then the second of every rule; blocking ones before warnings."""
    for severity in ("blocking", "warning"):
        rules: dict[str, list[Finding]] = {}
        for finding in findings:
            if finding.severity == severity:
                rules.setdefault(finding.rule, []).append(finding)
        for turn in range(max(map(len, rules.values()), default=0)):
            yield from ((own[turn].split, own[turn].file) for own in rules.values() if turn < len(own))


def _drawable(tables: Tables, *, with_boxes: bool = False) -> NDArray[np.bool_]:
    """True for images that can be shown, with boxes where they were drawn."""
    found = []
    for images in tables.images.frames(["size_matches", "file_exists", "defect", "size_is_valid", "boxes"]):
        mismatched = images["size_matches"].eq(False)
        shown = images["file_exists"] & images["defect"].isna() & images["size_is_valid"] & ~mismatched
        found.append((shown & (images["boxes"] > 0) if with_boxes else shown).to_numpy(np.bool_))
    return np.concatenate(found)


def _drawn(tables: Tables, places: Collection[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of these images, by split and file name, that can be shown."""
    drawable = _drawable(tables)
    wanted: list[int] = []
    for part in tables.images.parts:
        names = {name for split, name in places if split == part.split}
        first = tables.images.rows(part.split).start
        wanted += [first + row for row, name in enumerate(part.coco.images.names) if name in names]
    rows = tables.images.records([row for row in wanted if drawable[row]])
    return {(row["split"], row["file_name"]): row for row in rows}


def _figure(image: dict[str, Any], tables: Tables, ingested: Path, findings: Sequence[Finding]) -> Markup:
    # First: it fails for a file that was never decoded, and finding the boxes among all others takes longer.
    picture = _data_uri(images_folder(ingested, image["split"]) / image["file_name"])
    title = f"{image['split']}/{image['file_name']}"
    width, height = int(image["width"]), int(image["height"])
    accused = {finding.annotation_id for finding in findings}
    labels = _labels(image, tables, accused)
    drawn = "".join(_label_svg(label, max(width, height)) for label in labels)
    captions = "".join(
        f'<br><b class="{"bad" if finding.severity == "blocking" else "odd"}">{escape(finding.rule)}</b> '
        f"{escape(finding.value)}"
        for finding in findings[:_WORDS]
    )
    more = f"<br>and {len(findings) - _WORDS} more" if len(findings) > _WORDS else ""
    figure = (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<image href="{picture}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f"{drawn}</svg><figcaption>{escape(title)}{captions}{more}</figcaption></figure>"
    )
    return Markup(figure)


def _labels(image: dict[str, Any], tables: Tables, accused: set[int | None]) -> list[_Label]:
    """The image's boxes that can be drawn, each with the name and the colour of its class; those accused come last."""
    part = tables.annotations.part(image["split"])
    rows = np.flatnonzero(part.coco.annotations.image_ids == image["image_id"])
    boxes = tables.annotations.records(rows + tables.annotations.rows(image["split"]).start)
    names = dict(zip(tables.classes["category_id"], tables.classes["name"], strict=True))
    numbers = {identity: number for number, identity in enumerate(sorted(names))}
    labels = [
        _Label(
            box["left"],
            box["top"],
            max(box["box_width"], 0.0),
            max(box["box_height"], 0.0),
            names.get(box["category_id"], f"category {box['category_id']}"),
            _BAD if box["annotation_id"] in accused else _colour(numbers.get(box["category_id"], 0)),
            box["annotation_id"] in accused,
        )
        for box in boxes
        if box["box_is_finite"]
    ]
    return sorted(labels, key=lambda label: label.accused)


def _label_svg(label: _Label, side: int) -> str:
    """A box with its class written above it, or inside where the image ends; sizes follow the image's."""
    size = max(side / 24, 7.0)
    baseline = label.top - 0.25 * size if label.top > size else label.top + size
    stroke = side / (100 if label.accused else 200)
    dashes = f' stroke-dasharray="{side / 40:g} {side / 80:g}"' if label.accused else ""
    # A ring shows where a box is that is too small to be seen.
    ring = ""
    if label.accused and min(label.width, label.height) < side / 40:
        centre = (label.left + label.width / 2, label.top + label.height / 2)
        ring = (
            f'<circle cx="{centre[0]:g}" cy="{centre[1]:g}" r="{side / 20:g}" fill="none" stroke="{label.colour}" '
            f'stroke-width="{stroke:g}"/>'
        )
    return (
        f'<rect x="{label.left:g}" y="{label.top:g}" width="{label.width:g}" height="{label.height:g}" fill="none" '
        f'stroke="{label.colour}" stroke-width="{stroke:g}"{dashes}/>{ring}'
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
