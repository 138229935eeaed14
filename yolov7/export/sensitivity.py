"""What each layer costs in eight bits: the network with that layer alone quantised, against the float network.

The maps are the outputs of the last convolutions, before any decoding. The metrics are those of the YOLOv6 paper
(sections 2.5.2 and B.2), and `shift`, which sees what the maps' numbers mean.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from yolov7.boxes import pairwise_iou
from yolov7.export.quantize import CONVOLUTIONS, Placement, Ranges, layer_names, quantizable, quantized
from yolov7.files import write_text
from yolov7.predict.runtimes import onnx_session
from yolov7.predictions import Scoring, scores

Metric = Literal["shift", "mse", "snr", "cosine", "ap"]
"""What layers are ranked by."""
SNR_MOST = 200.0
"""Signal to noise ratio where there is no noise, in dB."""
_SUREST = 100
"""Scores per image that count, with their boxes, for the shift."""


@dataclass(frozen=True)
class Sensitivity:
    """One layer alone in eight bits; all but `ap` on a few calibration images together."""

    layer: str
    """Its name in the network, such as `backbone.stem.conv`."""
    node: str
    """Its name in the graph, as in `kept_in_float`."""
    kind: str
    """Conv or ConvTranspose."""
    channels: int
    """Output channels."""
    mse: float
    """Mean squared error of the maps."""
    snr: float
    """Signal to noise ratio of the maps, in dB; 200 without noise."""
    cosine: float
    """Cosine of the angle between the maps with and without."""
    shift: float
    """Mean change of the most confident scores, plus what their boxes lack of IoU 1."""
    ap: float | None = None
    """AP on the validation images; None where it was not asked for."""

    def badness(self, metric: Metric) -> float:
        """Rises with the harm of the layer."""
        value = getattr(self, metric)
        return float(value) if metric in ("shift", "mse") else -float(value)


class Probe:
    """Measures single layers of a graph with decoded output on images, float32 (1, 3, H, W)."""

    def __init__(self, graph: onnx.ModelProto, images: Sequence[np.ndarray], scoring: Scoring):
        self.images, self.scoring = images, scoring
        self.graph = onnx.ModelProto()
        self.graph.CopyFrom(graph)
        self._maps = last_maps(graph)
        self.graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._maps)
        self._expected = self._run(self.graph)

    def measure(
        self,
        name: str,
        ranges: Ranges,
        placement: Placement,
        ap: Callable[[str], float] | None = None,
        *,
        exact: Collection[str] = (),
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> Sensitivity:
        """The convolution `name` (of the graph) alone in eight bits; `ap` measures it on validation images. `exact` and
        `weights` as in :func:`yolov7.export.quantize.quantized`."""
        alone = quantized(self.graph, [name], ranges, placement=placement, exact=exact, weights=weights)
        found = self._run(alone)
        node = next(node for node in self.graph.graph.node if node.name == name)
        weight = next(tensor for tensor in self.graph.graph.initializer if tensor.name == node.input[1])
        shifts = [shift(new[0], old[0], self.scoring) for new, old in zip(found, self._expected, strict=True)]
        signal, back = (_flat(runs) for runs in (self._expected, found))
        return Sensitivity(
            layer_names(self.graph)[name],
            name,
            node.op_type,
            weight.dims[0 if node.op_type == "Conv" else 1],
            *distances(signal, back),
            float(np.mean(shifts)),
            ap(name) if ap else None,
        )

    def _run(self, graph: onnx.ModelProto) -> list[list[np.ndarray]]:
        """Per image: predictions (N, F), then the maps."""
        session = plain_session(graph)
        runs = [session.run(["detections", *self._maps], {"images": image}) for image in self.images]
        return [[decoded[0], *maps] for decoded, *maps in runs]


def last_maps(graph: onnx.ModelProto) -> list[str]:
    """Outputs of the last convolutions: those that stay in float, decoding aside."""
    chosen, behind = set(quantizable(graph)), set[str]()
    found = []
    for node in graph.graph.node:
        decoding = not behind.isdisjoint(node.input)
        last = node.op_type in CONVOLUTIONS and node.name not in chosen
        if last and not decoding:
            found.append(node.output[0])
        if last or decoding:
            behind.update(node.output)
    return found


def distances(signal: np.ndarray, found: np.ndarray) -> tuple[float, float, float]:
    """Mean squared error, signal to noise ratio in dB and cosine of two vectors."""
    signal, found = signal.astype(np.float64), found.astype(np.float64)
    power, noise = float((signal**2).sum()), float(((found - signal) ** 2).sum())
    snr = 10 * math.log10(power / noise) if power and noise else SNR_MOST if not noise else -SNR_MOST
    lengths = math.sqrt(power * float((found**2).sum()))
    cosine = float(signal @ found) / lengths if lengths else float(not noise)
    return noise / signal.size, max(-SNR_MOST, min(snr, SNR_MOST)), cosine


def shift(found: np.ndarray, expected: np.ndarray, scoring: Scoring) -> float:
    """Mean change of the most confident scores of predictions (N, F), plus what their boxes then lack of IoU 1.

    Where boxes have convolutions of their own, no score shows what those cost.
    """
    new, old = (torch.from_numpy(decoded) for decoded in (found, expected))
    before, after = (scores(decoded, scoring) for decoded in (old, new))  # (N, C)
    surest = np.argsort(-before.numpy(), axis=None, kind="stable")[:_SUREST]
    places = torch.from_numpy(surest // before.shape[1])
    overlap: Tensor = pairwise_iou(old[places, :4], new[places, :4]).diagonal()
    return float((after.flatten()[surest] - before.flatten()[surest]).abs().mean() + (1 - overlap).mean())


def plain_session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Eight-bit operators one by one, in float arithmetic: quick to prepare, and the same on every processor."""
    return onnx_session(graph, optimised=False)


def write_sensitivities(path: str | os.PathLike[str], reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the sensitivities in the int8 reports (format -> report) as a table, a line per format and layer."""
    columns = [field.name for field in fields(Sensitivity)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["format", *columns, "kept_in_float"])
    for name, report in reports.items():
        for row in report["layer_sensitivity"]:
            values = ["" if row[column] is None else row[column] for column in columns]
            table.writerow([name, *values, str(row["node"] in report["kept_in_float"]).lower()])
    write_text(path, text.getvalue())


def as_rows(found: Sequence[Sensitivity], metric: Metric) -> list[dict[str, Any]]:
    """For a report: most harmful first."""
    return [asdict(row) for row in sorted(found, key=lambda row: -row.badness(metric))]


def _flat(runs: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    return np.concatenate([level.ravel() for _, *maps in runs for level in maps])
