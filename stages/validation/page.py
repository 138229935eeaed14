"""The report as one HTML file that opens from the file system, without a network and without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from stages.validation.check import Finding
from stages.validation.histograms import histograms
from stages.validation.judge import Dropped, Verdict
from stages.validation.statistics import Statistics
from stages.validation.suite import Skipped
from stages.validation.tables import Tables

_SHOWN = 50
"""Findings of one rule shown on the page; `findings.json` lists more."""
_OPEN = 10
"""More warnings of one rule are folded away."""
_DROPPED_SHOWN = 1000
"""Records left out that are named on the page; `dropped.json` lists all."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #18794e; --bad: #cd2b31; --odd: #ad5700; --soft: #8882; }
@media (prefers-color-scheme: dark) { :root { --good: #4cc38a; --bad: #ff6369; --odd: #f1a10d; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.verdict { border-left: .4rem solid; padding: .6rem 1rem; background: var(--soft); margin: 1rem 0; }
.good { color: var(--good); } .bad { color: var(--bad); } .odd { color: var(--odd); }
.verdict p { color: CanvasText; margin: .2rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } .n { text-align: right; font-variant-numeric: tabular-nums; }
code, .id { font-family: ui-monospace, monospace; font-size: .92em; }
.bar { display: inline-block; height: .65em; background: #3b82f6; border-radius: 2px; vertical-align: baseline; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; background: var(--soft); }
.plots text { font-size: 11px; fill: CanvasText; } .axis { stroke: CanvasText; stroke-opacity: .4; fill: none; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; opacity: .8; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
"""

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
    """What the page shows."""

    verdict: Verdict
    skipped: Sequence[Skipped]
    dataset: dict[str, Any]
    """The ingested `dataset.json`."""
    reference: Statistics | None
    worst: Sequence[str]
    """Pictures of the gravest findings, as SVG figures."""
    samples: Sequence[str]
    """Pictures of labelled samples, as SVG figures."""


def render_page(report: Report) -> str:
    """The whole page."""
    verdict, tables = report.verdict, report.verdict.tables
    parts = [
        "<h1>Data validation</h1>",
        _verdict(verdict),
        "<h2>Data</h2>",
        _splits(tables, report.dataset, report.reference),
        "<h2>Rules</h2>",
        _rules(verdict),
        _skipped(report.skipped),
        _section("Worst offenders", _gallery(report.worst)),
        _section("Findings", _findings(verdict) if verdict.findings else ""),
        _section("Left out", _dropped(verdict.dropped) if verdict.dropped else ""),
        _section("Classes", _classes(tables)),
        _section("Distributions", histograms(tables.statistics, report.reference)),
        _section("Labelled samples", _gallery(report.samples)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data validation</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _gallery(pictures: Sequence[str]) -> str:
    return f'<div class="pictures">{"".join(pictures)}</div>' if pictures else ""


def _verdict(verdict: Verdict) -> str:
    broken = [outcome for outcome in verdict.outcomes if not outcome.passed]
    stops = sum(outcome.rule.severity == "blocking" for outcome in broken)
    words, kind = ("Passed", "good") if not verdict.failed else ("Stopped: the data is not fit for training", "bad")
    if verdict.dropped and not verdict.failed:
        words, kind = f"Passed without {len(verdict.dropped):,} records that were left out", "odd"
    numbers = (
        f"{len(verdict.outcomes) - len(broken)} of {len(verdict.outcomes)} rules hold; "
        f"{stops} blocking and {len(broken) - stops} warnings do not."
    )
    return f'<div class="verdict {kind}"><strong>{words}</strong><p>{numbers}</p></div>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of ready cells; a heading that starts with # marks a column of numbers."""
    heads = list(head)
    classes = [' class="n"' if text.startswith("#") else "" for text in heads]
    top = "".join(f"<th{kind}>{text.removeprefix('#')}</th>" for kind, text in zip(classes, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(classes, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _splits(tables: Tables, dataset: dict[str, Any], reference: Statistics | None) -> str:
    images = tables.images
    rows = []
    for row in tables.splits.to_dict("records"):
        own = images[images["split"] == row["split"]]
        empty = int((own["boxes"] == 0).sum())
        rows.append([row["split"], f"{row['images']:,}", f"{row['boxes']:,}", f"{empty:,}", f"{row['categories']:,}"])
    source = (
        f"<p>Source <code>{escape(str(dataset.get('source')))}</code>, content <code>{dataset.get('sha256')}</code>"
    )
    same = (
        "; there is no test split of its own, <b>the val split is used twice</b>" if dataset.get("test_is_val") else ""
    )
    compared = ""
    if reference is not None:
        name = escape(reference.champion or "a version of the data")
        compared = f" Compared with the data of {name}, content <code>{escape(reference.data_sha256)}</code>."
    table = _table(["Split", "#Images", "#Boxes", "#Images without boxes", "#Categories"], rows)
    return f"{source}{same}.{compared}</p>{table}"


def _rules(verdict: Verdict) -> str:
    rows = []
    for outcome in verdict.outcomes:
        rule = outcome.rule
        kind = "good" if outcome.passed else "bad" if rule.severity == "blocking" else "odd"
        words = "holds" if outcome.passed else "fails" if rule.severity == "blocking" else "warning"
        name = (
            f'<a href="#{rule.name}"><code>{rule.name}</code></a>'
            if not outcome.passed
            else f"<code>{rule.name}</code>"
        )
        rows.append(
            [
                f'<b class="{kind}">{words}</b>',
                name,
                _TABLES[rule.table],
                escape(rule.says),
                rule.severity,
                f"{outcome.records:,}",
                f"{outcome.failures:,}",
            ]
        )
    return _table(["", "Rule", "About", "What is expected", "Severity", "#Judged", "#Broken"], rows)


def _skipped(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return ""
    reasons: dict[str, list[str]] = {}
    for one in skipped:
        reasons.setdefault(one.reason, []).append(one.rule.name)
    told = "; ".join(
        f"{', '.join(f'<code>{name}</code>' for name in names)} ({escape(reason)})" for reason, names in reasons.items()
    )
    return f"<p>{len(skipped)} rules were not judged: {told}.</p>"


def _findings(verdict: Verdict) -> str:
    parts = ["<p>One record a finding; <code>findings.json</code> beside this page holds them for programs.</p>"]
    for outcome in verdict.outcomes:
        if outcome.passed:
            continue
        rule = outcome.rule
        own = [finding for finding in verdict.findings if finding.rule == rule.name]
        rows = [_finding(finding) for finding in own[:_SHOWN]]
        count = (
            f"{outcome.failures:,}" if len(rows) == outcome.failures else f"first {len(rows)} of {outcome.failures:,}"
        )
        table = _table(["Split", "File", "#Image", "#Annotation", "Found"], rows)
        shown = " open" if rule.severity == "blocking" or len(rows) <= _OPEN else ""
        parts.append(
            f'<details{shown} id="{rule.name}"><summary><code>{rule.name}</code>: {count}</summary>'
            f"<p><b>What to do:</b> {escape(rule.advice)}.</p>{table}</details>"
        )
    return "".join(parts)


def _finding(finding: Finding) -> list[str]:
    return [
        finding.split,
        escape(finding.file),
        "" if finding.image_id is None else str(finding.image_id),
        "" if finding.annotation_id is None else str(finding.annotation_id),
        escape(finding.value),
    ]


def _dropped(dropped: Sequence[Dropped]) -> str:
    rows = [
        [record.split, record.kind, str(record.id), escape(record.file), ", ".join(record.because)]
        for record in dropped[:_DROPPED_SHOWN]
    ]
    told = "" if len(dropped) <= _DROPPED_SHOWN else f" These are the first {_DROPPED_SHOWN}."
    return (
        f"<p>Not in the index: {len(dropped):,} records; <code>dropped.json</code> lists them all.{told}</p>"
        f"{_table(['Split', 'Record', '#Id', 'File', 'Because'], rows)}"
    )


def _classes(tables: Tables) -> str:
    classes = tables.classes
    splits = tables.split_names
    total, most = max(1, int(classes["train"].sum())), max(1, int(classes["train"].max() if len(classes) else 0))
    rows = [
        [
            str(row["category_id"]),
            escape(row["name"]),
            *[f"{row[split]:,}" for split in splits],
            f'<span class="bar" style="width:{8 * row["train"] / most:.2f}rem"></span> {row["train"] / total:.1%}',
        ]
        for row in classes.to_dict("records")
    ]
    return _table(["#Category", "Name", *[f"#Boxes in {split}" for split in splits], "Share of train"], rows)
