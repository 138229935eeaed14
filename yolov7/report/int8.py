"""Int8 files beside the float file of their export: figures, making, and the classes that lose most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from yolov7.evaluate.bootstrap import Interval
from yolov7.int8_files import Int8Making, runtime_of
from yolov7.report.page import MISSING, figure

_AREAS = ("AP50", "AP75", "APs", "APm", "APl")
_WORST = 10
"""Classes in the table of those that lose most."""


@dataclass(frozen=True)
class FileFigures:
    """A model file, as it was measured."""

    file: str
    metrics: Mapping[str, float]
    """The twelve COCO figures."""
    per_class: Mapping[str, float]
    size_mb: float
    latency_ms: float
    """Median of one image, preparation and suppression included."""


@dataclass(frozen=True)
class Int8Figures:
    """An int8 file beside the float file."""

    measured: FileFigures
    difference: Interval
    """AP minus the float file's, and the 95 % interval on the same images drawn again."""
    sha256: str


@dataclass(frozen=True)
class EightBits:
    """The int8 files of an export and its float file, measured side by side."""

    float_file: FileFigures
    files: Sequence[Int8Figures]
    makings: Mapping[str, Int8Making] = field(default_factory=dict)
    """By file name."""

    def figures(self) -> dict[str, Any]:
        """For metrics.json, by file name."""
        return {one.measured.file: self._figures(one) for one in self.files}

    def _figures(self, one: Int8Figures) -> dict[str, Any]:
        measured = one.measured
        return {
            **measured.metrics,
            "AP_difference": asdict(one.difference),
            "size_mb": measured.size_mb,
            "float_size_mb": self.float_file.size_mb,
            "latency_ms": round(measured.latency_ms, 3),
            "float_latency_ms": round(self.float_file.latency_ms, 3),
            "times_as_fast": round(self.float_file.latency_ms / measured.latency_ms, 3),
            "per_class": dict(measured.per_class),
            "artefact_sha256": one.sha256,
        }


HEAD = ["File", "Runtime", "#AP", "#Difference (95 %)", *(f"#{name}" for name in _AREAS), "#MB"]
HEAD += ["#ms", "#Times as fast"]


def section(found: EightBits | None, objects: Mapping[str, int]) -> dict[str, Any] | None:
    """The section "Eight bits" of a variant's report for its template; `objects` are the test objects by class."""
    if found is None:
        return None
    names = [one.measured.file for one in found.files]
    return {
        "head": HEAD,
        "rows": figure_rows(found),
        "makings": [{"file": name, "facts": facts_of(found.makings[name])} for name in names if name in found.makings],
        "class_head": ["Class", "#Objects", "#Float", *(f"#{name}" for name in names), "#Change"],
        "class_rows": _falls(found, objects),
    }


def figure_rows(found: EightBits) -> list[list[str]]:
    """Cells under :data:`HEAD`: the float file, then each int8 file."""
    base = found.float_file
    rows = [_row(base, "", 1.0)]
    for one in found.files:
        rows.append(_row(one.measured, signed(one.difference), base.latency_ms / one.measured.latency_ms))
    return rows


def signed(found: Interval) -> str:
    """A difference with its interval."""
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def facts_of(making: Int8Making) -> dict[str, str]:
    """How a file was made, line by line."""
    facts = {"Made by": making.how, "Kept in float": making.kept}
    if making.attempts:
        facts["AP on validation images"] = f"float {making.float_ap:.4f}; {making.attempts}"
    return facts


def _row(one: FileFigures, difference: str, ratio: float) -> list[str]:
    return [
        one.file,
        runtime_of(one.file),
        figure(one.metrics["AP"]),
        difference or MISSING,
        *(figure(one.metrics[name]) for name in _AREAS),
        f"{one.size_mb:.1f}",
        f"{one.latency_ms:.1f}",
        f"{ratio:.2f}",
    ]


def _falls(found: EightBits, objects: Mapping[str, int]) -> list[list[str]]:
    """The classes whose AP falls most in any of the files, the worst first."""
    before = found.float_file.per_class
    falls = {
        name: max(before[name] - one.measured.per_class[name] for one in found.files)
        for name in before
        if before[name] >= 0  # -1: no object of the class
    }
    worst = sorted(falls, key=lambda name: -falls[name])[:_WORST]
    return [
        [
            name,
            f"{objects.get(name, 0):,}",
            figure(before[name]),
            *(figure(one.measured.per_class[name]) for one in found.files),
            f"{-falls[name]:+.3f}",
        ]
        for name in worst
    ]
