"""Real images to measure an artefact on: fitted to its input once, and its AP on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from yolov7.data.evaluation import read_annotated
from yolov7.data.index import Index
from yolov7.evaluate.coco import Result, evaluate_detections, ground_truth
from yolov7.evaluate.run import coco_results
from yolov7.nms import Detections, select
from yolov7.predict.predictor import Predictor, Prepared, stack, to_original
from yolov7.predict.runtimes import DetectingRuntime, Runtime

_CONFIDENCE, _IOU = 0.001, 0.65  # as evaluation (training sheet, section 9)


class Samples:
    """Images of a data set, by their positions in its index, as inputs of a network.

    `fitted_to` says how large the input is: whatever sides a file was fixed to, all that are compared get the same.
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

    def batches(self) -> Iterator[tuple[list[int], list[Prepared], Tensor]]:
        """Positions, what is known of each image, and the images uint8 (B, 3, H, W); read anew each time."""
        for start in range(0, len(self.positions), self.batch_size):
            chosen = self.positions[start : start + self.batch_size]
            prepared = [self._preparer.prepare(read_annotated(self.index, i)) for i in chosen]
            yield chosen, prepared, stack([one.image for one in prepared])

    def results(
        self, positions: Sequence[int], prepared: Sequence[Prepared], found: Sequence[Detections]
    ) -> list[Result]:
        """COCO result records of detections in pixels of the input."""
        results: list[Result] = []
        for i, one, detections in zip(positions, prepared, found, strict=True):
            boxes, scores, labels = to_original(detections, one.scale, one.pad, one.size).to_numpy()
            results += coco_results(self.index.image_id(i), boxes, scores, labels, self.index.category_ids)
        return results

    def ap_of(self, results: Sequence[Result]) -> float:
        """AP of records on these images; -1 without ground truth."""
        return evaluate_detections(ground_truth(self.index, self.positions), list(results)).metrics["AP"]

    def ap(self, runtime: Runtime) -> float:
        """AP of a network on these images; -1 without ground truth."""
        results: list[Result] = []
        for chosen, prepared, batch in self.batches():
            results += self.results(chosen, prepared, candidates(runtime.decoded(batch).cpu()))
        return self.ap_of(results)


def spread(length: int, count: int) -> list[int]:
    """`count` positions at even distances through `length` images, each once."""
    return sorted(set(np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()))


def candidates(decoded: Tensor) -> list[Detections]:
    """What an evaluation counts of decoded predictions (B, N, 5 + C): every class above its low threshold."""
    return select(decoded, confidence=_CONFIDENCE, iou=_IOU, multi_label=decoded.shape[2] > 6)
