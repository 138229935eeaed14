"""Detect on a whole source: drawn images as they come, and a COCO-style JSON file at the end.

Optionally also a CSV table, files that labelling tools import, or a YOLO label file for each image.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from yolov7.detections import Detections
from yolov7.errors import DataError
from yolov7.files import write_atomic, write_text
from yolov7.predict import draw
from yolov7.predict.draw import draw_detections, write_picture
from yolov7.predict.names import OutputNames
from yolov7.predict.predictor import Predictor
from yolov7.predict.records import WRITERS, About, Write, line, write_coco
from yolov7.predict.sources import Frame, Source
from yolov7.predict.tiles import TiledPredictor

RESULTS = "detections.json"
PARTIAL = "detections.partial.jsonl"
"""Records of a job that is still running: per line an object with `image` and `annotations`."""
FORMATS = ("yolo", *WRITERS)
"""Further formats: label files of YOLO, and those of :data:`yolov7.predict.records.WRITERS`."""
_OF_LABELLING_TOOLS = {"cvat", "label-studio"}
_QUALITY = 92


@dataclass
class Job:
    """Counts so far; the records themselves are in files, because a camera never ends."""

    images: int = 0
    detections: int = 0
    errors: list[DataError] = field(default_factory=list)
    """Images that could not be read."""
    notes: list[str] = field(default_factory=list)
    """Doubts about the images that were read, and files that were left out."""

    def tell(self, results: Path, *, as_json: bool) -> None:
        """Print the outcome, or the JSON of `results`; raise :class:`DataError` if an image could not be read."""
        for note in self.notes:
            sys.stderr.write(f"warning: {note}\n")
        if self.errors and not self.images:
            raise self.errors[0]
        if as_json:
            with results.open(encoding="utf-8") as lines:
                sys.stdout.writelines(lines)
        else:
            shown = os.fsencode(results).decode("utf-8", "backslashreplace")
            sys.stdout.write(f"{self.images} images, {self.detections} detections: {shown}\n")
        if self.errors:
            more = f" (and {len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
            raise DataError(f"{self.errors[0]}{more}; the others are done")


def predict_source(
    predictor: Predictor | TiledPredictor,
    source: Source,
    out: Path,
    *,
    formats: Collection[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> Job:
    """Detect on every image of `source`; write each one drawn, and :data:`RESULTS`, to `out`.

    `formats` (of :data:`FORMATS`) are written too: `csv` is one table, `cvat` and `label-studio` are pre-annotations
    for those tools, `yolo` is one file per image under `labels`, with the score as sixth number. `advance` is called
    after every image.

    An original is never overwritten: :class:`DataError` before any work if a drawn image would replace one. An image
    that cannot be read is noted and left out. Records go to :data:`PARTIAL`, a line per image. If the job ends early
    (an interrupt, a broken stream), the JSON file is made of the records so far; a killed job leaves those lines.
    """
    names = OutputNames(
        source.names,
        source.files,
        out,
        reserved=(RESULTS, PARTIAL, *(name for files in WRITERS.values() for name in files)),
    )
    if isinstance(source.video, str) and (out / source.stem).is_file():
        raise DataError("a folder of this name is needed, but there is a file", path=out / source.stem)
    job = Job(notes=list(source.left_out))
    if source.video is not None and _OF_LABELLING_TOOLS.intersection(formats):
        job.notes.append(
            f"labelling tools need pictures without boxes, and {out / source.stem} holds drawn ones: for "
            "pre-annotations, save the frames as images and predict these"
        )
    try:
        for frames in _batches(source, predictor.batch_size, job):
            found = predictor.predict([frame.image for frame in frames])
            for frame, detections in zip(frames, found, strict=True):
                _record(out / PARTIAL, job, frame, detections, predictor.metadata.category_ids)
                if "yolo" in formats:
                    _write_yolo(out / "labels" / names.label(frame.name), frame, detections)
                _draw(out / names.drawn(frame.name), frame, detections, predictor.metadata.class_names)
                _tell_shrunk(job, frame)
                advance()
    finally:
        if job.images:  # otherwise keep the result of an earlier run
            _write_results(predictor, out, formats)
            (out / PARTIAL).unlink()
    return job


def _write_results(predictor: Predictor | TiledPredictor, out: Path, formats: Collection[str]) -> None:
    """The files of the whole job."""
    about = About(predictor.metadata, predictor.confidence, predictor.iou)
    writers: dict[str, Write] = {RESULTS: write_coco}
    for name in formats:
        writers.update(WRITERS.get(name, {}))
    for name, write in writers.items():
        write_atomic(out / name, functools.partial(_write_one, write, about, out / PARTIAL))


def _write_one(write: Write, about: About, records: Path, file: IO[bytes]) -> None:
    write(file, about, lambda: _read(records))


def _read(records: Path) -> Iterator[dict[str, Any]]:
    with records.open("rb") as lines:
        for text in lines:
            if text.endswith(b"\n"):  # the last one may be cut off by an interrupt
                yield json.loads(text)


def _write_yolo(path: Path, frame: Frame, detections: Detections) -> None:
    """A line per detection: class number, centre and sides as shares of the image, score. An empty file for none."""
    height, width = frame.image.shape[:2]
    lines = []
    for box, score, label in zip(*(column.tolist() for column in detections.to_numpy()), strict=True):
        x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
        shares = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        lines.append(f"{label} {' '.join(f'{share:.6f}' for share in shares)} {score:.5f}\n")
    write_text(path, "".join(lines))


def _batches(source: Source, size: int, job: Job) -> Iterator[list[Frame]]:
    frames: list[Frame] = []
    try:
        for frame in source.frames(job.errors.append, job.notes.append):
            frames.append(frame)
            if len(frames) == size:
                yield frames
                frames = []
    except DataError as error:  # the source itself gave up
        if frames:
            yield frames
        job.errors.append(error)
        return
    if frames:
        yield frames


def _draw(path: Path, frame: Frame, detections: Detections, class_names: tuple[str, ...]) -> None:
    drawn = draw_detections(frame.image, detections, class_names)
    write_picture(path, drawn, quality=_QUALITY)


def _tell_shrunk(job: Job, frame: Frame) -> None:
    height, width = frame.image.shape[:2]
    if max(height, width) > draw.LONGEST:
        job.notes.append(f"{frame.name}: {width} x {height} pixels are more than can be drawn; it was drawn smaller")


def _record(path: Path, job: Job, frame: Frame, detections: Detections, category_ids: tuple[int, ...]) -> None:
    """Append a line with the image and its annotations."""
    height, width = frame.image.shape[:2]
    image = {"id": job.images + 1, "file_name": frame.name, "width": width, "height": height}
    first = job.detections + 1
    annotations = detections.to_coco(job.images + 1, category_ids=category_ids, first_id=first)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab" if job.images else "wb") as file:  # overwrite the records of a killed command
        file.write(line({"image": image, "annotations": annotations}) + b"\n")
    job.images += 1
    job.detections += len(annotations)
