"""Int8 artefacts with a bound on the loss of accuracy: layers that cost too much AP stay in float.

The first attempt quantises every convolution that allows it. If AP on validation images falls by more than the limit,
each layer is quantised alone (:mod:`yolov7.export.sensitivity`). Then the most sensitive layers return to float in
growing groups until AP is within the limit, down to a single layer left in int8. Or as many as the settings say stay in
float, whatever AP is.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from yolov7.artefact import Int8Settings
from yolov7.data.dataset import TrainDataset
from yolov7.data.index import Index
from yolov7.errors import ConfigError, ModelError
from yolov7.export.calibrate import calibrate, learnt_values, shared, with_learnt
from yolov7.export.compensate import compensated_weights
from yolov7.export.onnx import described, write_graph
from yolov7.export.openvino import export_openvino
from yolov7.export.quantize import Placement, Ranges, layer_names, quantizable, quantized
from yolov7.export.samples import Samples, augmented_batches, evenly_spaced
from yolov7.export.sensitivity import Probe, Sensitivity, as_rows
from yolov7.predict.load import open_runtime
from yolov7.predict.runtimes import Runtime, scaled_parts
from yolov7.predictions import contract_scoring
from yolov7.ranges import Range

log = logging.getLogger(__name__)

_SENSITIVITY_IMAGES = 4


@dataclass
class Int8Report:
    """Result of one int8 export: an entry of `int8` in formats.json, by the name of the format.

    Entries that a revision added have a default; records of earlier ones lack them.
    """

    file: str
    layers: int
    """Number of convolutions that can be quantised."""
    kept_in_float: list[str] = field(default_factory=list)
    """Those that stayed in float, most sensitive first, by their names in the graph."""
    float_ap: float = 0.0
    ap: float = 0.0
    """AP of the file as written."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Each attempt: number of layers in float, and AP."""
    sensitivity: dict[str, float] = field(default_factory=dict)
    """Layer -> its `metric` with that layer alone in int8; empty if not needed."""
    calibration_images: int = 0
    validation_images: int = 0
    method: str = "mse"
    """How ranges were chosen (`export.int8.method`)."""
    pictures: str = "letterbox"
    """How calibration images were framed: letterbox or mosaic (`export.int8.images`)."""
    share_ranges: bool = False
    rounding: str = "nearest"
    """Of the weights (`export.int8.rounding`): compensated or nearest."""
    trained: bool = False
    """Ranges were learnt in a training, not only measured."""
    metric: str = "shift"
    """What `sensitivity` is in, and layers are ranked by: shift, mse, snr, cosine or ap."""
    layer_sensitivity: list[dict[str, Any]] = field(default_factory=list)
    """The same layers with every metric, most sensitive by `metric` first: a dictionary with the fields of
    :class:`yolov7.export.sensitivity.Sensitivity` each (layer, node, kind, channels, mse, snr, cosine, shift, ap; `ap`
    is null unless it is the metric). `node` is the name that `kept_in_float` and `sensitivity` use, `layer` the one in
    the network. `optional/sensitivity.csv` has the same rows."""


class Int8Exporter:
    """Export int8 files of one graph.

    `graph` has decoded output. Ranges are measured on `calibration` (training images), letterboxed as in evaluation, or
    on `augmented` where the settings say mosaic; AP is measured on `validation`. `learnt` replaces the measured ranges
    of some values: weight of a convolution (`backbone.stem.conv.weight`) -> range of what it reads. Raises
    :class:`ModelError` for another graph, and :class:`ConfigError` for mosaic without `augmented`.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        float_model: str | os.PathLike[str],
        *,
        calibration: Index,
        validation: Index,
        settings: Int8Settings,
        augmented: TrainDataset | None = None,
        learnt: Mapping[str, Range] | None = None,
    ):
        self.graph, self.calibration, self.settings = graph, calibration, settings
        self.metadata, contract = described(graph)
        if contract["output"]["kind"] != "decoded":
            raise ModelError(f"int8 needs a graph with decoded output, this one has {contract['output']['kind']!r}")
        if settings.images == "mosaic" and augmented is None:
            raise ConfigError("export.int8.images: mosaic needs the training's augmentation; use letterbox here")
        self.contract = {**contract, "precision": "int8"}
        self._scoring = contract_scoring(contract["output"], self.metadata.num_classes)
        self._float = _opened(Path(float_model))
        self._samples = Samples(validation, evenly_spaced(len(validation), settings.validation_images), self._float)
        self._augmented = augmented
        self._learnt = learnt_values(graph, learnt or {})
        self._rounded: dict[bool, dict[str, np.ndarray]] = {}

    def export(self, path: str | os.PathLike[str], placement: Placement) -> Int8Report:
        """Write an .onnx (`placement` "onnx" or "tensorrt") or an .xml with its .bin ("openvino").

        Raises :class:`ModelError`, and leaves no file, if not even one layer can be quantised within the limit, or if
        the runtime refuses the file.
        """
        target, layers = Path(path), quantizable(self.graph)
        report = self._new_report(target, layers)
        if self.settings.sensitivity:
            self._record_sensitivity(layers, placement, report)
        with tempfile.TemporaryDirectory() as folder:
            for in_float in self._attempts(layers, placement, report):
                attempt, chosen = Path(folder) / target.name, [name for name in layers if name not in in_float]
                self._write(attempt, chosen, placement)
                report.ap = self._samples.ap(self._opened_attempt(attempt, target, chosen, placement))
                report.kept_in_float = list(in_float)
                report.steps.append({"in_float": len(in_float), "AP": report.ap})
                log.info("%s: %d of %d layers in float, AP %.4f", target.name, len(in_float), len(layers), report.ap)
                fixed = self.settings.keep_in_float is not None
                if fixed or self.float_ap - report.ap <= self.settings.max_ap_drop:
                    self._write(target, chosen, placement)
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
        """Ranges of the values, measured once for all files, learnt ones in their places."""
        measured = calibrate(
            self.graph, lambda: self._batches(self.settings.calibration_images), method=self.settings.method
        )
        ranges = with_learnt(self.graph, measured, self._learnt)
        return shared(self.graph, ranges) if self.settings.share_ranges else ranges

    @property
    def rounding(self) -> str:
        """How weights are rounded: a training has made up for rounding to the nearest."""
        return "nearest" if self._learnt else self.settings.rounding

    def weights(self, placement: Placement) -> Mapping[str, np.ndarray]:
        """Weights in place of the graph's, rounded for all its layers once; none where the nearest are taken."""
        if self.rounding == "nearest":
            return {}
        _ = self.ranges  # first: refuses images that say nothing, and values that are not finite
        symmetric = placement == "tensorrt"  # the scales of the others are the same
        if symmetric not in self._rounded:
            count = min(self.settings.calibration_images, len(self.calibration))
            self._rounded[symmetric] = compensated_weights(
                self.graph,
                quantizable(self.graph),
                lambda: self._batches(self.settings.calibration_images),
                count,
                placement,
            )
        return self._rounded[symmetric]

    def sensitivities(self, layers: Sequence[str], placement: Placement, *, ap: bool = False) -> list[Sensitivity]:
        """Each layer alone in int8, by every metric; `ap` costs an evaluation per layer."""
        images = [image for batch in self._batches(_SENSITIVITY_IMAGES) for image in scaled_parts(batch, 1)]
        probe = Probe(self.graph, images, self._scoring)
        measure = (lambda name: self._ap_alone(name, placement)) if ap else None
        exact, weights = set(self._learnt), self.weights(placement)
        return [probe.measure(name, self.ranges, placement, measure, exact=exact, weights=weights) for name in layers]

    def sensitivity(self, layers: Sequence[str], placement: Placement) -> dict[str, float]:
        """Layer -> the metric of the settings with that layer alone in int8."""
        metric = self.settings.metric
        found = self.sensitivities(layers, placement, ap=metric == "ap")
        return {row.node: float(getattr(row, metric)) for row in found}

    def _new_report(self, target: Path, layers: Sequence[str]) -> Int8Report:
        settings, keep = self.settings, self.settings.keep_in_float
        if keep is not None and keep >= len(layers):
            raise ConfigError(
                f"export.int8.keep_in_float: {keep} would leave no layer in eight bits; {self.metadata.variant} has "
                f"{len(layers)} that can be"
            )
        return Int8Report(
            target.name,
            len(layers),
            float_ap=self.float_ap,
            calibration_images=min(settings.calibration_images, len(self.calibration)),
            validation_images=len(self._samples.positions),
            method=settings.method,
            pictures=settings.images,
            share_ranges=settings.share_ranges,
            rounding=self.rounding,
            trained=bool(self._learnt),
            metric=settings.metric,
        )

    def _attempts(self, layers: Sequence[str], placement: Placement, report: Int8Report) -> Iterable[Sequence[str]]:
        """Layers to keep in float: as many as the settings say; or none, then the most sensitive 1, 3, 7, 15...,
        finally all but one."""
        keep = self.settings.keep_in_float
        if not keep:
            yield ()
            if keep is not None:
                return
        ranked = self._record_sensitivity(layers, placement, report)
        for count in [keep] if keep else _counts(len(layers)):
            yield ranked[:count]

    def _record_sensitivity(self, layers: Sequence[str], placement: Placement, report: Int8Report) -> list[str]:
        """Put the sensitivities into the report; returns the layers, most sensitive first."""
        metric = self.settings.metric
        if not report.layer_sensitivity:
            report.layer_sensitivity = as_rows(self.sensitivities(layers, placement, ap=metric == "ap"), metric)
            report.sensitivity = {row["node"]: float(row[metric]) for row in report.layer_sensitivity}
        return [row["node"] for row in report.layer_sensitivity]

    def _ap_alone(self, name: str, placement: Placement) -> float:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / ("model.xml" if placement == "openvino" else "model.onnx")
            self._write(file, [name], placement)
            return self._samples.ap(_opened(file))

    def _write(self, path: Path, layers: Sequence[str], placement: Placement) -> None:
        graph = quantized(
            self.graph,
            layers,
            self.ranges,
            placement=placement,
            exact=set(self._learnt),
            weights=self.weights(placement),
        )
        if placement != "openvino":
            write_graph(path, graph, self.metadata, self.contract)
            return
        with tempfile.TemporaryDirectory() as folder:
            write_graph(Path(folder) / "model.onnx", graph, self.metadata, self.contract)
            export_openvino(Path(folder) / "model.onnx", path)

    def _opened_attempt(self, attempt: Path, target: Path, layers: Sequence[str], placement: Placement) -> Runtime:
        """The runtime on an attempt. Raises :class:`ModelError` with the first layer whose quantisation it refuses."""
        try:
            return _opened(attempt)
        except ModelError as error:
            reason = str(error).removeprefix(f"{attempt}: ")
        layer = layer_names(self.graph)[first_refused(layers, lambda part: self._opens(attempt, part, placement))]
        raise ModelError(
            f"{target}: {layer} in eight bits: {reason}; update the runtime, or leave this format out of export.formats"
        )

    def _opens(self, attempt: Path, layers: Sequence[str], placement: Placement) -> bool:
        try:
            self._write(attempt, layers, placement)
            _opened(attempt)
        except ModelError:
            return False
        return True

    def _batches(self, count: int) -> Iterable[np.ndarray]:
        """Images at even distances through the calibration set, uint8 (1, 3, H, W): fitted as in an evaluation, or
        augmented as in a training."""
        if self.settings.images == "mosaic" and self._augmented is not None:
            return augmented_batches(self._augmented, count)
        chosen = Samples(self.calibration, evenly_spaced(len(self.calibration), count), self._float, batch_size=1)
        return (batch.numpy() for _, _, batch in chosen.batches())


def first_refused(layers: Sequence[str], opens: Callable[[Sequence[str]], bool]) -> str:
    """The first layer with which a runtime refuses a file, of `layers` that it refuses together; by halves."""
    good, bad = 0, len(layers)
    while bad - good > 1:
        middle = (good + bad) // 2
        if opens(layers[:middle]):
            good = middle
        else:
            bad = middle
    return layers[bad - 1]


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


def _opened(path: Path) -> Runtime:
    runtime = open_runtime(path)
    if not isinstance(runtime, Runtime):
        raise ModelError(f"{path}: a model file with decoded output is expected")
    return runtime
