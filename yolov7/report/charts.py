"""Charts as inline SVG: no scripts and no fonts, sharp in print, with hover texts, in light and dark mode.

Own code rather than matplotlib, measured: its confusion matrix of 80 classes takes 5 s (0.02 s here) beside 1 s of
import, its SVG has no hover texts or dark mode, carries a style for the whole page and `url(...)` references, reads
`$` in class names as mathematics, and measures names in Chinese with a font that does not have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from yolov7.evaluate.curves import PrecisionRecall
from yolov7.evaluate.mistakes import Calibration

_SIDE, _LEFT, _BOTTOM, _EDGE = 320, 58, 40, 10  # of the square charts: plot, room for labels

KIND_COLORS = {
    "right": "#2f9e6e",
    "localisation": "#e5a50a",
    "class": "#d6457b",
    "both": "#9b59b6",
    "duplicate": "#4a90d9",
    "background": "#8b5e3c",
    "missed": "#c0392b",
}


def precision_recall(curves: PrecisionRecall) -> Markup:
    """Mean curves at IoU 0.50 and over 0.50 to 0.95, and the classes' own at 0.50 behind them."""
    lines = [
        _line(curves.recall, row, "thin", title=name)
        for name, row in zip(curves.class_names, curves.precision50, strict=True)
        if not np.isnan(row).any()
    ]
    lines += [
        _line(curves.recall, curves.mean_precision50, "main", title="all classes, IoU 0.50"),
        _line(curves.recall, curves.mean_precision, "second", title="all classes, IoU 0.50 to 0.95"),
    ]
    keys = [("main", "IoU 0.50"), ("second", "IoU 0.50 to 0.95"), ("thin", "each class, IoU 0.50")]
    return Markup(_square("recall", "precision", "".join(lines), keys))


def reliability(found: Calibration) -> Markup:
    """Share of right detections by score; on the diagonal scores are probabilities. Areas show the counts."""
    points = []
    most = max(int(found.counts.max(initial=0)), 1)
    for count, score, share in zip(found.counts, found.mean_scores, found.precision, strict=True):
        if count:
            radius = 2.5 + 9 * float(np.sqrt(count / most))
            x, y = _place(score, share)
            words = f"{count} detections of score {score:.2f} on average: {share:.0%} right"
            points.append(
                f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{words}</title></circle>'
            )
    (x1, y1), (x2, y2) = _place(0, 0), _place(1, 1)
    diagonal = f'<line class="grid" stroke-dasharray="4 3" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
    return Markup(_square("score", "share that is right", diagonal + "".join(points), []))


def kinds_bar(counts: Mapping[str, int]) -> Markup:
    """One bar, cut by kind."""
    total = max(sum(counts.values()), 1)
    x, parts = 0.0, []
    for kind, count in counts.items():
        if count:
            width = 700 * count / total
            parts.append(
                f'<rect x="{x:.1f}" width="{max(width - 1, 0.5):.1f}" height="26" fill="{KIND_COLORS[kind]}">'
                f"<title>{kind}: {count} ({count / total:.1%})</title></rect>"
            )
            x += width
    return Markup(
        f'<svg class="bar" viewBox="0 0 700 26" role="img" aria-label="kinds of mistakes">{"".join(parts)}</svg>'
    )


def confusion(table: np.ndarray, class_names: Sequence[str]) -> Markup:
    """True classes by row, detected ones by column; colours are shares of the row. `table`: (C + 1, C + 1), background
    last.
    """
    names = [*class_names, "background"]
    columns = [*class_names, "missed"]
    cell = 26 if len(names) <= 30 else 12
    margin = 8 + 7 * max(len(name) for name in [*names, *columns])
    margin = min(margin, 150)
    size = cell * len(names)
    parts = []
    sums = np.maximum(table.sum(axis=1), 1)
    for row, name in enumerate(names):
        y = margin + row * cell
        parts.append(
            f'<text x="{margin - 5}" y="{y + cell * 0.68:.1f}" text-anchor="end">{escape(_short(name))}</text>'
        )
        for column, other in enumerate(columns):
            count = int(table[row, column])
            if not count:
                continue
            share = count / sums[row]
            color = KIND_COLORS["right"] if row == column else KIND_COLORS["missed"]
            x = margin + column * cell
            words = escape(f"{name} detected as {other}: {count} ({share:.0%})")
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="{color}" '
                f'fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{words}</title></rect>'
            )
            if cell >= 20:
                ink = ' fill="#fff"' if share > 0.45 else ""
                parts.append(
                    f'<text x="{x + cell / 2}" y="{y + cell * 0.66:.1f}" text-anchor="middle"{ink} '
                    f'pointer-events="none">{count if count < 1000 else f"{count / 1000:.0f}k"}</text>'
                )
    for column, other in enumerate(columns):
        middle = margin + column * cell + cell * 0.66
        parts.append(
            f'<text transform="translate({middle:.1f} {margin - 5}) rotate(-90)">{escape(_short(other))}</text>'
        )
    side = margin + size + 4
    style = "" if cell >= 20 else ' style="font-size:9px"'
    svg = f'<svg class="confusion" viewBox="0 0 {side} {side}" width="{side}"{style} role="img">{"".join(parts)}</svg>'
    return Markup(svg)


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


def _place(x: float, y: float) -> tuple[float, float]:
    return _LEFT + x * _SIDE, _EDGE + (1 - y) * _SIDE


def _line(xs: np.ndarray, ys: np.ndarray, kind: str, *, title: str) -> str:
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (_place(x, y) for x, y in zip(xs, ys, strict=True)))
    return f'<polyline class="{kind}" points="{points}"><title>{escape(title)}</title></polyline>'


def _square(x_name: str, y_name: str, content: str, keys: Sequence[tuple[str, str]]) -> str:
    """Axes from 0 to 1 around `content`, with a key of line kinds."""
    legend = []
    for row, (kind, words) in enumerate(keys):
        y = _EDGE + _SIDE - 14 - 16 * (len(keys) - 1 - row)
        legend.append(f'<line class="{kind}" x1="{_LEFT + 10}" x2="{_LEFT + 34}" y1="{y - 4}" y2="{y - 4}"/>')
        legend.append(f'<text x="{_LEFT + 40}" y="{y}">{words}</text>')
    ticks = np.linspace(0, 1, 6)
    return _axes(x_name, y_name, ticks, ticks, content + "".join(legend))


def _axes(x_name: str, y_name: str, x_ticks: np.ndarray, y_ticks: np.ndarray, content: str) -> str:
    """A grid with its numbers; the first and the last tick are the edges."""
    parts = []
    for share, text in _numbers(x_ticks):
        x, bottom = _place(share, 0)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{_EDGE}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    for share, text in _numbers(y_ticks):
        left, y = _place(0, share)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + _SIDE}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    middle = _LEFT + _SIDE / 2
    parts.append(f'<text x="{middle}" y="{_EDGE + _SIDE + 32}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(
        f'<text transform="translate(12 {_EDGE + _SIDE / 2}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>'
    )
    width, height = _LEFT + _SIDE + 2 * _EDGE, _EDGE + _SIDE + _BOTTOM
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">{"".join([*parts, content])}</svg>'


def _numbers(ticks: np.ndarray) -> list[tuple[float, str]]:
    """Position of each tick between the first and the last (0 to 1), and its number with the decimals it needs."""
    step = float(ticks[1] - ticks[0])
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(float((tick - ticks[0]) / (ticks[-1] - ticks[0])), f"{tick:.{decimals}f}") for tick in ticks]


@dataclass(frozen=True)
class Dot:
    """One thing in a :func:`scatter`."""

    name: str
    x: float
    y: float
    low: float | None = None
    """With `high`, the interval of `y`: drawn as a line."""
    high: float | None = None
    beside: tuple[float, float] | None = None
    """Place (x, y) of another dot that this one is a form of: drawn hollow, joined with it, and named by hover text."""


def scatter(
    dots: Sequence[Dot],
    x_name: str,
    y_name: str,
    *,
    front: Sequence[tuple[float, float]] = (),
    labels: bool = True,
    from_zero: bool = True,
) -> Markup:
    """Named dots on two axes that begin at round numbers; a note if there are none.

    `front`: points (x, y), each of which is at least as good as the one before: joined by steps. Without `labels` the
    names are hover texts alone. `from_zero`: the x axis contains 0.
    """
    if not dots:
        return Markup('<p class="small">Nothing to show.</p>')
    x_ticks = _ticks([0.0] * from_zero + [dot.x for dot in dots])
    y_ticks = _ticks([value for dot in dots for value in (dot.y, dot.low, dot.high) if value is not None])

    def place(x: float, y: float) -> tuple[float, float]:
        return _place((x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]))

    parts: list[str] = []
    corners = [place(x, y) for x, y in _steps(front, float(x_ticks[-1]))]
    if corners:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(f'<polyline class="main" points="{points}"/>')
    joins = [(place(*dot.beside), place(dot.x, dot.y)) for dot in dots if dot.beside is not None]
    parts += [_joined(*join) for join in joins]
    centres = [place(dot.x, dot.y) for dot in dots]
    taken = [(x - 6, x + 6, y + 4) for x, y in centres]
    taken += [(left, right, y + 4) for (left, y), (right, _) in pairwise(corners) if right > left]
    taken += [piece for join in joins for piece in _pieces(*join)]
    for dot in sorted(dots, key=lambda dot: -dot.y):
        x, y = place(dot.x, dot.y)
        if dot.low is not None and dot.high is not None:
            (_, bottom), (_, top) = place(dot.x, dot.low), place(dot.x, dot.high)
            parts.append(f'<line class="thin" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"/>')
        words = escape(f"{dot.name}: {x_name} {dot.x:g}, {y_name} {dot.y:g}")
        hollow = ' style="fill-opacity:0;stroke:var(--accent);stroke-width:2"' if dot.beside is not None else ""
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"{hollow}><title>{words}</title></circle>')
        if labels and dot.beside is None:
            parts.append(_label(dot.name, x, y, taken))
    return Markup(_axes(x_name, y_name, x_ticks, y_ticks, "".join(parts)))


def _joined(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="thin" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _pieces(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float, float]]:
    """A line in short pieces (left, right, y), as :func:`_label` takes what is drawn already."""
    count = 1 + int(max(abs(end[0] - start[0]), abs(end[1] - start[1])) / 10)
    xs, ys = np.linspace(start[0], end[0], count + 1), np.linspace(start[1], end[1], count + 1)
    return [
        (float(min(xs[i : i + 2])), float(max(xs[i : i + 2])), float(ys[i : i + 2].mean()) + 4) for i in range(count)
    ]


def _steps(front: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """Corners of the steps through `front`, to the right up to `end`."""
    corners: list[tuple[float, float]] = []
    for x, y in front:
        corners += [(x, corners[-1][1])] if corners else []
        corners.append((x, y))
    return [*corners, (end, corners[-1][1])] if corners else []


def bars(shares: Mapping[str, float]) -> Markup:
    """A horizontal bar for each share of 1, the largest first; a note if there are none."""
    if not shares:
        return Markup('<p class="small">Nothing to show.</p>')
    margin = 12 + 7 * max(map(len, shares))
    parts, longest = [], max(max(shares.values()), 1e-9)
    for row, (name, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        y, width = 4 + 24 * row, 260 * share / longest
        parts.append(f'<text x="{margin - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect class="dot" x="{margin}" y="{y}" width="{max(width, 1):.1f}" height="17">'
            f"<title>{escape(name)}: {share:.0%}</title></rect>"
        )
        parts.append(f'<text x="{margin + width + 6:.1f}" y="{y + 13}">{share:.0%}</text>')
    size = f'viewBox="0 0 {margin + 320} {8 + 24 * len(shares)}" width="{margin + 320}"'
    return Markup(f'<svg {size} role="img" aria-label="shares">{"".join(parts)}</svg>')


def _label(name: str, x: float, y: float, taken: list[tuple[float, float, float]]) -> str:
    """The name beside its dot, at the first free place; `taken` are (left, right, y) of everything drawn already.

    Nothing where there is no free place in the chart, as among thirty networks: the dot itself says its name.
    """
    text, width = _short(name), 6.5 * len(_short(name))
    sides = [x + 9] if x + 9 + width <= _LEFT + _SIDE else []
    sides += [x - 9 - width] if x - 9 - width >= _LEFT else []
    places = [(side, y + lower) for lower in (4, 18, -10, 32, -24, 46, -38, 60, -52) for side in sides or [_LEFT + 2]]
    inside = [(side, at) for side, at in places if _EDGE + 10 <= at <= _EDGE + _SIDE + 4]
    free = next((place for place in inside if _is_free(*place, width, taken)), None)
    if free is None:
        return ""
    left, middle = free
    taken.append((left, left + width, middle))
    return f'<text x="{left:.1f}" y="{middle:.1f}">{escape(text)}</text>'


def _is_free(left: float, y: float, width: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    return all(abs(y - other) >= 13 or left + width < start or left > end for start, end, other in taken)


def _ticks(values: Sequence[float]) -> np.ndarray:
    """Round numbers, about five, that enclose the values."""
    low, high = min(values), max(values)
    span = max(high - low, 1e-3 * abs(high), 1e-6)  # a single value needs a span as well
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return np.round(np.arange(first, max(last, first + 1) + 1) * step, 10)
