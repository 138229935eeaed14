"""What the HTML pages of the evaluation share: one file each, without scripts or fonts from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #3b82f6; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; break-after: avoid; }
p { max-width: 50rem; } .small { font-size: .85rem; opacity: .85; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; padding: 0; list-style: none; }
.figures li { background: var(--soft); padding: .5rem .9rem; border-radius: .3rem; }
.figures b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; } .n { text-align: right; font-variant-numeric: tabular-nums; }
table.sorts th { cursor: pointer; } table.sorts td { white-space: nowrap; }
th[aria-sort=ascending]::after { content: " ▲"; } th[aria-sort=descending]::after { content: " ▼"; }
svg { max-width: 100%; height: auto; } svg text { font-size: 12px; fill: CanvasText; } .bar { width: 100%; }
.grid { stroke: CanvasText; stroke-opacity: .15; } .dot { fill: var(--accent); fill-opacity: .65; }
polyline { fill: none; } .main { stroke: var(--accent); stroke-width: 2.5; }
.second { stroke: #e5484d; stroke-width: 2.5; } .thin { stroke: CanvasText; stroke-opacity: .3; stroke-width: 1; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; list-style: none; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1rem; }
figure { margin: 0; break-inside: avoid; } figure img { width: 100%; display: block; }
figcaption { font-size: .8rem; opacity: .85; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .pictures { grid-template-columns: 1fr 1fr; } }
"""

# Clicking a heading sorts by its column; numbers as numbers, what is not measured last.
_SCRIPT = """
for (const head of document.querySelectorAll('table.sorts th')) head.addEventListener('click', () => {
  const table = head.closest('table'), place = [...head.parentNode.children].indexOf(head);
  const down = head.getAttribute('aria-sort') !== 'descending';
  for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const key = row => { const text = row.children[place].textContent, n = parseFloat(text.replace(/,/g, ''));
    return head.classList.contains('n') ? (isNaN(n) ? -Infinity : n) : text; };
  const rows = [...table.tBodies[0].rows].sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
  table.tBodies[0].append(...(down ? rows.reverse() : rows));
});
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page; its tables sort by a click on a heading."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}<script>{_SCRIPT}</script></body></html>\n"
    )


def facts_table(facts: Mapping[str, str]) -> str:
    """Names and values, small, for the head of a page."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f'<table class="small">{rows}</table>'


def number(value: float) -> str:
    """Three decimals; a dash for what is not defined (NaN, or the COCO tool's -1)."""
    return "–" if math.isnan(value) or value < 0 else f"{value:.3f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, sorts: bool = False) -> str:
    """A table of ready cells; a heading that starts with # marks a column of numbers."""
    heads = list(head)
    classes = [' class="n"' if text.startswith("#") else "" for text in heads]
    top = "".join(f"<th{kind}>{text.removeprefix('#')}</th>" for kind, text in zip(classes, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(classes, row, strict=True))}</tr>" for row in rows
    )
    start = '<table class="sorts">' if sorts else "<table>"
    return f'<div class="scroll">{start}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
