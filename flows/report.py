"""What a run of the family did, for people: one record per variant, as Markdown and as lines of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.promotion.judge import Decision, verdict
from flows.runner.pipeline import Outcome, StageResult


@dataclass
class VariantReport:
    """One variant: what was measured, what the registry holds, and what went wrong, if anything did."""

    variant: str
    stages: list[StageResult] = field(default_factory=list)
    ap: float | None = None
    ap50: float | None = None
    size_bytes: int | None = None
    """Of the ONNX artefact."""
    version: int | None = None
    decision: Decision | None = None
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Time its stages took, waiting for each other not counted."""
        return sum(result.seconds for result in self.stages)

    def read_results(self, root: Path) -> None:
        """Take the figures from what the stages wrote; a stage that did not get that far leaves them out."""
        metrics = _read(root / "reports" / self.variant / "metrics.json")
        record = _read(root / "models" / self.variant / "registered.json")
        self.ap, self.ap50, self.version = metrics.get("AP"), metrics.get("AP50"), record.get("version")
        artefact = root / "models" / self.variant / "export/model.onnx"
        self.size_bytes = artefact.stat().st_size if artefact.is_file() else None


@dataclass
class FamilyReport:
    """The whole run."""

    data: list[StageResult] = field(default_factory=list)
    """`ingest` and `validate`."""
    variants: list[VariantReport] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """What went wrong outside a variant: in the data stages, or while pushing."""
    pushed: bool = False
    comparison: Path | None = None
    """The page that compares the variants, where there is one."""
    seconds: float = 0.0

    @property
    def stages(self) -> list[StageResult]:
        """Every stage that is now up to date."""
        return self.data + [result for report in self.variants for result in report.stages]

    @property
    def failures(self) -> list[str]:
        """One line for everything that went wrong."""
        return self.errors + [report.error for report in self.variants if report.error]

    @property
    def summary(self) -> str:
        """One sentence: what was computed, and whether all is well."""
        ran = [result.stage for result in self.stages if result.outcome is Outcome.RAN]
        restored = [result.stage for result in self.stages if result.outcome is Outcome.RESTORED]
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
    """The table's cells, as :data:`COLUMNS` names them."""
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


def markdown(report: FamilyReport) -> str:
    """The run's page: table, decisions, stages, failures."""
    lines = ["# train-family", "", report.summary, "", "| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows(report.variants)]
    if report.comparison is not None:
        lines += ["", f"The variants side by side: `{report.comparison}`"]
    decisions = [variant.decision for variant in report.variants if variant.decision]
    if decisions:
        lines += ["", "## Promotion", "", *decision_lines(decisions)]
    lines += ["", "## Stages", "", "| stage | what happened | time |", "| --- | --- | --- |"]
    lines += [f"| `{one.stage}` | {one.outcome} | {duration(one.seconds)} |" for one in report.stages]
    if report.failures:
        lines += ["", "## Failures", ""]
        lines += [f"- {escape(failure)}" for failure in report.failures]
    return "\n".join(lines) + "\n"


def decision_lines(decisions: Sequence[Decision]) -> list[str]:
    """Every decision of the gate with the rules it was judged by, as a Markdown list."""
    lines = []
    for one in decisions:
        lines.append(f"- `{one.name}`: **{verdict(one)}**, {one.reason}")
        lines += [
            f"  - {check.rule}: {'passed' if check.passed else '**failed**'}, {check.finding}" for check in one.checks
        ]
    return lines


def duration(seconds: float) -> str:
    """`4 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _optional(value: int | None) -> str:
    return "-" if value is None else str(value)


def escape(text: str) -> str:
    """Text that stays in its table cell or list item."""
    return text.replace("|", "\\|").replace("\n", " ")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
