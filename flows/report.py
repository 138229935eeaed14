"""The report of a `train-variants` run: a record per variant, as Markdown and as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.markdown import bullets, duration, section, stage_table, table
from flows.promotion.judge import Decision, verdict
from flows.runner.pipeline import StageOutcome, StageResult
from stages.project.workspace import model_dir, read_json, reports
from yolov7.errors import DataError


@dataclass
class VariantReport:
    """One variant: its stages, its figures, its registered version, and its failure, if any."""

    variant: str
    stages: list[StageResult] = field(default_factory=list)
    ap: float | None = None
    ap50: float | None = None
    size_bytes: int | None = None
    """Size of the ONNX artefact."""
    int8: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Test figures of the int8 files, by file name."""
    version: int | None = None
    decision: Decision | None = None
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Total time of its stages, without the time they waited."""
        return sum(result.seconds for result in self.stages)

    def with_results(self, root: Path) -> VariantReport:
        """A copy with the figures that the stages wrote; those of stages that did not run are absent."""
        metrics = _read(root / reports(self.variant) / "metrics.json", f"dvc repro evaluate@{self.variant}")
        record = _read(root / model_dir(self.variant) / "registered.json", f"dvc repro register@{self.variant}")
        artefact = root / model_dir(self.variant) / "export/model.onnx"
        return replace(
            self,
            ap=metrics.get("AP"),
            ap50=metrics.get("AP50"),
            int8=metrics.get("int8", {}),
            version=record.get("version"),
            size_bytes=artefact.stat().st_size if artefact.is_file() else None,
        )


@dataclass
class RunReport:
    """The whole run."""

    data: list[StageResult] = field(default_factory=list)
    """`ingest` and `validate`."""
    variants: list[VariantReport] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Failures outside the variants: in the data stages, or while pushing."""
    comparison: Path | None = None
    """The page that compares the variants, if there is one."""
    seconds: float = 0.0

    @property
    def stages(self) -> list[StageResult]:
        """Every stage that is now up to date."""
        return self.data + [result for report in self.variants for result in report.stages]

    @property
    def failures(self) -> list[str]:
        """One line per failure."""
        return self.errors + [report.error for report in self.variants if report.error]

    @property
    def summary(self) -> str:
        """One sentence: what was computed, and what failed."""
        ran = [result.stage for result in self.stages if result.outcome is StageOutcome.RAN]
        restored = [result.stage for result in self.stages if result.outcome is StageOutcome.RESTORED]
        parts = []
        if ran:
            parts.append(f"{len(ran)} of {len(self.stages)} stages ran ({', '.join(ran)})")
        if restored:
            parts.append(f"{len(restored)} restored from the cache ({', '.join(restored)})")
        if not parts and self.stages:
            parts.append(f"Nothing was recomputed: all {len(self.stages)} stages are up to date")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        return "; ".join(parts) + "." if parts else "Nothing was run."


COLUMNS = ("variant", "AP", "AP50", "ONNX", "version", "champion", "decision", "time")


def rows(variants: Sequence[VariantReport]) -> list[tuple[str, ...]]:
    """The cells of the table, in the order of :data:`COLUMNS`."""
    return [
        (
            report.variant,
            _number(report.ap),
            _number(report.ap50),
            "-" if report.size_bytes is None else f"{report.size_bytes / 1e6:.1f} MB",
            _optional(report.version),
            _optional(report.decision.champion_now if report.decision else None),
            report.decision.outcome if report.decision else ("failed" if report.error else "-"),
            duration(report.seconds),
        )
        for report in variants
    ]


def markdown(report: RunReport) -> str:
    """The run's page: table, decisions, stages, failures."""
    lines = ["# train-variants", "", report.summary, "", *table(COLUMNS, rows(report.variants))]
    if report.comparison is not None:
        lines += ["", f"The variants side by side: `{report.comparison}`"]
    lines += section("Int8", bullets([line for each in report.variants for line in _int8_lines(each)]))
    lines += section("Promotion", decision_lines([each.decision for each in report.variants if each.decision]))
    lines += section("Stages", stage_table(report.stages))
    lines += section("Failures", bullets(report.failures))
    return "\n".join(lines) + "\n"


def _int8_lines(report: VariantReport) -> list[str]:
    """AP and size of each int8 file of a variant."""
    return [
        f"`{report.variant}`, `{file}`: AP {found['AP']:.3f} ({found['AP_difference']['value']:+.4f} against float), "
        f"{found['size_mb']:.1f} MB"
        for file, found in report.int8.items()
    ]


def decision_lines(decisions: Sequence[Decision]) -> list[str]:
    """Every decision of the gate with its checks, as a Markdown list."""
    lines = []
    for decision in decisions:
        lines.append(f"- `{decision.name}`: **{verdict(decision)}**, {decision.reason}")
        lines += [
            f"  - {check.rule}: {'passed' if check.passed else '**failed**'}, {check.finding}"
            for check in decision.checks
        ]
        lines += [f"  - {line}" for line in _measured(decision)]
    return lines


def _measured(decision: Decision) -> list[str]:
    """Float and int8 figures of both models, where one has int8 files."""
    sides = {"challenger": decision.challenger, "champion": decision.champion}
    found = {role: decision.evidence[role] for role in sides if role in decision.evidence}
    if not any("int8" in side for side in found.values()):
        return []
    return [f"{role}, version {sides[role]}: {'; '.join(_files(side))}" for role, side in found.items()]


def _files(side: Mapping[str, Any]) -> list[str]:
    size = "" if side["size_mb"] is None else f", {side['size_mb']:.1f} MB"
    files = [f"float AP {side['AP']:.4f}{size}, {side['latency_ms']:.1f} ms"]
    for file, figures in side.get("int8", {}).items():
        change = figures["AP"] - side["AP"]
        files.append(
            f"`{file}` AP {figures['AP']:.4f} ({change:+.4f}), {figures['size_mb']:.1f} MB, "
            f"{figures['latency_ms']:.1f} ms"
        )
    return files


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _optional(value: int | None) -> str:
    return "-" if value is None else str(value)


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        return read_json(path, command)
    except (DataError, OSError):
        return {}
