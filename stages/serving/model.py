"""The registered model: images in, a table of detections out.

MLflow stores this file with the model and runs it wherever the model is loaded ("models from code"): nothing is
pickled. It needs the library, which lies in the model's `code` folder, and the export folder, its one artifact.

Input: a table with the column `image`; a cell holds the bytes of an image file (base64 text in JSON), or, from Python,
a uint8 RGB array (height, width, 3): `model.predict({"image": [array, ...]})`.
Output: one row per detection, with :data:`COLUMNS`, best first within an image. Boxes are corners in pixels of the
image as displayed (EXIF orientation applied); `image` is the input row of the detection.

Requests are bounded (:class:`Limits`). Every size is read from the file's header before anything is decoded. Images are
decoded one by one and kept only as the network's input; the network runs those of one shape in batches. The limits
before the model, above all on the size of a request's body, are in stages/serving/request_limits.py.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

# Pillow reads the header and OpenCV the image, and a crafted file can show them different sizes. This is OpenCV's own
# limit, which it reads once, when it is loaded. A plain import of this file does not set it.
if __name__ != "stages.serving.model" and os.environ.get("YOLOV7_SERVE_MAX_PIXELS", "0").isdecimal():
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", os.environ.get("YOLOV7_SERVE_MAX_PIXELS", "64000000"))

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from PIL import Image, UnidentifiedImageError

from yolov7.data.decode import decode_image
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.letterbox import Fitted
from yolov7.predict import load_detector
from yolov7.predict.predictor import Predictor
from yolov7.signature import require_beside

COLUMNS = {
    "image": "int64",
    "x1": "float64",
    "y1": "float64",
    "x2": "float64",
    "y2": "float64",
    "score": "float64",
    "label": "int64",
    "category_id": "int64",
    "name": "object",
}
"""Columns of the output. `label` is the class number of the network, `category_id` the id in the training data."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Accepted formats, by Pillow's names: those that both Pillow and OpenCV recognise by their first bytes."""

LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
"""Pixels of the largest image whose header Pillow reads."""

# Possessive (`++`): no backtracking, so hostile text costs linear time, not quadratic.
_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]++(?:={1,2}+[\r\n]*+)?")
_PREFIX = "YOLOV7_SERVE_"
_MOST_READS = 20_000
"""Reads of a file until its size is known: no header needs a hundredth, but a crafted one can be read byte by byte."""
_MOST_SCANS = 200
"""Scans of a progressive JPEG: ten are usual, and each costs a pass over all pixels for a few bytes of the file."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request. The environment variable of a limit is YOLOV7_SERVE_ plus its name in capitals."""

    max_images: int = 64
    """Images in one request."""
    max_image_bytes: int = 32 * 1024 * 1024
    """Size of an image file."""
    max_pixels: int = 64_000_000
    """Pixels of an image: a small file can claim any size, and decoding costs time for every pixel."""
    max_request_pixels: int = 256_000_000
    """Pixels of all images of a request."""
    batch_size: int = 8
    """Images per forward pass."""

    @classmethod
    def from_environment(cls) -> Limits:
        """The limits that the environment sets. Raises ConfigError with the variable for any but a positive integer."""
        values = {}
        for field in fields(cls):
            name = _PREFIX + field.name.upper()
            text = os.environ.get(name)
            if text is None:
                continue
            if not text.isdecimal() or int(text) < 1:
                raise ConfigError(f"{name}: a whole number above 0 is expected, got {text!r}")
            if field.name == "max_pixels" and int(text) > LARGEST:
                raise ConfigError(f"{name}: at most {LARGEST}, because Pillow reads no larger image; got {text}")
            values[field.name] = int(text)
        return cls(**values)


class DetectorModel(mlflow.pyfunc.PythonModel):
    """MLflow's interface around the exported ONNX network."""

    def load_context(self, context: Any) -> None:
        """Open the export folder that MLflow has put next to this file, and read the limits."""
        limits = Limits.from_environment()
        require_beside(context.artifacts["export"])
        self.open(context.artifacts["export"], limits)

    def open(self, export: str | os.PathLike[str], limits: Limits) -> None:
        """Open an export folder, or a file of one, whose signature the caller has checked."""
        Image.init()  # otherwise the first request waits for Pillow's readers
        self._limits = limits
        self._detector = load_detector(export)
        # MLflow runs requests in more threads than there are cores, and decoded images need the most memory.
        self._decoding = _Room(self._limits.max_pixels)

    @property
    def detector(self) -> Predictor:
        """The detector, with the thresholds of its export."""
        return self._detector

    def detect(self, content: bytes, **thresholds: float | None) -> list[dict[str, Any]]:
        """Detections of one image file as rows of :data:`COLUMNS`. Raises MlflowException as :meth:`predict` does."""
        table = self.predict(None, pd.DataFrame({"image": [content]}), thresholds)
        rows: list[dict[str, Any]] = table.drop(columns="image").to_dict("records")
        return rows

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Detect. `params` may hold `confidence` and `iou`, between 0 and 1; the defaults are those of the export.

        Raises MlflowException (HTTP 400) that names the row for anything that is not an image.
        """
        cells, limits = _cells(model_input), self._limits
        if not cells:
            raise _refused("no image given: send at least one row in the column 'image'")
        if len(cells) > limits.max_images:
            raise _refused(
                f"{len(cells)} images in one request; at most {limits.max_images} are taken, send them in parts"
            )
        detector = self._with_thresholds(params or {})
        images = [_content(cell, row, limits) for row, cell in enumerate(cells)]
        pixels = _check_sizes(images, limits)
        prepared = [self._prepared(detector, image, row, pixels[row]) for row, image in enumerate(images)]
        return _table(detector.predict_prepared(prepared), detector.metadata)

    def _with_thresholds(self, params: Mapping[str, Any]) -> Predictor:
        """A predictor for this request around the shared network: requests may run side by side."""
        confidence, iou = params.get("confidence"), params.get("iou")
        try:
            return Predictor(
                self._detector.runtime,
                confidence=None if confidence is None else float(confidence),
                iou=None if iou is None else float(iou),
                batch_size=self._limits.batch_size,
            )
        except (ConfigError, ModelError, TypeError, ValueError) as error:
            raise _refused(f"params: {error}") from None

    def _prepared(self, detector: Predictor, image: bytes | np.ndarray, row: int, pixels: int) -> Fitted:
        """The network's input for an image; the decoded image is freed on return."""
        if isinstance(image, np.ndarray):
            return detector.prepare(image)
        with self._decoding.held(pixels):
            try:
                return detector.prepare(decode_image(image))
            except DataError as error:
                raise _refused(f"row {row}: {error}") from None


class _Room:
    """Pixels that may be decoded at a time, over all requests; whoever waits first gets in first."""

    def __init__(self, pixels: int):
        self._all = self._free = pixels
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        """Wait for this many pixels, and hold them for the length of a block."""
        taken, place = min(pixels, self._all), object()
        with self._changed:
            self._waiting.append(place)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is place and self._free >= taken)
                self._free -= taken
            finally:
                self._waiting.remove(place)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()


class _Header(io.BytesIO):
    """An image file for a reader of headers, which may take a bounded number of steps."""

    _reads = 0

    def read(self, size: int | None = -1) -> bytes:
        """As for any file. Raises OSError when the header does not end."""
        self._reads += 1
        if self._reads > _MOST_READS:
            raise OSError("the header does not end")
        return super().read(size)


def _cells(model_input: pd.DataFrame) -> list[Any]:
    if "image" not in model_input.columns:
        raise _refused(f"no column 'image' in the input (columns: {', '.join(map(str, model_input.columns))})")
    return list(model_input["image"])


def _content(cell: Any, row: int, limits: Limits) -> bytes | np.ndarray:
    """The bytes of an image file, or an image."""
    if isinstance(cell, np.ndarray) and cell.ndim:
        return _array(cell, row)
    if isinstance(cell, str):
        cell = cell.encode(errors="replace")
    if not isinstance(cell, bytes | bytearray | memoryview):
        raise _refused(f"row {row}: bytes of an image file or a uint8 array expected, got {type(cell).__name__}")
    # MLflow decodes the base64 of some of its JSON forms (dataframe_split) and passes that of others (inputs) through.
    # No image file consists of base64 letters alone: all have zeros or other bytes beyond ASCII in their header.
    data = bytes(cell)
    if _BASE64.fullmatch(data):
        data = _decoded(data, row)
    if not data:
        raise _refused(f"row {row}: the image is empty")
    if len(data) > limits.max_image_bytes:
        raise _refused(f"row {row}: the image file has {len(data)} bytes, at most {limits.max_image_bytes} are taken")
    return data


def _decoded(text: bytes, row: int) -> bytes:
    try:
        return base64.b64decode(text)
    except binascii.Error:
        raise _refused(f"row {row}: the text is not base64 of an image file") from None


def _array(cell: np.ndarray, row: int) -> np.ndarray:
    if cell.dtype != np.uint8 or cell.ndim != 3 or cell.shape[2] != 3 or 0 in cell.shape:
        raise _refused(
            f"row {row}: an array must be uint8 RGB of shape (height, width, 3), got {cell.dtype} {cell.shape}"
        )
    return cell


def _check_sizes(images: list[bytes | np.ndarray], limits: Limits) -> list[int]:
    """The pixels of each image."""
    pixels = []
    for row, image in enumerate(images):
        width, height = image.shape[1::-1] if isinstance(image, np.ndarray) else _size(image, row, limits)
        if width * height > limits.max_pixels:
            raise _refused(f"row {row}: the image is {width}x{height}; at most {limits.max_pixels} pixels are taken")
        pixels.append(width * height)
    total = sum(pixels)
    if total > limits.max_request_pixels:
        raise _refused(
            f"the images of this request have {total} pixels together, at most {limits.max_request_pixels} are taken; "
            "send them in parts"
        )
    return pixels


def _size(data: bytes, row: int, limits: Limits) -> tuple[int, int]:
    """Width and height from the header alone."""
    if data.startswith(b"\xff\xd8") and _scans(data) > _MOST_SCANS:
        raise _refused(f"row {row}: the JPEG has more than {_MOST_SCANS} scans")
    try:
        with Image.open(_Header(data), formats=FORMATS) as header:
            return header.size
    except Image.DecompressionBombError:
        raise _refused(f"row {row}: the image has more than {min(limits.max_pixels, LARGEST)} pixels") from None
    # Pillow's header readers let any exception of their parsing through; none may become a server error.
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error):
        raise _refused(f"row {row}: not an image of a known format, or damaged") from None


def _scans(data: bytes) -> int:
    """Scans of a JPEG, thumbnails included: inside a scan's data, FF is never followed by the mark of another."""
    values, step, count = np.frombuffer(data, np.uint8), 1 << 20, 0
    # In steps, and by NumPy, which lets other threads run meanwhile.
    for start in range(0, len(values), step):
        part = values[start : start + step + 1]
        count += int(np.count_nonzero((part[:-1] == 0xFF) & (part[1:] == 0xDA)))
    return count


def _table(found: list[Any], metadata: Any) -> pd.DataFrame:
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for image, detections in enumerate(found):
        labels = detections.labels.tolist()
        rows["image"] += [image] * len(labels)
        for axis, name in enumerate(("x1", "y1", "x2", "y2")):
            rows[name] += detections.boxes[:, axis].tolist()
        rows["score"] += detections.scores.tolist()
        rows["label"] += labels
        rows["category_id"] += [metadata.category_ids[label] for label in labels]
        rows["name"] += [metadata.class_names[label] for label in labels]
    return pd.DataFrame({name: pd.Series(rows[name], dtype=kind) for name, kind in COLUMNS.items()})


def _refused(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


# MLflow runs this file for its model; a plain import (a test, a type check) has no lasting effect.
mlflow.models.set_model(DetectorModel())
