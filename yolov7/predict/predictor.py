"""From images to detections: fit to the input, run the network in batches, suppress, map the boxes back.

Every image is prepared by itself, so its detections depend neither on the other images of its batch nor on the runtime
(float32 rounding apart).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolov7.detections import Detections
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.letterbox import Fitted, check_border, fit
from yolov7.model.checkpoint import ModelMetadata
from yolov7.nms import Thresholds, select
from yolov7.predict.about import require_finite
from yolov7.predict.augmented import AugmentedRuntime, Views
from yolov7.predict.notebook import Shown, detector_table, show
from yolov7.predict.runtimes import (
    DecodingFile,
    DetectingFile,
    DetectingRuntime,
    ImageBatch,
    OnnxRawRuntime,
    Runtime,
)
from yolov7.predictions import Scoring

DETECTION = Thresholds(confidence=0.25, iou=0.45)
"""Default thresholds of plain detection (training sheet, section 9)."""

Prepared = Fitted
"""Old name, which the serving code inside models registered before the rename imports."""


class Predictor:
    """Detections of whole images by any runtime.

    Thresholds default to those the model was exported with; :class:`ConfigError` for values out of range,
    :class:`ModelError` for those that contradict a file with the suppression inside. Only the best class of a box is
    reported. `image_size` is the side of the square input (default: as trained); with `rectangular` an image gets the
    smallest rectangle of stride multiples around it instead, which is less work for long images. `border` is grey along
    the image's long side, in pixels of the input (:class:`yolov7.letterbox.Border`). `augment` is test-time
    augmentation: the network sees each image several times (True: all views of yolov7/predict/augmented.py).
    """

    def __init__(
        self,
        runtime: Runtime | DetectingRuntime,
        *,
        confidence: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        image_size: int | None = None,
        rectangular: bool = False,
        border: int = 0,
        batch_size: int = 8,
        augment: bool | Views = False,
    ):
        if augment:
            runtime = AugmentedRuntime(runtime, "all" if augment is True else augment)  # type: ignore[arg-type]
        self.runtime = runtime
        given: dict[str, Any] = {"confidence": confidence, "iou": iou, "max_detections": max_detections}
        if isinstance(runtime, DetectingRuntime):
            self.thresholds = _inside(runtime.thresholds, given)
        else:
            exported = runtime.metadata.extra.get("thresholds", {})
            self.thresholds = DETECTION.updated(**{name: exported.get(name) for name in given}).updated(**given)
        self.stride = runtime.stride
        self.batch_size = max(1, batch_size)
        self._answered = False
        self.rectangular = rectangular and None in runtime.input_shape[1:]
        self.canvas = input_sides(runtime, image_size)
        if any(side < 1 or side % self.stride for side in self.canvas):
            raise ConfigError(f"image_size {self.canvas[0]} is not a multiple of the network's stride {self.stride}")
        self.border = check_border(border, self.canvas)

    @property
    def confidence(self) -> float:
        """Score threshold."""
        return self.thresholds.confidence

    @property
    def iou(self) -> float:
        """IoU threshold of the suppression."""
        return self.thresholds.iou

    @property
    def max_detections(self) -> int:
        """Most detections of an image."""
        return self.thresholds.max_detections

    @property
    def metadata(self) -> ModelMetadata:
        """Variant, classes, category ids, image size of the model."""
        return self.runtime.metadata

    @property
    def input_shape(self) -> tuple[int | None, int | None, int | None]:
        """Fixed batch size, height and width of the network's input; None where open."""
        return self.runtime.input_shape

    @property
    def suppression_inside(self) -> dict[str, float] | None:
        """The thresholds that a file with the suppression inside was exported with; None for any other."""
        return asdict(self.runtime.thresholds) if isinstance(self.runtime, DetectingRuntime) else None

    @property
    def scoring(self) -> Scoring:
        """Columns of :meth:`decoded`, and the score made of them."""
        return self._decoding.scoring

    def decoded(self, batch: ImageBatch) -> Tensor:
        """uint8 (B, 3, H, W) RGB -> float32 (B, N, F), before the suppression. See :class:`Runtime`.

        Raises :class:`ModelError` if the first answer is not finite.
        """
        answer = self._decoding.decoded(batch)
        if not self._answered:
            require_finite(answer[:1].cpu().numpy(), self.metadata.variant)
            self._answered = True
        return answer

    @property
    def _decoding(self) -> Runtime:
        if not isinstance(self.runtime, Runtime):
            raise ModelError(
                f"{self.metadata.variant}: this file has the suppression inside and no decoded output; use model.onnx"
            )
        return self.runtime

    def predict(self, images: np.ndarray | Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each image by falling score, boxes in pixels of the original image, clipped to it.

        `images`: uint8 (H, W, 3) RGB, one or several of any sizes. Raises :class:`DataError` for anything else.
        """
        several = [images] if isinstance(images, np.ndarray) and images.ndim == 3 else list(images)
        for number, image in enumerate(several):
            _check_image(image, number)
        found: dict[int, Detections] = {}
        for positions in self._batches([self.canvas_for(image.shape[0], image.shape[1]) for image in several]):
            prepared = [self.prepare(several[i]) for i in positions]
            found.update(zip(positions, self._detect(prepared), strict=True))
        return [self._named(found[i]) for i in range(len(several))]

    def show(self, image: np.ndarray) -> Shown:
        """Detect on one image and draw the detections: `detector.show(image)` as a notebook cell's last line."""
        (found,) = self.predict(image)
        return show(image, found)

    def _repr_html_(self) -> str:
        """A notebook's table: variant, classes, input, thresholds, file."""
        file = self.runtime.file.path if isinstance(self.runtime, DecodingFile | DetectingFile | OnnxRawRuntime) else ""
        shown = os.fsencode(file).decode("utf-8", "backslashreplace") or "none: a network in memory"
        return detector_table(self.metadata, self.thresholds, self.canvas, shown)

    def predict_prepared(self, images: Sequence[Fitted]) -> list[Detections]:
        """As :meth:`predict`, for images that :meth:`prepare` has fitted.

        Lets callers prepare large images one at a time and free each original.
        """
        found: dict[int, Detections] = {}
        for positions in self._batches([(image.image.shape[0], image.image.shape[1]) for image in images]):
            found.update(zip(positions, self._detect([images[i] for i in positions]), strict=True))
        return [self._named(found[i]) for i in range(len(images))]

    def _named(self, found: Detections) -> Detections:
        return replace(
            found, class_names=tuple(self.metadata.class_names), category_ids=tuple(self.metadata.category_ids)
        )

    def _detect(self, prepared: Sequence[Fitted]) -> list[Detections]:
        """One batch, of images of one shape."""
        detections = self.detect(stack([fitted.image for fitted in prepared]))
        return [to_original(found, fitted) for fitted, found in zip(prepared, detections, strict=True)]

    def prepare(self, image: np.ndarray) -> Fitted:
        """Fit an image, uint8 (h, w, 3) RGB, to the network's input, as evaluation does."""
        return fit(image, *self.canvas_for(image.shape[0], image.shape[1]), border=self.border)

    def detect(self, batch: Tensor) -> list[Detections]:
        """Detections of prepared images, uint8 (B, 3, H, W), in pixels of that input."""
        if isinstance(self.runtime, Runtime):
            return self.suppress(self.decoded(batch))
        return [_above(found, self.thresholds) for found in self.runtime.detect(batch)]

    def suppress(self, decoded: Tensor) -> list[Detections]:
        """Detections from decoded predictions (B, N, F), in pixels of the input."""
        return select(decoded, self.thresholds, scoring=self.scoring, multi_label=False)

    def canvas_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the input an image of this size is fitted into."""
        if not self.rectangular:
            return self.canvas
        ratio = min((self.canvas[0] - self.border) / height, (self.canvas[1] - self.border) / width)
        sides = (max(int(side * ratio), 1) + self.border for side in (height, width))
        tall, wide = (-(-side // self.stride) * self.stride for side in sides)
        return min(tall, self.canvas[0]), min(wide, self.canvas[1])

    def _batches(self, shapes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Positions of images that share an input of (height, width), at most `batch_size` at a time."""
        groups: dict[tuple[int, int], list[int]] = {}
        for position, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(position)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]


def input_sides(runtime: Runtime | DetectingRuntime, image_size: int | None) -> tuple[int, int]:
    """(height, width) of the input that images are fitted to: fixed in the file, or a square.

    The square is `image_size` (None: as trained) on a side. Raises :class:`ModelError` if the file is fixed to others.
    """
    _, height, width = runtime.input_shape
    if height is None or width is None:
        side = runtime.metadata.image_size if image_size is None else image_size
        return side, side
    if image_size is not None and (height, width) != (image_size, image_size):
        asked = f"{image_size} x {image_size}"
        raise ModelError(f"{runtime.metadata.variant}: exported for images of {height} x {width}, not for {asked}")
    return height, width


def to_original(found: Detections, fitted: Fitted) -> Detections:
    """Detections in input pixels as detections in pixels of the original image, clipped to it."""
    boxes = torch.from_numpy(fitted.to_original(found.boxes.numpy()))
    return Detections(boxes=boxes, scores=found.scores, labels=found.labels)


def stack(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) images of one size as a batch (B, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def _inside(fixed: Thresholds, given: Mapping[str, Any]) -> Thresholds:
    """The thresholds `given` for a file that applies those `fixed` in it: its detections can only be thinned."""
    iou, confidence, count = given["iou"], given["confidence"], given["max_detections"]
    if iou is not None and iou != fixed.iou:
        raise ModelError(f"the suppression inside this file uses IoU {fixed.iou}; use model.onnx for {iou}")
    if confidence is not None and confidence < fixed.confidence:
        raise ModelError(
            f"the suppression inside this file begins at {fixed.confidence}; use model.onnx for {confidence}"
        )
    return fixed.updated(
        confidence=confidence, max_detections=None if count is None else min(count, fixed.max_detections)
    )


def _above(found: Detections, thresholds: Thresholds) -> Detections:
    kept = (found.scores > thresholds.confidence).nonzero()[: thresholds.max_detections, 0]
    return Detections(boxes=found.boxes[kept], scores=found.scores[kept], labels=found.labels[kept])


def _check_image(image: object, number: int) -> None:
    fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not fits or 0 in image.shape:  # type: ignore[attr-defined]
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"image {number}: a uint8 RGB array of (height, width, 3) is expected, got {found}")
