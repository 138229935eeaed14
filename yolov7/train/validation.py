"""Validation inside a training: COCO figures of the weights, in the form that will be deployed."""

from __future__ import annotations

from collections.abc import Callable

from yolov7.config import Train
from yolov7.data.index import Index
from yolov7.evaluate import EVALUATION, coco_metrics, find_results
from yolov7.evaluate.coco import Result
from yolov7.model import Detector, ModelMetadata
from yolov7.predict import Predictor, TorchRuntime
from yolov7.train.distributed import Processes


class _Stopped(Exception):  # noqa: N818 - a request, not an error
    """Ends a validation on request."""


def validation_figures(
    model: Detector,
    metadata: ModelMetadata,
    index: Index,
    params: Train,
    *,
    batch_size: int,
    workers: int,
    processes: Processes,
    stop: Callable[[], bool],
) -> dict[str, float] | None:
    """The COCO tool's figures for `model` on `index`; None if `stop()` asked for an end between two batches.

    `batch_size` images at a time are taken by each process; one that is stopped waits for the others' shares.
    """

    def go_on(done: int, images: int) -> None:
        if done < images and stop():
            raise _Stopped

    results: list[Result] = []
    stopped = False
    try:
        results = find_results(
            Predictor(TorchRuntime(model.inference(), metadata)),
            index,
            image_size=params.image_size,
            batch_size=batch_size,
            thresholds=EVALUATION.updated(iou=params.evaluate_iou),
            rectangular=params.evaluate_rectangular,
            workers=workers,
            rank=processes.rank,
            world_size=processes.world_size,
            progress=go_on,
        )
    except _Stopped:
        stopped = True
    (stopped,) = processes.any(stopped)
    if stopped:
        return None
    everything = processes.gather(results)
    return processes.on_main(lambda: coco_metrics(index, everything))
