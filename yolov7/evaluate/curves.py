"""Precision-recall curves as the COCO tool samples them: the precision envelope at 101 recall points.

Legend: T IoU thresholds (0.50 to 0.95), R recall points (0, 0.01 .. 1), C classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from yolov7.files import write_text
from yolov7.text import csv_text

_UNDEFINED = -1.0  # the COCO tool's mark of a class without ground truth


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision over recall, by class and on average; NaN for a class without ground truth.

    A curve's mean over recall is the AP of the same name: `precision` gives AP, `precision50` gives AP50.
    """

    class_names: tuple[str, ...]
    """The classes, in the order of the rows below."""
    recall: np.ndarray
    """(R,) recall points."""
    precision50: np.ndarray
    """(C, R) precision at IoU 0.50."""
    precision: np.ndarray
    """(C, R) precision averaged over the IoU thresholds 0.50, 0.55 .. 0.95."""
    score50: np.ndarray
    """(C, R) the score at which recall R is reached at IoU 0.50; 0 where it is never reached."""

    @property
    def mean_precision50(self) -> np.ndarray:
        """(R,) precision at IoU 0.50, averaged over the classes that have ground truth."""
        return _mean_over_classes(self.precision50)

    @property
    def mean_precision(self) -> np.ndarray:
        """(R,) precision averaged over IoU thresholds and over the classes that have ground truth."""
        return _mean_over_classes(self.precision)

    def rows(self) -> Iterator[tuple[str, float, float, float]]:
        """(class, recall, precision at IoU 0.50, precision over IoUs): the mean as class `all` first, then by class."""
        curves = [("all", self.mean_precision50, self.mean_precision)]
        curves += list(zip(self.class_names, self.precision50, self.precision, strict=True))
        for name, at_50, over_all in curves:
            if np.isnan(at_50).any():
                continue  # no ground truth, no curve
            for point, first, second in zip(self.recall, at_50, over_all, strict=True):
                yield name, float(point), float(first), float(second)


def curves_from(precision: np.ndarray, scores: np.ndarray, class_names: Sequence[str]) -> PrecisionRecall:
    """Curves from the COCO tool's accumulated arrays, both (T, R, C), for all areas and 100 detections."""
    defined = np.where(precision > _UNDEFINED, precision, np.nan)
    return PrecisionRecall(
        class_names=tuple(class_names),
        recall=np.linspace(0.0, 1.0, precision.shape[1]),
        precision50=defined[0].T,
        precision=defined.mean(axis=0).T,
        score50=np.where(precision[0] > _UNDEFINED, scores[0], np.nan).T,
    )


def write_curves(path: str | os.PathLike[str], curves: PrecisionRecall) -> None:
    """Write the curves as CSV (class, recall, precision50, precision), one row a point, for `dvc plots`."""
    rows = ((name, f"{at:.2f}", f"{at_50:.6f}", f"{over_all:.6f}") for name, at, at_50, over_all in curves.rows())
    write_text(path, csv_text(["class", "recall", "precision50", "precision"], rows))


def _mean_over_classes(curves: np.ndarray) -> np.ndarray:
    defined = curves[~np.isnan(curves).any(axis=1)]
    return defined.mean(axis=0) if len(defined) else np.full(curves.shape[1], np.nan)
