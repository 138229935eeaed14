"""Int8 artefacts with a bound on the loss of accuracy: layers that cost too much AP stay in float.

The first attempt quantises every convolution that allows it. If AP on validation images falls by more than the limit,
each layer is quantised alone; how far that moves the scores and boxes of the most confident predictions on calibration
images is its sensitivity: where boxes have convolutions of their own, no score shows what those cost. Then the most
sensitive layers return to float in growing groups until AP is within the limit, down to a single layer left in int8.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from yolov7.artefact import Int8Settings
from yolov7.boxes import pairwise_iou
from yolov7.data.index import Index
from yolov7.errors import ModelError
from yolov7.export.onnx import described, write_graph
from yolov7.export.openvino import export_openvino
from yolov7.export.quantize import Placement, Ranges, calibrate, quantizable, quantized
from yolov7.export.samples import Samples, evenly_spaced
from yolov7.predict.load import open_runtime
from yolov7.predict.runtimes import Runtime, onnx_session, scaled_parts
from yolov7.predictions import contract_scoring, scores

log = logging.getLogger(__name__)

_SENSITIVITY_IMAGES = 4
_SUREST = 100
"""Scores per image that count, with their boxes, for the sensitivity of a layer."""


@dataclass
class Int8Report:
    """Result of one int8 export."""

    file: str
    layers: int
    """Number of convolutions that can be quantised."""
    kept_in_float: list[str] = field(default_factory=list)
    """Those that stayed in float, most sensitive first."""
    float_ap: float = 0.0
    ap: float = 0.0
    """AP of the file as written."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Each attempt: number of layers in float, and AP."""
    sensitivity: dict[str, float] = field(default_factory=dict)
    """Layer -> shift of the most confident scores and boxes with that layer alone in int8; empty if not needed."""
    calibration_images: int = 0
    validation_images: int = 0


class Int8Exporter:
    """Export int8 files of one graph.

    `graph` has decoded output. Ranges are measured on `calibration` (training images), letterboxed as in evaluation;
    AP is measured on `validation`.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        float_model: str | os.PathLike[str],
        *,
        calibration: Index,
        validation: Index,
        settings: Int8Settings,
    ):
        self.graph, self.calibration, self.settings = graph, calibration, settings
        self.metadata, contract = described(graph)
        if contract["output"]["kind"] != "decoded":
            raise ModelError(f"int8 needs a graph with decoded output, this one has {contract['output']['kind']!r}")
        self.contract = {**contract, "precision": "int8"}
        self._scoring = contract_scoring(contract["output"], self.metadata.num_classes)
        self._float = _opened(float_model)
        self._samples = Samples(validation, evenly_spaced(len(validation), settings.validation_images), self._float)

    def export(self, path: str | os.PathLike[str], placement: Placement) -> Int8Report:
        """Write an .onnx (`placement` "onnx") or an .xml with its .bin ("openvino").

        Raises :class:`ModelError`, and leaves no file, if not even one layer can be quantised within the limit.
        """
        target, layers = Path(path), quantizable(self.graph)
        report = Int8Report(target.name, len(layers), float_ap=self.float_ap)
        report.calibration_images = min(self.settings.calibration_images, len(self.calibration))
        report.validation_images = len(self._samples.positions)
        with tempfile.TemporaryDirectory() as folder:
            for in_float in self._attempts(layers, placement, report):
                attempt = Path(folder) / target.name
                self._write(attempt, [name for name in layers if name not in in_float], placement)
                report.ap = self._samples.ap(_opened(attempt))
                report.kept_in_float = list(in_float)
                report.steps.append({"in_float": len(in_float), "AP": report.ap})
                log.info("%s: %d of %d layers in float, AP %.4f", target.name, len(in_float), len(layers), report.ap)
                if self.float_ap - report.ap <= self.settings.max_ap_drop:
                    self._write(target, [name for name in layers if name not in in_float], placement)
                    return report
        raise ModelError(
            f"{target}: AP falls by more than {self.settings.max_ap_drop:g} even with the least sensitive of "
            f"{report.layers} layers alone in int8 "
            f"(float {self.float_ap:.4f}); raise export.int8.max_ap_drop, or leave int8 out of export.formats"
        )

    @cached_property
    def float_ap(self) -> float:
        """AP of the float graph on the validation images."""
        return self._samples.ap(self._float)

    @cached_property
    def ranges(self) -> Ranges:
        """Ranges of the values, measured once for all files."""
        return calibrate(self.graph, lambda: self._batches(self.settings.calibration_images))

    def _attempts(self, layers: Sequence[str], placement: Placement, report: Int8Report) -> Iterable[Sequence[str]]:
        """Layers to keep in float: none, then the most sensitive 1, 3, 7, 15..., finally all but one."""
        yield ()
        report.sensitivity = self.sensitivity(layers, placement)
        ranked = sorted(layers, key=lambda name: -report.sensitivity[name])
        for count in _counts(len(layers)):
            yield ranked[:count]

    def sensitivity(self, layers: Sequence[str], placement: Placement) -> dict[str, float]:
        """Layer -> mean shift of the most confident scores with that layer alone in int8, plus what their boxes then
        lack of IoU 1.
        """
        images = [image for batch in self._batches(_SENSITIVITY_IMAGES) for image in scaled_parts(batch, 1)]
        expected = [self._decoded(_plain_session(self.graph), image) for image in images]
        moved = {}
        for name in layers:
            session = _plain_session(quantized(self.graph, [name], self.ranges, placement=placement))
            shifts = [
                self._shift(self._decoded(session, image), found) for image, found in zip(images, expected, strict=True)
            ]
            moved[name] = float(np.mean(shifts))
        return moved

    def _decoded(self, session: onnxruntime.InferenceSession, images: np.ndarray) -> Tensor:
        """Predictions (N, F) of one image."""
        return torch.from_numpy(session.run(["detections"], {"images": images})[0][0])

    def _shift(self, found: Tensor, expected: Tensor) -> float:
        before, after = (scores(decoded, self._scoring) for decoded in (expected, found))  # (N, C)
        surest = np.argsort(-before.numpy(), axis=None, kind="stable")[:_SUREST]
        places = torch.from_numpy(surest // before.shape[1])
        overlap = pairwise_iou(expected[places, :4], found[places, :4]).diagonal()
        return float((after.flatten()[surest] - before.flatten()[surest]).abs().mean() + (1 - overlap).mean())

    def _write(self, path: Path, layers: Sequence[str], placement: Placement) -> None:
        graph = quantized(self.graph, layers, self.ranges, placement=placement)
        if placement == "onnx":
            write_graph(path, graph, self.metadata, self.contract)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_graph(Path(folder) / "model.onnx", graph, self.metadata, self.contract)
            export_openvino(Path(folder) / "model.onnx", path)

    def _batches(self, count: int) -> Iterable[np.ndarray]:
        """Images at even distances through the calibration set, uint8 (1, 3, H, W), fitted as in an evaluation."""
        chosen = Samples(self.calibration, evenly_spaced(len(self.calibration), count), self._float, batch_size=1)
        return (batch.numpy() for _, _, batch in chosen.batches())


def _counts(layers: int) -> list[int]:
    """Layers in float per attempt: 1, 3, 7... up to half of them, then half of those still in int8 each time, until
    one is left."""
    counts: list[int] = []
    left = layers
    while 2 ** (len(counts) + 1) - 1 < layers / 2:
        counts.append(2 ** (len(counts) + 1) - 1)
    while left > 1:
        left //= 2
        counts.append(layers - left)
    return counts


def _opened(path: str | os.PathLike[str]) -> Runtime:
    runtime = open_runtime(path)
    if not isinstance(runtime, Runtime):
        raise ModelError(f"{path}: a model file with decoded output is expected")
    return runtime


def _plain_session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Eight-bit operators one by one, in float arithmetic: quick to prepare, and the same on every processor."""
    return onnx_session(graph, optimised=False)
