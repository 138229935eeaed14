"""Predict a whole source into a folder: drawn images as they come, and a COCO-style json of everything at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolov7.errors import DataError
from yolov7.files import atomic_path, write_json
from yolov7.nms import Detections
from yolov7.predict.draw import draw_detections
from yolov7.predict.predictor import Predictor
from yolov7.predict.sources import Frame, OnError, Source

RESULTS = "detections.json"
_DRAWN_AS_THEY_ARE = frozenset({".jpg", ".jpeg", ".png"})
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 92]


@dataclass
class Job:
    """What has been found so far, as the records of a COCO json."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)
    """Images that could not be read."""


def predict_source(
    predictor: Predictor, source: Source, out: Path, *, advance: Callable[[], None] = lambda: None
) -> Job:
    """Detect on every image of `source`; write each one drawn, and :data:`RESULTS`, into `out`.

    An image that cannot be read is noted and left out. Whatever ends the work early (an interrupt, a stream that
    breaks), the json of what was done until then is written. `advance` is called after every image.
    """
    job = Job()
    try:
        for frames in _batches(source, predictor.batch_size, job.errors.append):
            found = predictor.predict([frame.image for frame in frames])
            for frame, detections in zip(frames, found, strict=True):
                _draw(out, frame, detections, predictor.metadata.class_names)
                _record(job, frame, detections, predictor.metadata.category_ids)
                advance()
    finally:
        if job.images:  # nothing found out is no reason to overwrite an earlier result
            write_json(out / RESULTS, document(predictor, job))
    return job


def document(predictor: Predictor, job: Job) -> dict[str, Any]:
    """The COCO-style json: images, annotations (with a score), categories under their ids in the training data."""
    said = predictor.metadata
    return {
        "info": {
            "description": f"detections by {said.variant}",
            "confidence": predictor.confidence,
            "iou": predictor.iou,
        },
        "images": job.images,
        "annotations": job.annotations,
        "categories": [
            {"id": number, "name": name} for number, name in zip(said.category_ids, said.class_names, strict=True)
        ],
    }


def _batches(source: Source, size: int, on_error: OnError) -> Iterator[list[Frame]]:
    frames: list[Frame] = []
    try:
        for frame in source.frames(on_error):
            frames.append(frame)
            if len(frames) == size:
                yield frames
                frames = []
    except DataError as error:  # the source itself gave up
        if frames:
            yield frames
        on_error(error)
        return
    if frames:
        yield frames


def _draw(out: Path, frame: Frame, detections: Detections, class_names: tuple[str, ...]) -> None:
    name = frame.name if Path(frame.name).suffix.lower() in _DRAWN_AS_THEY_ARE else f"{frame.name}.jpg"
    drawn = draw_detections(frame.image, detections, class_names)
    with atomic_path(out / name) as temporary:
        if not cv2.imwrite(str(temporary), np.ascontiguousarray(drawn[:, :, ::-1]), _QUALITY):
            raise OSError(f"{out / name}: the drawn image could not be written")


def _record(job: Job, frame: Frame, detections: Detections, category_ids: tuple[int, ...]) -> None:
    height, width = frame.image.shape[:2]
    image_id = len(job.images) + 1
    job.images.append({"id": image_id, "file_name": frame.name, "width": width, "height": height})
    for box, score, label in zip(*(column.tolist() for column in detections.to_numpy()), strict=True):
        left, top, right, bottom = box
        sides = [left, top, right - left, bottom - top]
        job.annotations.append(
            {
                "id": len(job.annotations) + 1,
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [round(side, 3) for side in sides],
                "area": round(sides[2] * sides[3], 3),
                "iscrowd": 0,
                "score": round(score, 5),
            }
        )
