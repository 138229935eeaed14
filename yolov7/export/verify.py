"""Verification of artefacts against the trained network on real images: by tensor, by detection, and by AP.

The reference is the trained network in training form. Artefacts are opened as users open them: from their files, fed
bytes, with their own scaling and class names.

Legend: B batch, N predictions, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from yolov7.artefact import INT8_FORMATS, FormatName
from yolov7.data.index import Index
from yolov7.detections import Detections
from yolov7.evaluate.coco import Result
from yolov7.evaluate.run import check_classes
from yolov7.export.matching import SAME_BOX, Agreement, agreement
from yolov7.export.samples import Samples, candidates
from yolov7.model.checkpoint import ModelMetadata
from yolov7.model.detector import Detector
from yolov7.model.spec import Network
from yolov7.nms import select
from yolov7.predict.load import open_runtime
from yolov7.predict.runtimes import OnnxFile, OnnxNmsRuntime, Runtime, TorchRuntime
from yolov7.predictions import Scoring, column_names

Path = str | os.PathLike[str]

_NAMED_COLUMNS = 6
"""Columns that a problem names."""


@dataclass(frozen=True)
class VerifyLimits:
    """Limits on the differences between an artefact and the trained network."""

    raw_difference: float = 1e-3
    """Objectness and class probabilities, absolute."""
    box_difference: float = 0.1
    """Box corners, in pixels of the network's input."""
    ap_difference: float = 0.002
    """AP on the verification images, absolute."""
    unmatched: float = 0.01
    """Share of detections without a partner of the same class on the other side."""
    on_the_edge: float = 0.05
    """Share of detections without a partner but with an excuse (a near tie, a score at the threshold). Rounding makes
    few; if all boxes were displaced, every one of them would look like a tie."""
    mean_difference: float = 1e-4
    """Objectness and class probabilities, absolute, the mean over all predictions."""
    score_difference: float | None = None
    """Scores of matched detections, absolute; None: `raw_difference`, twice if the head has an objectness."""
    matched_box_difference: float | None = None
    """Box corners of matched detections, in pixels of the image; None: `box_difference`."""
    same_box: float = SAME_BOX
    """Detections of a class with at least this IoU are the same one."""
    edge: float | None = None
    """A detection whose score is this near the threshold may be missing on the other side; None: `raw_difference`."""


FLOAT16 = VerifyLimits(
    raw_difference=0.5,
    box_difference=float("inf"),
    ap_difference=0.01,
    unmatched=0.02,
    on_the_edge=0.1,
    mean_difference=1e-3,
    score_difference=0.02,
    matched_box_difference=2.0,
    edge=0.01,
)
"""Limits of files with float16 weights, 11 bits instead of 24. Predictions below any threshold may differ a lot."""
INT8 = VerifyLimits(
    raw_difference=1.0,
    box_difference=float("inf"),
    ap_difference=0.05,
    unmatched=0.1,
    on_the_edge=0.4,
    mean_difference=0.02,
    score_difference=0.25,
    matched_box_difference=float("inf"),
    same_box=0.6,
    edge=0.05,
)
"""Limits of int8 files. A single prediction may differ by any amount; detections, means and AP may not. Their AP on the
whole validation set has its own limit, which decides the layers that stay in float (:mod:`yolov7.export.int8`)."""


def limits_of(name: FormatName, limits: VerifyLimits) -> VerifyLimits:
    """The limits of an optional format, by its precision; `limits` are those of float32."""
    if name in INT8_FORMATS:
        return INT8
    return FLOAT16 if name.endswith("float16") else limits


@dataclass
class FormReport:
    """One artefact against the trained network. Figures that were not compared are None."""

    name: str
    """`deploy`, `onnx`, `onnx-nms`, or the name of a further artefact."""
    max_raw_difference: float | None
    """Largest difference of an objectness or class probability, over every prediction of every image."""
    mean_raw_difference: float | None
    """Their mean."""
    max_box_difference: float | None
    """Largest difference of a box corner in input pixels, over every prediction of every image."""
    detections: Agreement
    """The detections at the exported thresholds."""
    ap: float
    """AP on the verification images; -1 without ground truth."""
    trained_ap: float
    """The trained network's, at the same thresholds."""
    limits: VerifyLimits
    """Limits it was checked with."""
    problems: list[str] = field(default_factory=list)
    """Everything that exceeds a limit, in words."""

    @property
    def passed(self) -> bool:
        """True if nothing exceeds a limit."""
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
        """True if every artefact is within every limit."""
        return all(form.passed for form in self.forms)

    @property
    def problems(self) -> list[str]:
        """Everything that exceeds a limit, with the artefact's name."""
        return [f"{form.name}: {problem}" for form in self.forms for problem in form.problems]

    def to_dict(self) -> dict[str, Any]:
        """For verify.json."""
        forms = {form.name: {"passed": form.passed, **asdict(form)} for form in self.forms}
        for form in self.forms:
            forms[form.name]["detections"]["unmatched_share"] = form.detections.unmatched_share
            forms[form.name]["detections"]["edge_share"] = form.detections.edge_share
        return {"passed": self.passed, "limits": asdict(self.limits), "images": self.images, "forms": forms}


def verify(
    trained: Detector,
    deploy: Detector | Path,
    onnx: Path,
    onnx_nms: Path,
    index: Index,
    *,
    metadata: ModelMetadata,
    network: Network | str | None = None,
    images: Sequence[int] | None = None,
    limits: VerifyLimits | None = None,
    more: Mapping[str, tuple[Path, VerifyLimits]] | None = None,
    batch_size: int = 8,
) -> VerifyReport:
    """Compare three artefacts, and `more`, with the `trained` network on images of `index`.

    `deploy`: the re-parameterised network, preferably its .safetensors file; `onnx`: the file with decoded output;
    `onnx_nms`: the one with the suppression inside, whose thresholds apply to the comparison by detections. `more`:
    files with decoded output by their name in the report, each with its own limits. `metadata` describes the trained
    network; `network` supplies a user's own kinds of block. `images` are positions in the index (default: all). A
    report that has not `passed` raises nothing. Raises :class:`ModelError` for an artefact that cannot be opened or run
    at all, or classes that are not the data set's.
    """
    check_classes(metadata, index)
    limits = VerifyLimits() if limits is None else limits
    positions = list(range(len(index)) if images is None else images)
    nms_runtime = OnnxNmsRuntime(OnnxFile(onnx_nms))
    onnx_runtime = open_runtime(onnx, runtime="onnx")
    deploy_runtime = (
        TorchRuntime(deploy, metadata) if isinstance(deploy, Detector) else open_runtime(deploy, network=network)
    )
    held_to: dict[str, VerifyLimits] = {"deploy": limits, "onnx": limits, "onnx-nms": limits}
    opened = {"deploy": deploy_runtime, "onnx": onnx_runtime}
    for name, (path, own) in (more or {}).items():
        opened[name], held_to[name] = open_runtime(path), own
    for name, runtime in opened.items():
        if not isinstance(runtime, Runtime):
            raise TypeError(f"{name}: a file with decoded output is needed")
    decoders = {name: runtime for name, runtime in opened.items() if isinstance(runtime, Runtime)}
    samples = Samples(index, positions, nms_runtime, batch_size=batch_size)
    comparison = _Comparison(TorchRuntime(trained, metadata), decoders, nms_runtime, samples)
    comparison.run()
    forms = [comparison.report(name, held_to[name]) for name in held_to]
    return VerifyReport([index.image_id(i) for i in positions], limits, forms)


class _Comparison:
    """Runs every form over the images and collects the figures to compare."""

    def __init__(self, trained: TorchRuntime, decoders: dict[str, Runtime], with_nms: OnnxNmsRuntime, samples: Samples):
        self.trained, self.decoders, self.with_nms, self.samples = trained, decoders, with_nms, samples
        self.scorings = {name: runtime.scoring for name, runtime in {"trained": trained, **decoders}.items()}
        self.columns = [*column_names(trained.scoring), *map(repr, trained.metadata.class_names)]
        self.largest = {name: np.zeros(len(self.columns)) for name in decoders}  # difference of each column
        self.mean = dict.fromkeys(decoders, 0.0)
        self.found: dict[str, list[Detections]] = {name: [] for name in ("trained", *decoders, "onnx-nms")}
        self.results: dict[str, list[Result]] = {name: [] for name in ("trained", *decoders)}
        self.nms_results: dict[str, list[Result]] = {"trained": [], "onnx-nms": []}
        self._ap: dict[int, float] = {}

    def run(self) -> None:
        for chosen, prepared, batch in self.samples.batches():
            expected = self.trained.decoded(batch).cpu()
            decoded = {name: runtime.decoded(batch).cpu() for name, runtime in self.decoders.items()}
            for name, output in decoded.items():
                self._compare(name, output, expected, len(chosen) / len(self.samples.positions))
            for name, output in {"trained": expected, **decoded}.items():
                self.found[name] += self._select(output, self.scorings[name])
                found = candidates(output, self.scorings[name])
                self.results[name] += self.samples.results(chosen, prepared, found)
            self.found["onnx-nms"] += self.with_nms.detect(batch)
            for name, kept in self.nms_results.items():
                kept += self.samples.results(chosen, prepared, self.found[name][-len(chosen) :])

    def _compare(self, name: str, output: Tensor, expected: Tensor, share: float) -> None:
        if output.shape != expected.shape:
            self.largest[name][:] = self.mean[name] = float("inf")
            return
        # np.maximum keeps NaN; it must not vanish in a maximum.
        difference = (output - expected).abs().numpy()
        self.largest[name] = np.maximum(self.largest[name], difference.max(axis=(0, 1)))
        self.mean[name] += share * float(np.mean(difference[..., 4:], dtype=np.float64))

    def _select(self, output: Tensor, scoring: Scoring) -> list[Detections]:
        return select(output, self.with_nms.thresholds, scoring=scoring, multi_label=False)

    def report(self, name: str, limits: VerifyLimits) -> FormReport:
        decodes = name in self.decoders
        results = self.results if decodes else self.nms_results
        report = FormReport(
            name=name,
            max_raw_difference=float(self.largest[name][4:].max()) if decodes else None,
            mean_raw_difference=self.mean[name] if decodes else None,
            max_box_difference=float(self.largest[name][:4].max()) if decodes else None,
            detections=agreement(
                self.found["trained"],
                self.found[name],
                thresholds=self.with_nms.thresholds,
                score_tolerance=limits.raw_difference if limits.edge is None else limits.edge,
                same_box=limits.same_box,
            ),
            ap=self._ap_of(results[name]),
            trained_ap=self._ap_of(results["trained"]),
            limits=limits,
        )
        stated = self.decoders[name].metadata if decodes else self.with_nms.metadata
        report.problems = [
            *_differences(self.trained.metadata, stated),
            *_excesses(report, limits, self.trained.scoring, self._columns_over(name, limits) if decodes else []),
        ]
        if self.scorings.get(name, self.trained.scoring) != self.trained.scoring:
            report.problems.append(f"score is {self.scorings[name]!r}, trained was {self.trained.scoring!r}")
        return report

    def _columns_over(self, name: str, limits: VerifyLimits) -> list[list[str]]:
        """Names of the output's columns beyond their limit, NaN too: those of the boxes, and those of the scores."""
        named = list(zip(self.columns, self.largest[name].tolist(), strict=True))
        parts = ((named[:4], limits.box_difference), (named[4:], limits.raw_difference))
        return [[column for column, value in part if not value <= limit] for part, limit in parts]

    def _ap_of(self, results: list[Result]) -> float:
        """Cached: every form asks for the trained network's."""
        if id(results) not in self._ap:
            self._ap[id(results)] = self.samples.ap_of(results)
        return self._ap[id(results)]


def _excesses(
    report: FormReport, limits: VerifyLimits, scoring: Scoring, columns: Sequence[Sequence[str]]
) -> list[str]:
    """Every figure over its limit, with the `columns` of boxes and of scores that are. `not x <= limit` so that NaN is
    over it too.
    """
    found = report.detections
    # Each factor of a product may be off by the limit.
    factors = 1 if scoring == "class probability" else 2
    scores = factors * limits.raw_difference if limits.score_difference is None else limits.score_difference
    corners = limits.box_difference if limits.matched_box_difference is None else limits.matched_box_difference
    boxes, probabilities = map(_of, columns or ([], []))
    checks = [
        (f"probability difference{probabilities}", report.max_raw_difference, limits.raw_difference),
        ("mean probability difference", report.mean_raw_difference, limits.mean_difference),
        (f"box difference in pixels{boxes}", report.max_box_difference, limits.box_difference),
        ("AP difference", abs(report.ap - report.trained_ap), limits.ap_difference),
        ("share of unmatched detections", found.unmatched_share, limits.unmatched),
        ("share of detections on the edge", found.edge_share, limits.on_the_edge),
        ("score difference of matched detections", found.max_score_difference, scores),
        ("box difference of matched detections in pixels", found.max_box_difference, corners),
    ]
    return [
        f"{what} {value:.6g} exceeds {limit:g}"
        for what, value, limit in checks
        if value is not None and not value <= limit
    ]


def _of(columns: Sequence[str]) -> str:
    more = len(columns) - _NAMED_COLUMNS
    shown = [*columns[:_NAMED_COLUMNS], *([f"{more} more"] if more > 0 else ())]
    return f" ({', '.join(shown)})" if shown else ""


def _differences(trained: ModelMetadata, stated: ModelMetadata) -> list[str]:
    """Metadata of an artefact that differs from the trained network's."""
    names = ("variant", "class_names", "category_ids")
    return [
        f"{name} is {getattr(stated, name)!r}, trained was {getattr(trained, name)!r}"
        for name in names
        if getattr(stated, name) != getattr(trained, name)
    ]
