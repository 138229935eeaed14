"""From images to detections: letterbox, run the network in batches, suppress, map the boxes back.

Every image is prepared by itself, so what is found on it depends neither on the images it is batched with nor on the
runtime (float32 rounding apart).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from yolov7.data.decode import resize_to_long_side
from yolov7.errors import ConfigError, DataError, ModelError
from yolov7.letterbox import pad_to, unletterbox
from yolov7.model.checkpoint import ModelMetadata
from yolov7.nms import Detections, select
from yolov7.predict.augmented import AugmentedRuntime, Views
from yolov7.predict.runtimes import Batch, DetectingRuntime, Runtime

CONFIDENCE = 0.25
"""Default score threshold of plain detection (training sheet, section 9)."""
IOU = 0.45
"""Default IoU threshold of the suppression in plain detection (training sheet, section 9)."""
MAX_DETECTIONS = 300
"""Most detections of an image, by default."""


@dataclass(frozen=True)
class Prepared:
    """An image fitted to the network's input, and the way back."""

    image: np.ndarray
    """uint8 (H, W, 3) RGB, sides multiples of the stride."""
    scale: tuple[float, float]
    """Input pixels per original pixel, (x, y)."""
    pad: tuple[int, int]
    """Where the original's top-left corner lies in it, (x, y)."""
    size: tuple[int, int]
    """(height, width) of the original."""


class Predictor:
    """Detections of whole images by any runtime.

    `image_size` is the side of the square the images are fitted into (default: what the model was trained at).
    With `rectangular` an image gets the smallest rectangle of stride multiples around it instead of the square: less
    work for long images. `max_detections` counts per image; only the best class of a box is reported. `augment` is
    test-time augmentation: the network sees each image several times (True: all views of yolov7/predict/augmented.py).
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
        batch_size: int = 8,
        augment: bool | Views = False,
    ):
        if augment:
            runtime = AugmentedRuntime(runtime, "all" if augment is True else augment)  # type: ignore[arg-type]
        self.runtime = runtime
        said = runtime.metadata.extra.get("thresholds", {})
        self.confidence = float(said.get("confidence", CONFIDENCE) if confidence is None else confidence)
        self.iou = float(said.get("iou", IOU) if iou is None else iou)
        self.max_detections = int(
            said.get("max_detections", MAX_DETECTIONS) if max_detections is None else max_detections
        )
        if isinstance(runtime, DetectingRuntime):
            self._take_thresholds_of(runtime, confidence, iou, max_detections)
        self.stride = runtime.stride
        self.batch_size = max(1, batch_size)
        self.rectangular = rectangular
        self.canvas = self._canvas(image_size)
        self._check()

    @property
    def metadata(self) -> ModelMetadata:
        """What the model is: variant, classes, category ids, image size."""
        return self.runtime.metadata

    @property
    def input_shape(self) -> tuple[int | None, int | None, int | None]:
        """Fixed batch size, height and width of the network's input; None where any will do."""
        return self.runtime.input_shape

    @property
    def suppression_inside(self) -> dict[str, float] | None:
        """The thresholds that a file with the suppression inside was exported with; None for any other."""
        if not isinstance(self.runtime, DetectingRuntime):
            return None
        inside = self.runtime
        return {"confidence": inside.confidence, "iou": inside.iou, "max_detections": inside.max_detections}

    def decoded(self, batch: Batch) -> Tensor:
        """uint8 (B, 3, H, W) RGB -> float32 (B, N, 5 + C), before the suppression. See :class:`Runtime`."""
        if not isinstance(self.runtime, Runtime):
            raise ModelError(
                f"{self.metadata.variant}: this file has the suppression inside and no decoded output; use model.onnx"
            )
        return self.runtime.decoded(batch)

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
        return [found[i] for i in range(len(several))]

    def predict_prepared(self, images: Sequence[Prepared]) -> list[Detections]:
        """As :meth:`predict`, for images that :meth:`prepare` has fitted: what need not hold the originals, which may
        be much larger, prepares them one by one and lets go of each."""
        found: dict[int, Detections] = {}
        for positions in self._batches([(image.image.shape[0], image.image.shape[1]) for image in images]):
            found.update(zip(positions, self._detect([images[i] for i in positions]), strict=True))
        return [found[i] for i in range(len(images))]

    def _detect(self, prepared: Sequence[Prepared]) -> list[Detections]:
        """One batch, of images of one shape."""
        detections = self.detect(stack([one.image for one in prepared]))
        return [
            to_original(boxes, one.scale, one.pad, one.size) for one, boxes in zip(prepared, detections, strict=True)
        ]

    def prepare(self, image: np.ndarray) -> Prepared:
        """Fit an image to the network's input, as evaluation does (training sheet, section 9): the long side to the
        canvas's, area averages where that shrinks, then a grey border.
        """
        height, width = self.canvas_for(image.shape[0], image.shape[1])
        # The longer side decides, unless the canvas is flatter than the image: then the other one does.
        ratio = min(height / image.shape[0], width / image.shape[1])
        resized = resize_to_long_side(image, round(max(image.shape[:2]) * ratio), area=True)
        scale = (resized.shape[1] / image.shape[1], resized.shape[0] / image.shape[0])
        fitted, pad = pad_to(resized, height, width)
        return Prepared(fitted, scale, pad, (image.shape[0], image.shape[1]))

    def detect(self, batch: Tensor) -> list[Detections]:
        """Detections of prepared images, uint8 (B, 3, H, W), in pixels of that input."""
        if isinstance(self.runtime, Runtime):
            return self.suppress(self.runtime.decoded(batch))
        return [_above(found, self.confidence, self.max_detections) for found in self.runtime.detect(batch)]

    def suppress(self, decoded: Tensor) -> list[Detections]:
        """Detections from decoded predictions (B, N, 5 + C), in pixels of the input."""
        return select(
            decoded,
            confidence=self.confidence,
            iou=self.iou,
            max_detections=self.max_detections,
            multi_label=False,
        )

    def canvas_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the input an image of this size is fitted into."""
        if not self.rectangular:
            return self.canvas
        ratio = min(self.canvas[0] / height, self.canvas[1] / width)
        tall, wide = (-(-max(int(side * ratio), 1) // self.stride) * self.stride for side in (height, width))
        return min(tall, self.canvas[0]), min(wide, self.canvas[1])

    def _batches(self, shapes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Positions of images that share an input of (height, width), at most `batch_size` at a time."""
        groups: dict[tuple[int, int], list[int]] = {}
        for position, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(position)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _canvas(self, image_size: int | None) -> tuple[int, int]:
        _, height, width = self.runtime.input_shape
        if height is None or width is None:
            side = self.metadata.image_size if image_size is None else image_size
            return side, side
        if image_size is not None and (height, width) != (image_size, image_size):
            raise ModelError(f"{self.metadata.variant}: exported for images of {height} x {width}, not {image_size}")
        self.rectangular = False
        return height, width

    def _take_thresholds_of(
        self, runtime: DetectingRuntime, confidence: float | None, iou: float | None, max_detections: int | None
    ) -> None:
        """Inside such a graph the thresholds are fixed; what came out may only be thinned further."""
        if iou is not None and iou != runtime.iou:
            raise ModelError(f"the suppression inside this file uses IoU {runtime.iou}; use model.onnx for {iou}")
        if confidence is not None and confidence < runtime.confidence:
            raise ModelError(
                f"the suppression inside this file begins at {runtime.confidence}; use model.onnx for {confidence}"
            )
        self.iou = runtime.iou
        self.confidence = runtime.confidence if confidence is None else confidence
        self.max_detections = min(runtime.max_detections, max_detections or runtime.max_detections)

    def _check(self) -> None:
        if not 0.0 <= self.confidence <= 1.0 or not 0.0 < self.iou <= 1.0:
            raise ConfigError(f"confidence {self.confidence} and iou {self.iou} must lie between 0 and 1")
        if self.max_detections < 1:
            raise ConfigError(f"max_detections: at least 1 is needed, got {self.max_detections}")
        if any(side < 1 or side % self.stride for side in self.canvas):
            raise ConfigError(f"image_size {self.canvas[0]} is not a multiple of the network's stride {self.stride}")


def to_original(
    detections: Detections, scale: float | tuple[float, float], pad: tuple[float, float], size: tuple[int, int]
) -> Detections:
    """Detections in input pixels as detections in pixels of the original image of `size` (height, width), clipped."""
    boxes = unletterbox(detections.boxes.numpy(), scale, pad, *size)
    return Detections(boxes=torch.from_numpy(boxes), scores=detections.scores, labels=detections.labels)


def stack(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) images of one size as a batch (B, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))


def _above(found: Detections, confidence: float, count: int) -> Detections:
    kept = (found.scores > confidence).nonzero()[:count, 0]
    return Detections(boxes=found.boxes[kept], scores=found.scores[kept], labels=found.labels[kept])


def _check_image(image: object, number: int) -> None:
    fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not fits or 0 in image.shape:  # type: ignore[attr-defined]
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"image {number}: a uint8 RGB array of (height, width, 3) is expected, got {found}")
