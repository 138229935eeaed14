"""Do the artefacts compute what was trained? Compared by tensor, by detection, and by AP, on real images.

Everything is compared with the trained network in its training form, and the artefacts are opened the way a user opens
them: from their files, fed bytes, with their own scaling and their own class names.

Legend: B batch, N predictions, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from yolov7.data.evaluation import read_annotated
from yolov7.data.index import Index
from yolov7.evaluate.coco import Result, evaluate_detections, ground_truth
from yolov7.evaluate.run import check_classes, coco_results
from yolov7.export.matching import Agreement, agreement
from yolov7.model.checkpoint import ModelMetadata
from yolov7.model.detector import Detector
from yolov7.nms import Detections, select
from yolov7.predict.load import open_runtime
from yolov7.predict.predictor import Predictor, Prepared, stack, to_original
from yolov7.predict.runtimes import OnnxFile, OnnxNmsRuntime, Runtime, TorchRuntime

Path = str | os.PathLike[str]

_AP_CONFIDENCE, _AP_IOU = 0.001, 0.65  # as evaluation (training sheet, section 9)


@dataclass(frozen=True)
class VerifyLimits:
    """How far an artefact may be from the trained network."""

    raw_difference: float = 1e-3
    """Objectness and class probabilities, absolute."""
    box_difference: float = 0.1
    """Box corners, in pixels of the network's input."""
    ap_difference: float = 0.002
    """AP on the verification images, absolute."""
    unmatched: float = 0.01
    """Share of detections without a partner of the same class on the other side."""


@dataclass
class FormReport:
    """One artefact against the trained network. What was not compared is None."""

    name: str
    """`deploy`, `onnx` or `onnx-nms`."""
    max_raw_difference: float | None
    """Largest difference of an objectness or class probability, over every prediction of every image."""
    max_box_difference: float | None
    """Largest difference of a box corner in input pixels, over every prediction of every image."""
    detections: Agreement
    """The detections at the exported thresholds."""
    ap: float
    """AP on the verification images; -1 without ground truth."""
    trained_ap: float
    """The trained network's, at the same thresholds."""
    problems: list[str] = field(default_factory=list)
    """What exceeds a limit, in words; empty if all is well."""

    @property
    def passed(self) -> bool:
        """Whether nothing exceeds a limit."""
        return not self.problems


@dataclass
class VerifyReport:
    """All artefacts against the trained network."""

    images: list[int]
    """COCO ids of the verification images."""
    limits: VerifyLimits
    forms: list[FormReport]

    @property
    def passed(self) -> bool:
        """Whether every artefact is within every limit."""
        return all(form.passed for form in self.forms)

    @property
    def problems(self) -> list[str]:
        """Every excess, with the artefact's name."""
        return [f"{form.name}: {problem}" for form in self.forms for problem in form.problems]

    def to_dict(self) -> dict[str, Any]:
        """For verify.json."""
        forms = {form.name: {"passed": form.passed, **asdict(form)} for form in self.forms}
        for form in self.forms:
            forms[form.name]["detections"]["unmatched_share"] = form.detections.unmatched_share
        return {"passed": self.passed, "limits": asdict(self.limits), "images": self.images, "forms": forms}


def verify(
    trained: Detector,
    deploy: Detector | Path,
    onnx: Path,
    onnx_nms: Path,
    index: Index,
    *,
    metadata: ModelMetadata,
    images: Sequence[int] | None = None,
    limits: VerifyLimits | None = None,
    batch_size: int = 8,
) -> VerifyReport:
    """Compare three artefacts with the `trained` network on images of `index`.

    `deploy`: the re-parameterised network, better its .safetensors file; `onnx`: the file with decoded output;
    `onnx_nms`: the one with the suppression inside, whose thresholds hold for the comparison by detections. `metadata`
    describes the trained network. `images` are positions in the index (default: all). The caller decides what becomes
    of a report that has not `passed`. Raises :class:`ModelError` for an artefact that cannot be opened or run at all,
    or classes that are not the data set's.
    """
    check_classes(metadata, index)
    limits = VerifyLimits() if limits is None else limits
    positions = list(range(len(index)) if images is None else images)
    nms_runtime = OnnxNmsRuntime(OnnxFile(onnx_nms))
    onnx_runtime = open_runtime(onnx, runtime="onnx")
    deploy_runtime = TorchRuntime(deploy, metadata) if isinstance(deploy, Detector) else open_runtime(deploy)
    decoders = {"deploy": deploy_runtime, "onnx": onnx_runtime}
    for name, runtime in decoders.items():
        if not isinstance(runtime, Runtime):
            raise TypeError(f"{name}: a file with decoded output is needed")
    comparison = _Comparison(
        TorchRuntime(trained, metadata), {k: v for k, v in decoders.items() if isinstance(v, Runtime)}, nms_runtime
    )
    comparison.run(index, positions, batch_size)
    forms = comparison.reports(index, positions, limits)
    return VerifyReport([index.image_id(i) for i in positions], limits, forms)


class _Comparison:
    """Runs every form over the images and keeps what is compared at the end."""

    def __init__(self, trained: TorchRuntime, decoders: dict[str, Runtime], with_nms: OnnxNmsRuntime):
        self.trained, self.decoders, self.with_nms = trained, decoders, with_nms
        self.raw = dict.fromkeys(decoders, 0.0)
        self.boxes = dict.fromkeys(decoders, 0.0)
        self.found: dict[str, list[Detections]] = {name: [] for name in ("trained", *decoders, "onnx-nms")}
        self.results: dict[str, list[Result]] = {name: [] for name in ("trained", *decoders)}
        self.nms_results: dict[str, list[Result]] = {"trained": [], "onnx-nms": []}

    def run(self, index: Index, positions: Sequence[int], batch_size: int) -> None:
        # Whatever sides an artefact was fixed to, every form gets the same input.
        preparer = Predictor(self.with_nms)
        for chosen in _chunks(positions, batch_size):
            prepared = [preparer.prepare(read_annotated(index, i)) for i in chosen]
            batch = stack([one.image for one in prepared])
            expected = self.trained.decoded(batch).cpu()
            decoded = {name: runtime.decoded(batch).cpu() for name, runtime in self.decoders.items()}
            for name, output in decoded.items():
                self._compare(name, output, expected)
            for name, output in {"trained": expected, **decoded}.items():
                self.found[name] += self._select(output)
                found = select(output, confidence=_AP_CONFIDENCE, iou=_AP_IOU, multi_label=output.shape[2] > 6)
                self.results[name] += _results(index, chosen, prepared, found)
            self.found["onnx-nms"] += self.with_nms.detect(batch)
            for name, kept in self.nms_results.items():
                kept += _results(index, chosen, prepared, self.found[name][-len(chosen) :])

    def _compare(self, name: str, output: Tensor, expected: Tensor) -> None:
        if output.shape != expected.shape:
            self.raw[name] = self.boxes[name] = float("inf")
            return
        # NaN must not vanish in a maximum: np.max passes it on.
        difference = (output - expected).abs().numpy()
        self.boxes[name] = float(np.max([self.boxes[name], np.max(difference[..., :4])]))
        self.raw[name] = float(np.max([self.raw[name], np.max(difference[..., 4:])]))

    def _select(self, output: Tensor) -> list[Detections]:
        nms = self.with_nms
        return select(
            output, confidence=nms.confidence, iou=nms.iou, max_detections=nms.max_detections, multi_label=False
        )

    def reports(self, index: Index, positions: Sequence[int], limits: VerifyLimits) -> list[FormReport]:
        truth = ground_truth(index, positions)

        def ap(results: list[Result]) -> float:
            return evaluate_detections(truth, results).metrics["AP"]

        trained_ap, trained_nms_ap = ap(self.results["trained"]), ap(self.nms_results["trained"])
        reports = []
        for name in (*self.decoders, "onnx-nms"):
            decodes = name in self.decoders
            report = FormReport(
                name=name,
                max_raw_difference=self.raw[name] if decodes else None,
                max_box_difference=self.boxes[name] if decodes else None,
                detections=agreement(
                    self.found["trained"],
                    self.found[name],
                    confidence=self.with_nms.confidence,
                    iou=self.with_nms.iou,
                    score_tolerance=limits.raw_difference,
                ),
                ap=ap(self.results[name] if decodes else self.nms_results[name]),
                trained_ap=trained_ap if decodes else trained_nms_ap,
            )
            said = self.decoders[name].metadata if decodes else self.with_nms.metadata
            report.problems = [*_told_apart(self.trained.metadata, said), *_excesses(report, limits)]
            reports.append(report)
        return reports


def _excesses(report: FormReport, limits: VerifyLimits) -> list[str]:
    """Every figure over its limit. `not x <= limit` so that NaN is over it too."""
    found = report.detections
    checks = [
        ("probability difference", report.max_raw_difference, limits.raw_difference),
        ("box difference in pixels", report.max_box_difference, limits.box_difference),
        ("AP difference", abs(report.ap - report.trained_ap), limits.ap_difference),
        ("share of unmatched detections", found.unmatched_share, limits.unmatched),
        # A score is a product of two probabilities, each of which may be off by the limit.
        ("score difference of matched detections", found.max_score_difference, 2 * limits.raw_difference),
        ("box difference of matched detections in pixels", found.max_box_difference, limits.box_difference),
    ]
    return [
        f"{what} {value:.6g} exceeds {limit:g}"
        for what, value, limit in checks
        if value is not None and not value <= limit
    ]


def _told_apart(trained: ModelMetadata, said: ModelMetadata) -> list[str]:
    """What an artefact says of itself that is not so."""
    names = ("variant", "class_names", "category_ids")
    return [
        f"{name} is {getattr(said, name)!r}, trained was {getattr(trained, name)!r}"
        for name in names
        if getattr(said, name) != getattr(trained, name)
    ]


def _results(
    index: Index, positions: Sequence[int], prepared: Sequence[Prepared], found: Sequence[Detections]
) -> list[Result]:
    results: list[Result] = []
    for i, one, detections in zip(positions, prepared, found, strict=True):
        boxes, scores, labels = to_original(detections, one.scale, one.pad, one.size).to_numpy()
        results += coco_results(index.image_id(i), boxes, scores, labels, index.category_ids)
    return results


def _chunks(positions: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]
