"""The report as one HTML file: no network, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.validation.check import Finding, RuleOutcome
from stages.validation.histograms import histograms
from stages.validation.judge import Verdict, dropped_counts
from stages.validation.statistics import Statistics
from stages.validation.suite import Skipped
from stages.validation.tables import Tables

_SHOWN = 50
"""Findings of one rule shown on the page; `findings.json` lists more."""
_OPEN = 10
"""More warnings of one rule are folded away."""
_DROPPED_SHOWN = 1000
"""Records left out that are named on the page; `dropped.json` lists all."""

_TABLES = {
    "splits": "Splits",
    "categories": "Categories",
    "classes": "Categories across splits",
    "images": "Images",
    "annotations": "Annotations",
    "balance": "Splits against train",
    "drift": "Splits against the champion's",
}


@dataclass(frozen=True)
class Report:
    """Content of the page."""

    verdict: Verdict
    skipped: Sequence[Skipped]
    dataset: dict[str, Any]
    """The ingested `dataset.json`."""
    reference: Statistics | None
    worst: Sequence[Markup]
    """Pictures of the gravest findings, as SVG figures."""
    samples: Sequence[Markup]
    """Pictures of labelled samples, as SVG figures."""


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Every value is escaped unless it is markup; an undefined name is an error."""
    loader = FileSystemLoader(Path(__file__).with_name("templates"))
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render_page(report: Report) -> str:
    """The whole page. Equal reports give equal bytes."""
    verdict, tables = report.verdict, report.verdict.tables
    page = (
        _templates()
        .get_template("report.html.jinja")
        .render(
            verdict=_verdict(verdict),
            dataset={"source": None, "sha256": None, "test_is_val": False, "notes": []} | report.dataset,
            reference=report.reference,
            splits=_splits(tables),
            rules=[_rule(outcome) for outcome in verdict.outcomes],
            skipped=_skipped(report.skipped),
            worst=report.worst,
            findings=_findings(verdict) if verdict.findings else [],
            dropped=_dropped(verdict),
            split_names=tables.split_names,
            classes=_classes(tables),
            histograms=histograms(tables.statistics, report.reference),
            samples=report.samples,
        )
    )
    return page.lstrip() + "\n"


def _verdict(verdict: Verdict) -> dict[str, str]:
    broken = [outcome for outcome in verdict.outcomes if not outcome.passed]
    stops = sum(outcome.rule.severity == "blocking" for outcome in broken)
    words, kind = ("Passed", "good") if not verdict.failed else ("Stopped: the data is not fit for training", "bad")
    if verdict.dropped and not verdict.failed:
        words, kind = f"Passed without {len(verdict.dropped):,} records that were left out", "odd"
    numbers = (
        f"{len(verdict.outcomes) - len(broken)} of {len(verdict.outcomes)} rules hold; "
        f"{stops} blocking and {len(broken) - stops} warnings do not."
    )
    return {"words": words, "kind": kind, "numbers": numbers}


def _splits(tables: Tables) -> list[list[str]]:
    rows = []
    for row in tables.splits.to_dict("records"):
        empty = int((tables.images.part(row["split"]).boxes == 0).sum())
        rows.append([row["split"], f"{row['images']:,}", f"{row['boxes']:,}", f"{empty:,}", f"{row['categories']:,}"])
    return rows


def _rule(outcome: RuleOutcome) -> dict[str, Any]:
    rule = outcome.rule
    blocking = rule.severity == "blocking"
    return {
        "kind": "good" if outcome.passed else "bad" if blocking else "odd",
        "words": "holds" if outcome.passed else "fails" if blocking else "warning",
        "name": rule.name,
        "passed": outcome.passed,
        "table": _TABLES[rule.table],
        "says": rule.says,
        "severity": rule.severity,
        "records": outcome.records,
        "failures": outcome.failures,
    }


def _skipped(skipped: Sequence[Skipped]) -> list[dict[str, Any]]:
    reasons: dict[str, list[str]] = {}
    for entry in skipped:
        reasons.setdefault(entry.reason, []).append(entry.rule.name)
    return [{"reason": reason, "names": names, "count": len(names)} for reason, names in reasons.items()]


def _findings(verdict: Verdict) -> list[dict[str, Any]]:
    sections = []
    for outcome in verdict.outcomes:
        if outcome.passed:
            continue
        rule = outcome.rule
        own = [finding for finding in verdict.findings if finding.rule == rule.name]
        rows = [_finding(finding) for finding in own[:_SHOWN]]
        whole = len(rows) == outcome.failures
        sections.append(
            {
                "name": rule.name,
                "count": f"{outcome.failures:,}" if whole else f"first {len(rows)} of {outcome.failures:,}",
                "open": rule.severity == "blocking" or len(rows) <= _OPEN,
                "advice": rule.advice,
                "rows": rows,
            }
        )
    return sections


def _finding(finding: Finding) -> list[str]:
    return [
        finding.split,
        finding.file,
        "" if finding.image_id is None else str(finding.image_id),
        "" if finding.annotation_id is None else str(finding.annotation_id),
        finding.value,
    ]


def _dropped(verdict: Verdict) -> dict[str, Any]:
    dropped = verdict.dropped
    header, by_class = dropped_counts(verdict).table()
    rows = [
        [record.split, record.kind, str(record.id), record.file, ", ".join(record.because)]
        for record in dropped[:_DROPPED_SHOWN]
    ]
    columns = ["Class", *(f"#{name[0].upper()}{name[1:]}" for name in header[1:])]
    return {"count": len(dropped), "rows": rows, "columns": columns, "classes": by_class}


def _classes(tables: Tables) -> list[dict[str, Any]]:
    classes = tables.classes
    total, most = max(1, int(classes["train"].sum())), max(1, int(classes["train"].max() if len(classes) else 0))
    return [
        {
            "id": row["category_id"],
            "name": row["name"],
            "counts": [row[split] for split in tables.split_names],
            "bar": 8 * row["train"] / most,
            "share": row["train"] / total,
        }
        for row in classes.to_dict("records")
    ]
