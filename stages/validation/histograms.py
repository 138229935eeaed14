"""Distributions of the splits, and of the champion's data, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from markupsafe import Markup

from stages.validation.statistics import QUANTITIES, Quantity, Statistics

_WIDTH, _HEIGHT = 420, 170
_LEFT, _TOP, _BOTTOM = 40, 8, 24
_COLOURS = {"train": "#3b82f6", "val": "#f59e0b", "test": "#10b981"}
CHAMPION = "champion's train"
_TICKS = 5


def histograms(statistics: Statistics, reference: Statistics | None) -> Markup:
    """A legend, and a figure for every quantity with data; empty without any."""
    figures = []
    for quantity in QUANTITIES:
        counts = {split: part.histograms.get(quantity.name, []) for split, part in statistics.splits.items()}
        if reference is not None:
            counts[CHAMPION] = reference.splits["train"].histograms.get(quantity.name, [])
        shares = {name: [count / sum(values) for count in values] for name, values in counts.items() if sum(values)}
        if shares:
            figures.append(_figure(quantity, shares))
    if not figures:
        return Markup()
    names = [*statistics.splits, *([CHAMPION] if reference is not None else [])]
    keys = " ".join(f'<span style="color:{_colour(name)}">&#9632;</span> {escape(name)}' for name in names)
    page = f'<p>Share of all boxes or images in each bin. {keys}</p><div class="plots">{"".join(figures)}</div>'
    return Markup(page)


def _colour(name: str) -> str:
    return _COLOURS.get(name, "#e11d48")


def _figure(quantity: Quantity, shares: Mapping[str, list[float]]) -> str:
    """Outlines over each other; only bins from the first to the last that is used, and one on either side."""
    used = [number for values in shares.values() for number, share in enumerate(values) if share]
    first, last = max(0, min(used) - 1), min(quantity.bins - 1, max(used) + 1)
    most = max(max(values) for values in shares.values())
    inner_width, inner_height = _WIDTH - _LEFT - 8, _HEIGHT - _TOP - _BOTTOM
    step = inner_width / (last - first + 1)
    floor = _TOP + inner_height
    outlines = []
    for name, values in shares.items():
        path = [f"M{_LEFT:g} {floor:g}"]
        for number in range(first, last + 1):
            height = floor - inner_height * values[number] / most
            path.append(f"V{height:.1f}H{_LEFT + step * (number - first + 1):.1f}")
        dashed = ' stroke-dasharray="4 3"' if name == CHAMPION else ""
        fill = ' fill-opacity=".12"' if name == "train" else ' fill-opacity="0"'
        outlines.append(
            f'<path d="{"".join(path)}V{floor:g}" stroke="{_colour(name)}" fill="{_colour(name)}"{fill}{dashed} '
            f'stroke-width="1.5"><title>{escape(name)}</title></path>'
        )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(quantity.title)}">'
        f"{_axes(quantity, first, last, most, step)}{''.join(outlines)}</svg>"
        f"<figcaption>{escape(quantity.title)}</figcaption></figure>"
    )


def _axes(quantity: Quantity, first: int, last: int, most: float, step: float) -> str:
    floor = _HEIGHT - _BOTTOM
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{floor}H{_WIDTH - 8}"/>']
    parts.append(f'<text x="{_LEFT - 4}" y="{_TOP + 9}" text-anchor="end">{most:.0%}</text>')
    parts.append(f'<text x="{_LEFT - 4}" y="{floor}" text-anchor="end">0</text>')
    every = max(1, -(-(last - first + 1) // _TICKS))
    for number in range(first, last + 2, every):
        x = _LEFT + step * (number - first)
        parts.append(f'<path class="axis" d="M{x:.1f} {floor}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{quantity.edge(number):.3g}</text>')
    return "".join(parts)
