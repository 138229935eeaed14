"""Checks of annotated images before anything is trained or measured on them.

They are those of the pipeline's validation that need no decoding, and block: a box without width or height, or beyond
its image, an image of another size than annotated, or of a kind that only the pipeline converts.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from yolov7.data.flags import flag_notes
from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.data.header import MAX_PIXELS, ImageHeader, read_header
from yolov7.data.image_kind import DAMAGED, kind_of_file
from yolov7.data.sources.image_set import ImageSet, locate
from yolov7.errors import DataError
from yolov7.text import listed

_OVERHANG = 1.0
"""Pixels that a box may reach beyond its image (validation/geometry.yaml)."""


def check_boxes(images: ImageSet, *, drop: bool) -> tuple[ImageSet, list[str]]:
    """The set without bad boxes, and notes on it.

    A box is bad if its annotation names no image or category of the set, a number of it is not finite, it has no width
    or height, or it reaches more than a pixel beyond its image. With `drop` such boxes are left out and noted;
    otherwise :class:`DataError` names the first ones with file and record. Also raised for a set without boxes.
    """
    coco = images.coco
    sizes = {record["id"]: record for record in coco.images}
    categories = {record["id"] for record in coco.categories}
    bad = {id(one): fault for one in coco.annotations if (fault := _fault(one, sizes, categories)) is not None}
    named = [f"{_where(one, sizes)}: {bad[id(one)]}" for one in coco.annotations if id(one) in bad]
    if bad and not drop:
        one = next(one for one in coco.annotations if id(one) in bad)
        more = f"; also: {listed(named[1:], joint='; ')}" if named[1:] else ""
        advice = "correct them, or leave them out with --drop-bad-boxes (drop_bad_boxes=True)"
        raise DataError(f"{bad[id(one)]}{more}; {advice}", path=coco.path, record=_where(one, sizes))
    kept = [one for one in coco.annotations if id(one) not in bad]
    if not any(not one.get("iscrowd") for one in kept):
        seen = f" ({'; '.join(images.notes)})" if images.notes else ""
        raise DataError(
            f"no boxes in {len(coco.images)} images{seen}: there is nothing to learn or to measure", path=coco.path
        )
    notes = [f"{len(named)} bad boxes were left out: {listed(named, joint='; ')}"] if named else []
    kept_images = replace(images, coco=replace(coco, annotations=kept))
    return kept_images, [*images.notes, *flag_notes(kept_images.coco, images.source), *notes]


def _where(one: Record, sizes: dict[int, Record]) -> str:
    """An annotation for a message, with its image and, in a label file, its line."""
    image = sizes.get(one["image_id"])
    name = f", image {image['file_name']!r}" if image is not None else ""
    line = f", line {one['line']}" if "line" in one else ""
    return f"annotation {one['id']}{name}{line}"


def _fault(one: Record, sizes: dict[int, Record], categories: set[int]) -> str | None:
    image = sizes.get(one["image_id"])
    if image is None:
        return f"image_id {one['image_id']} is not listed"
    if one["category_id"] not in categories:
        return f"category_id {one['category_id']} is not listed"
    left, top, width, height = one["bbox"]
    shown = f"bbox {[round(value, 2) if math.isfinite(value) else value for value in one['bbox']]}"
    if not all(map(math.isfinite, one["bbox"])):
        return f"{shown} is not finite"
    if width <= 0 or height <= 0:
        return f"{shown} has no {'width' if width <= 0 else 'height'}"
    overhang = max(-left, -top, left + width - image["width"], top + height - image["height"])
    if overhang > _OVERHANG:
        size = f"{image['width']} x {image['height']}"
        return f"{shown} reaches {overhang:g} pixels beyond the {size} image"
    return None


def check_images(images: ImageSet) -> None:
    """Raise :class:`DataError`, naming image records and files, for images that cannot be read in place.

    Those are missing or not images, have another size than annotated, more pixels than are decoded, or more than 8 bits
    a channel: the pipeline chooses the range of values over the whole set. Only headers are read.
    """
    files = locate(images.coco, images.root)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        headers = list(pool.map(lambda pair: read_header(pair[0]), files))
    problems = [
        f"image {record['id']} ({path}): {reason}"
        for (path, record), header in zip(files, headers, strict=True)
        if (reason := _reason(path, record, header)) is not None
    ]
    problems += _named_twice(images.coco)
    if problems:
        raise DataError(f"{len(problems)} images cannot be used: {listed(problems, joint='; ')}", path=images.coco.path)


def _named_twice(coco: CocoAnnotations) -> list[str]:
    first: dict[str, int] = {}
    found = []
    for record in coco.images:
        other = first.setdefault(record["file_name"], record["id"])
        if other != record["id"]:
            found.append(
                f"image {record['id']}: has the file of image {other}, {record['file_name']!r}; keep one of them"
            )
    return found


def _reason(path: Path, record: Record, header: ImageHeader | None) -> str | None:
    if header is None:
        kind = kind_of_file(path)
        if kind is None or kind == DAMAGED:
            return "is damaged, or not an image; bring it again or remove it"
        return None if kind.read else kind.advice
    width, height = (header.width, header.height) if not header.lies_on_its_side else (header.height, header.width)
    if header.width * header.height > MAX_PIXELS:
        return f"has more than {MAX_PIXELS:,} pixels; scale or crop it"
    if header.bits > 8:
        return f"has {header.bits} bits a channel; save it with 8, or use the pipeline, which converts the whole set"
    if (record["width"], record["height"]) == (width, height):
        return None
    stored = header.lies_on_its_side and (record["width"], record["height"]) == (header.width, header.height)
    how = (
        " as it is turned upright (EXIF); save it upright, or use the pipeline, which drops the flag" if stored else ""
    )
    return f"is {width} x {height}{how}, annotated as {record['width']} x {record['height']}"
