"""Evaluation of a detector on a data set: batches, predictions, suppression, the COCO tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO

from yolov7.data.evaluation import NO_BORDER, EvalBatch, evaluation_batches
from yolov7.data.index import Index
from yolov7.data.tally import Tally
from yolov7.data.workers import lost_workers_explained
from yolov7.errors import ModelError
from yolov7.evaluate.coco import Result, Scores, evaluate_detections, ground_truth
from yolov7.evaluate.curves import PrecisionRecall
from yolov7.evaluate.left_out import uncounted_objects
from yolov7.evaluate.matches import Matching
from yolov7.letterbox import Border
from yolov7.model.checkpoint import ModelMetadata
from yolov7.nms import Thresholds, select
from yolov7.predict.predictor import Predictor, input_sides
from yolov7.predict.runtimes import DetectingRuntime, Runtime

EVALUATION = Thresholds(confidence=0.001, iou=0.65)
"""Thresholds of the published figures (training sheet, section 9)."""

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation."""

    metrics: dict[str, float]
    """The COCO tool's twelve figures (yolov7.evaluate.coco.METRICS); -1 without ground truth."""
    per_class: dict[str, float]
    """AP by class name; -1 for a class without ground truth."""
    results: list[Result]
    """All detections as COCO result records, with the data set's category ids, unrounded."""
    curves: PrecisionRecall
    """Precision over recall."""
    matches: Matching
    """Detections matched with objects: for intervals, calibration, operating points."""
    uncounted: Tally | None = None
    """Objects that no detection can find (:func:`yolov7.evaluate.left_out.uncounted_objects`)."""


def evaluate(
    detector: Predictor | Runtime | DetectingRuntime,
    index: Index,
    *,
    image_size: int | None = None,
    batch_size: int = 16,
    confidence: float = EVALUATION.confidence,
    iou: float = EVALUATION.iou,
    max_detections: int = EVALUATION.max_detections,
    rectangular: bool = False,
    border: Border = NO_BORDER,
    workers: int = 0,
    truth: COCO | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate on every image of `index` as the published figures were (training sheet, section 9).

    Images are fitted to the square of `image_size` (default: as trained), or with `rectangular` to the smallest shape
    of their batch; a file whose sides were fixed when it was exported gets those. `border` surrounds them with more
    grey and says how boxes find back, as YOLOv6's published figures need it. Every class of a box above
    `confidence` counts; of the `max_detections` kept of an image the COCO tool looks at 100; there is no time limit. A
    file with the suppression inside is measured with its own thresholds, which leave out low scores that AP would
    count. `truth` saves building the ground truth again.
    Raises :class:`ModelError` if the model's classes are not the data set's, or its sides are fixed to others,
    :class:`ConfigError` for thresholds or a border out of range, :class:`DataError` for an image that is unreadable or
    not of the annotated size.
    """
    results = find_results(
        detector,
        index,
        image_size=image_size,
        batch_size=batch_size,
        thresholds=Thresholds(confidence, iou, max_detections),
        rectangular=rectangular,
        border=border,
        workers=workers,
        progress=progress,
    )
    scores: Scores = evaluate_detections(ground_truth(index) if truth is None else truth, results)
    uncounted = uncounted_objects(index, max_detections=max_detections)
    return Evaluation(scores.metrics, scores.per_class, results, scores.curves, scores.matches, uncounted)


def find_results(
    detector: Predictor | Runtime | DetectingRuntime,
    index: Index,
    *,
    image_size: int | None = None,
    batch_size: int = 16,
    thresholds: Thresholds = EVALUATION,
    rectangular: bool = False,
    border: Border = NO_BORDER,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: Progress | None = None,
) -> list[Result]:
    """COCO result records of every image of `index`, or of the share of process `rank` of `world_size`.

    The shares cover every image exactly once; scored together they give what one process finds. See :func:`evaluate`.
    An exception of `progress` ends the evaluation.
    """
    check_classes(detector.metadata, index)
    predictor = detector if isinstance(detector, Predictor) else Predictor(detector)
    results: list[Result] = []
    done = 0
    batches = evaluation_batches(
        index,
        image_size=_sides(predictor, image_size, rectangular),
        batch_size=batch_size,
        stride=predictor.stride,
        rectangular=rectangular,
        border=border,
        workers=workers,
        rank=rank,
        world_size=world_size,
    )
    with lost_workers_explained(), closing(batches):  # no worker outlives this, however it ends
        for batch in batches:
            results += batch_results(predictor, batch, index, thresholds)
            done += len(batch)
            if progress is not None:
                progress(done, len(index))
    return results


def _sides(predictor: Predictor, image_size: int | None, rectangular: bool) -> int | tuple[int, int]:
    """Size of the input as :func:`evaluation_batches` takes it: a (height, width), or the side of rectangular ones."""
    height, width = input_sides(predictor.runtime, image_size)
    if not rectangular:
        return height, width
    if None not in predictor.input_shape[1:]:
        raise ModelError(
            f"{predictor.metadata.variant}: exported for images of {height} x {width}, not for smallest shapes"
        )
    return height


def check_classes(metadata: ModelMetadata, index: Index) -> None:
    """Raise :class:`ModelError` unless the model's classes are the data set's, in the same order."""
    model, data = metadata.class_names, index.class_names
    if len(model) != len(data):
        raise ModelError(f"{metadata.variant}: {len(model)} classes, but the data set {index.folder} has {len(data)}")
    for number, (ours, theirs) in enumerate(zip(model, data, strict=True)):
        if ours != theirs:
            raise ModelError(
                f"{metadata.variant}: class {number} is {ours!r}, but {theirs!r} in the data set {index.folder}"
            )


def coco_results(
    image_id: int, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, category_ids: Sequence[int]
) -> list[Result]:
    """COCO result records of one image from xyxy boxes (n, 4) in pixels, scores (n,), class numbers (n,). Unrounded."""
    corners = boxes.astype(np.float64)
    sides = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1).tolist()
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(sides, scores.tolist(), labels.tolist(), strict=True)
    ]


def batch_results(predictor: Predictor, batch: EvalBatch, index: Index, thresholds: Thresholds) -> list[Result]:
    """COCO result records of one batch. A file with the suppression inside applies its own thresholds."""
    if predictor.suppression_inside is not None:
        found = predictor.detect(batch.images)
    else:
        decoded, several = predictor.decoded(batch.images), len(index.class_names) > 1
        found = select(decoded, thresholds, scoring=predictor.scoring, multi_label=several)
    results: list[Result] = []
    for position, (image_id, detections) in enumerate(zip(batch.image_ids, found, strict=True)):
        boxes, scores, labels = detections.to_numpy()
        results += coco_results(image_id, batch.to_original(position, boxes), scores, labels, index.category_ids)
    return results
