"""`TrainedDetector`: a finished run, to predict, measure and export with."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolov7.artefact import FormatName
from yolov7.errors import TrainingError
from yolov7.evaluate import Evaluation
from yolov7.nms import Detections
from yolov7.predict import Predictor, load_detector
from yolov7.runs.data import DataSet
from yolov7.runs.evaluation import evaluate_model
from yolov7.runs.exporting import Exported, export_weights
from yolov7.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainedDetector:
    """The folder of a finished training. `TrainedDetector("runs/mine")` opens one again."""

    folder: Path

    def __init__(self, folder: str | os.PathLike[str]):
        """Raises :class:`TrainingError` for a folder that is not one of a finished training."""
        object.__setattr__(self, "folder", Path(folder))
        if not self._paths.best.is_file():
            self._paths.read_record()
            raise TrainingError(f"{self.folder}: the training has not finished; the same call or command resumes it")

    @property
    def _paths(self) -> RunFolder:
        return RunFolder(self.folder)

    @property
    def weights(self) -> Path:
        """The weights with the best validation AP, in training form."""
        return self._paths.best

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`: variant, training parameters, data, device."""
        return self._paths.read_record()

    @property
    def variant(self) -> str:
        """Name of the network."""
        return str(self.record["variant"])

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """A row per epoch: losses (`train/...`), figures of the epochs that were validated (`val/AP`, ...), times."""
        with (self.folder / "history.csv").open(encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items() if value != ""} for row in csv.DictReader(file)]

    def detector(self, **options: Any) -> Predictor:
        """The best weights, ready for use; `options` are those of :func:`yolov7.load_detector`, such as `device`."""
        return load_detector(self.weights, **{"network": self.record["train"].get("network") or None, **options})

    def predict(self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], **options: Any) -> list[Detections]:
        """Detections in uint8 (H, W, 3) RGB images, in pixels of each; `options` as for :meth:`detector`."""
        return self.detector(**options).predict(images)

    def evaluate(
        self,
        *,
        split: str = "val",
        data: DataSet | None = None,
        out: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Evaluation:
        """COCO figures on a split of the training's data, or of other `data`; `options`: :func:`evaluate_model`.

        Figures, curves, pictures and `report.html` go to `evaluation/SPLIT` of the folder, or to `out`.
        """
        used = self.record["data"]
        given: Mapping[str, Any] = {
            "data_options": used["options"],
            "drop_bad_boxes": used["drop_bad_boxes"],
            "network": self.record["train"].get("network") or None,
        }
        return evaluate_model(
            self.weights,
            data=self._data(data),
            split=split,
            out=self._paths.evaluation(split) if out is None else out,
            **{**(given if data is None else {}), **options},
        )

    def export(
        self, formats: Sequence[FormatName] = (), *, out: str | os.PathLike[str] | None = None, **options: Any
    ) -> Exported:
        """Write the export folder (default: `export` of this one) and verify it on validation images.

        `formats` come in addition to `.safetensors` and ONNX; `options`: :func:`export_weights`.
        """
        used = self.record["data"]
        given: dict[str, Any] = {
            "data": self._data(None),
            "data_options": used["options"],
            "drop_bad_boxes": used["drop_bad_boxes"],
            "network": self.record["train"].get("network") or None,
        }
        target = self._paths.export if out is None else out
        return export_weights(self.weights, out=target, formats=formats, **{**given, **options})

    def _data(self, given: DataSet | None) -> DataSet:
        return self.record["data"]["given"] if given is None else given
