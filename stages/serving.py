"""The registered model: images in, a table of detections out.

MLflow stores this file with the model and runs it wherever the model is loaded ("models from code"), so nothing has to
be pickled. It needs the library, which travels in the model's `code` folder, and the export folder, its one artifact.

Input: a table with the column `image`; a cell holds the bytes of an image file (base64 text in JSON), or, from Python,
a uint8 RGB array (height, width, 3): `model.predict({"image": [array, ...]})`.
Output: one row a detection, in :data:`COLUMNS`, best first within an image; boxes are corners in pixels of the image
as it was sent, `image` is the row of the input it belongs to.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from PIL import Image, UnidentifiedImageError

from yolov7.data.decode import decode_image
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.predict import load_detector
from yolov7.predict.predictor import Predictor

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
"""Columns of the answer. `label` is the class number of the network, `category_id` the id in the training data."""

_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")

MAX_IMAGES = 64
"""More images in one request are refused: memory grows with every one of them."""
MAX_BYTES = 32 * 1024 * 1024
"""Largest image file."""
MAX_PIXELS = 64_000_000
"""Largest image: a small file can claim any size, and decoding it pays for every pixel."""


class DetectorModel(mlflow.pyfunc.PythonModel):
    """MLflow's interface around the exported ONNX network."""

    def load_context(self, context: Any) -> None:
        """Open the export folder that MLflow has laid beside this file."""
        self._detector = load_detector(context.artifacts["export"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Detect. `params` may hold `confidence` and `iou`, between 0 and 1; without them those of the export hold.

        Raises MlflowException (HTTP 400) that names the row for anything that is not an image.
        """
        cells = _cells(model_input)
        if not cells:
            raise _refused("no image given: send at least one row in the column 'image'")
        if len(cells) > MAX_IMAGES:
            raise _refused(f"{len(cells)} images in one request; at most {MAX_IMAGES} are taken, send them in parts")
        detector = self._with_thresholds(params or {})
        found = detector.predict([_image(cell, row) for row, cell in enumerate(cells)])
        return _table(found, detector.metadata)

    def _with_thresholds(self, params: Mapping[str, Any]) -> Predictor:
        """A predictor of this request's own around the shared network: requests may run side by side."""
        confidence, iou = params.get("confidence"), params.get("iou")
        try:
            return Predictor(
                self._detector.runtime,
                confidence=None if confidence is None else float(confidence),
                iou=None if iou is None else float(iou),
            )
        except (ConfigError, ModelError, TypeError, ValueError) as error:
            raise _refused(f"params: {error}") from None


def _cells(model_input: pd.DataFrame) -> list[Any]:
    if "image" not in model_input.columns:
        raise _refused(f"no column 'image' in the input (columns: {', '.join(map(str, model_input.columns))})")
    return list(model_input["image"])


def _image(cell: Any, row: int) -> np.ndarray:
    if isinstance(cell, np.ndarray):
        return _array(cell, row)
    if isinstance(cell, str):
        cell = cell.encode()
    if not isinstance(cell, bytes | bytearray | memoryview):
        raise _refused(f"row {row}: bytes of an image file or a uint8 array expected, got {type(cell).__name__}")
    # MLflow decodes the base64 of some of its JSON forms (dataframe_split) and hands that of others (inputs) on as it
    # is. No image file consists of base64's letters alone: all have zeros or other bytes beyond ASCII in their head.
    data = bytes(cell)
    if _BASE64.fullmatch(data):
        data = _decoded(data, row)
    if not data:
        raise _refused(f"row {row}: the image is empty")
    if len(data) > MAX_BYTES:
        raise _refused(f"row {row}: the image file has {len(data)} bytes, at most {MAX_BYTES} are taken")
    _check_size(data, row)
    try:
        return decode_image(data)
    except DataError as error:
        raise _refused(f"row {row}: {error}") from None


def _decoded(text: bytes, row: int) -> bytes:
    try:
        return base64.b64decode(text)
    except binascii.Error:
        raise _refused(f"row {row}: the text is not base64 of an image file") from None


def _check_size(data: bytes, row: int) -> None:
    """Read width and height from the header alone."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise _refused(f"row {row}: the image is larger than {MAX_PIXELS} pixels") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise _refused(f"row {row}: not an image of a known format, or damaged") from None
    if width * height > MAX_PIXELS:
        raise _refused(f"row {row}: the image is {width}x{height}; at most {MAX_PIXELS} pixels are taken")


def _array(cell: np.ndarray, row: int) -> np.ndarray:
    if cell.dtype != np.uint8 or cell.ndim != 3 or cell.shape[2] != 3 or 0 in cell.shape:
        raise _refused(
            f"row {row}: an array must be uint8 RGB of shape (height, width, 3), got {cell.dtype} {cell.shape}"
        )
    if cell.shape[0] * cell.shape[1] > MAX_PIXELS:
        raise _refused(
            f"row {row}: the image is {cell.shape[1]}x{cell.shape[0]}; at most {MAX_PIXELS} pixels are taken"
        )
    return cell


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


# MLflow runs this file for its model; a plain import of it (a test, a check of types) registers nothing lasting.
mlflow.models.set_model(DetectorModel())
