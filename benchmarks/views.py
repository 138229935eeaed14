"""The images of a data set seen in eight ways: mirrored or not, whole or with a grey border on two or four sides.

AP on forty images moves by points when a few detections change their order. The mean loss of a file over views of the
same images moves less, and its spread says how much of it is chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolov7.data.annotated import read_annotated
from yolov7.data.formats.coco import CocoAnnotations
from yolov7.data.index import Index, build_index

GREY = 114
BORDERS = ((0.0, 0.0, 0.0, 0.0), (0.12, 0.0, 0.12, 0.0), (0.0, 0.12, 0.0, 0.12), (0.15, 0.15, 0.15, 0.15))
"""Left, right, top, bottom, as shares of the image's side."""


def make_views(index: Index, folder: Path) -> Iterator[Index]:
    """Indices of the eight views, the first without any change, their images as PNG below `folder`."""
    for mirrored in (False, True):
        for number, border in enumerate(BORDERS):
            place = folder / f"{'mirrored' if mirrored else 'plain'}-{number}"
            (place / "images").mkdir(parents=True)
            yield _view(index, place, border, mirrored=mirrored)


def _view(index: Index, place: Path, border: tuple[float, ...], *, mirrored: bool) -> Index:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(len(index)):
        picture, (x, y) = _bordered(read_annotated(index, i), border, mirrored=mirrored)
        name, (height, width) = f"{i}.png", picture.shape[:2]
        assert cv2.imwrite(str(place / "images" / name), picture[:, :, ::-1])
        images.append({"id": index.image_id(i), "file_name": name, "width": width, "height": height})
        boxes = index.coco_boxes(i).copy()
        if mirrored:
            boxes[:, 0] = index.size(i)[1] - boxes[:, 0] - boxes[:, 2]
        boxes[:, :2] += x, y
        for j, box in enumerate(boxes.tolist()):
            annotations.append(
                {
                    "id": int(index.annotation_ids(i)[j]),
                    "image_id": index.image_id(i),
                    "category_id": index.category_ids[int(index.labels(i)[j])],
                    "bbox": box,
                    "area": float(index.areas(i)[j]),
                    "iscrowd": int(index.crowd(i)[j]),
                }
            )
    pairs = zip(index.category_ids, index.class_names, strict=True)
    categories = [{"id": number, "name": name} for number, name in pairs]
    coco = CocoAnnotations(place / "annotations.json", images, annotations, categories)
    return build_index(coco, place / "images", place / "index")


def _bordered(image: np.ndarray, border: tuple[float, ...], *, mirrored: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """The picture, and where the image's top left corner lies in it (x, y)."""
    height, width = image.shape[:2]
    left, right, top, bottom = (
        round(share * side) for share, side in zip(border, (width, width, height, height), strict=True)
    )
    image = np.ascontiguousarray(image[:, ::-1] if mirrored else image)
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(GREY,) * 3), (left, top)
