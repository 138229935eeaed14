"""The report as one HTML file that opens from the file system, without a network and without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from stages.validation.check import Finding, Outcome, blocking
from stages.validation.tables import Tables

_SHOWN = 50
"""Findings of one rule shown on the page; `findings.json` lists more."""

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
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; background: var(--soft); }
figcaption { font-size: .8rem; overflow-wrap: anywhere; opacity: .8; }
details { margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
"""

_TABLES = {
    "splits": "Splits",
    "categories": "Categories",
    "classes": "Categories across splits",
    "images": "Images",
    "annotations": "Annotations",
}


def render_page(
    tables: Tables,
    outcomes: Sequence[Outcome],
    skipped: int,
    findings: Sequence[Finding],
    pictures: Sequence[str],
    dataset: dict[str, Any],
) -> str:
    """The whole page. `skipped` counts rules that were not judged; `dataset` is the ingested `dataset.json`."""
    parts = [
        "<h1>Data validation</h1>",
        _verdict(outcomes, skipped),
        "<h2>Data</h2>",
        _splits(tables, dataset),
        "<h2>Rules</h2>",
        _rules(outcomes),
        *([f"<h2>Findings</h2>{_findings(outcomes, findings)}"] if findings else []),
        "<h2>Classes</h2>",
        _classes(tables),
        *([f'<h2>Labelled samples</h2><div class="pictures">{"".join(pictures)}</div>'] if pictures else []),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data validation</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _verdict(outcomes: Sequence[Outcome], skipped: int) -> str:
    failed = blocking(outcomes)
    warned = [outcome for outcome in outcomes if not outcome.passed and outcome not in failed]
    passed = sum(outcome.passed for outcome in outcomes)
    words, kind = ("Passed", "good") if not failed else ("Stopped: the data is not fit for training", "bad")
    numbers = f"{passed} of {len(outcomes)} rules hold; {len(failed)} blocking and {len(warned)} warnings do not."
    unseen = f" {skipped} rules need decoded images and were not judged (validation.check_images is off)."
    return f'<div class="verdict {kind}"><strong>{words}</strong><p>{numbers}{unseen if skipped else ""}</p></div>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of ready cells; a heading that starts with # marks a column of numbers."""
    heads = list(head)
    classes = [' class="n"' if text.startswith("#") else "" for text in heads]
    top = "".join(f"<th{kind}>{text.removeprefix('#')}</th>" for kind, text in zip(classes, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(classes, row, strict=True))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _splits(tables: Tables, dataset: dict[str, Any]) -> str:
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
    return f"{source}{same}.</p>{_table(['Split', '#Images', '#Boxes', '#Images without boxes', '#Categories'], rows)}"


def _rules(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
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


def _findings(outcomes: Sequence[Outcome], findings: Sequence[Finding]) -> str:
    parts = ["<p>One record a finding; <code>findings.json</code> beside this page holds them for programs.</p>"]
    for outcome in outcomes:
        if outcome.passed:
            continue
        rule = outcome.rule
        own = [finding for finding in findings if finding.rule == rule.name][:_SHOWN]
        rows = [
            [
                finding.split,
                escape(finding.file),
                "" if finding.image_id is None else str(finding.image_id),
                "" if finding.annotation_id is None else str(finding.annotation_id),
                escape(finding.value),
            ]
            for finding in own
        ]
        count = f"{outcome.failures:,}" if len(own) == outcome.failures else f"first {len(own)} of {outcome.failures:,}"
        table = _table(["Split", "File", "#Image", "#Annotation", "Found"], rows)
        parts.append(
            f'<details open id="{rule.name}"><summary><code>{rule.name}</code>: {count}</summary>'
            f"<p><b>What to do:</b> {escape(rule.action)}.</p>{table}</details>"
        )
    return "".join(parts)


def _classes(tables: Tables) -> str:
    classes = tables.classes
    splits = list(tables.splits["split"])
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
