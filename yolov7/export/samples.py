"""Real images to measure artefacts on, fitted to their input, and AP on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from yolov7.config import Train
from yolov7.data.annotated import read_annotated
from yolov7.data.dataset import TrainDataset
from yolov7.data.index import Index
from yolov7.detections import Detections
from yolov7.evaluate.coco import Result, evaluate_detections, ground_truth
from yolov7.evaluate.run import EVALUATION, coco_results
from yolov7.letterbox import Fitted
from yolov7.nms import select
from yolov7.predict.predictor import Predictor, stack, to_original
from yolov7.predict.runtimes import DetectingRuntime, Runtime
from yolov7.predictions import Scoring, columns_before_classes


class Samples:
    """Images of a data set, by their positions in its index, as inputs of a network.

    `fitted_to` sets the size of the input: all artefacts that are compared get the sides a file was fixed to.
    """

    def __init__(
        self,
        index: Index,
        positions: Sequence[int],
        fitted_to: Runtime | DetectingRuntime,
        *,
        batch_size: int = 8,
    ):
        self.index, self.positions, self.batch_size = index, list(positions), batch_size
        self._preparer = Predictor(fitted_to)

    def batches(self) -> Iterator[tuple[list[int], list[Fitted], Tensor]]:
        """Positions, the fitted images, and the same as a batch uint8 (B, 3, H, W); read again on every call."""
        for start in range(0, len(self.positions), self.batch_size):
            chosen = self.positions[start : start + self.batch_size]
            prepared = [self._preparer.prepare(read_annotated(self.index, i)) for i in chosen]
            yield chosen, prepared, stack([fitted.image for fitted in prepared])

    def results(
        self, positions: Sequence[int], prepared: Sequence[Fitted], found: Sequence[Detections]
    ) -> list[Result]:
        """COCO result records of detections in pixels of the input."""
        results: list[Result] = []
        for i, fitted, detections in zip(positions, prepared, found, strict=True):
            boxes, scores, labels = to_original(detections, fitted).to_numpy()
            results += coco_results(self.index.image_id(i), boxes, scores, labels, self.index.category_ids)
        return results

    def ap_of(self, results: Sequence[Result]) -> float:
        """AP of records on these images; -1 without ground truth."""
        return evaluate_detections(ground_truth(self.index, self.positions), list(results)).metrics["AP"]

    def ap(self, runtime: Runtime) -> float:
        """AP of a network on these images; -1 without ground truth."""
        results: list[Result] = []
        for chosen, prepared, batch in self.batches():
            results += self.results(chosen, prepared, candidates(runtime.decoded(batch).cpu(), runtime.scoring))
        return self.ap_of(results)


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` positions at even distances through `length` images, each once."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))


def augmented_like(train: Train, index: Index) -> TrainDataset:
    """The samples of a training on these images, before its last epochs without mosaic."""
    return TrainDataset(index, image_size=train.image_size, augment=train.augment, seed=train.seed)


def augmented_batches(dataset: TrainDataset, count: int) -> Iterator[np.ndarray]:
    """Samples around images at even distances, uint8 (1, 3, S, S), as the first epoch of a training shows them."""
    for i in evenly_spaced(len(dataset), count):
        yield np.ascontiguousarray(dataset[(0, i)].image.transpose(2, 0, 1)[None])


def candidates(decoded: Tensor, scoring: Scoring) -> list[Detections]:
    """Detections that an evaluation counts, of decoded predictions (B, N, F): every class above its low threshold."""
    several = decoded.shape[2] > columns_before_classes(scoring) + 1
    return select(decoded, EVALUATION, scoring=scoring, multi_label=several)
