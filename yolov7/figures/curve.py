"""Curves with a band around each, as SVG without scripts and fonts, in light and dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 560, 260, 48, 40, 12, 96
_COLORS = ("#8b5e3c", "#e5a50a", "#4a90d9", "#2f9e6e", "#d6457b", "#9b59b6")
_STYLE = (
    "text{font:12px sans-serif;fill:#333}.axis{stroke:#999;fill:none}.grid{stroke:#999;stroke-opacity:.3}"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}}"
)


@dataclass(frozen=True)
class Curve:
    """A line over whole numbers from 0 on, and the range around it."""

    name: str
    x: Sequence[int]
    middle: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def curves(
    lines: Sequence[Curve],
    *,
    x: str,
    y: str,
    span: tuple[float, float] = (0.0, 1.0),
    ticks: Sequence[int] | None = None,
) -> str:
    """The picture; `x` and `y` name the axes, `span` are the ends of y, `ticks` the values written at x (default: five
    of equal distance), where the lines then have dots.
    """
    last = max(max(line.x) for line in lines)
    low, high = span

    def down(value: float) -> float:
        return _TOP + _HEIGHT * (1 - (value - low) / (high - low))

    def place(at: float, value: float) -> str:
        return f"{_LEFT + _WIDTH * at / last:.1f},{down(value):.1f}"

    parts = []
    values = [low + (high - low) * share for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for value in values:
        height = down(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {height:.1f}h{_WIDTH}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for at in range(0, last + 1, max(last // 4, 1)) if ticks is None else ticks:
        parts.append(
            f'<text x="{_LEFT + _WIDTH * at / last:.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{at}</text>'
        )
    for number, line in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        band = [place(at, value) for at, value in zip(line.x, line.high, strict=True)]
        band += [place(at, value) for at, value in reversed([*zip(line.x, line.low, strict=True)])]
        parts.append(f'<polygon points="{" ".join(band)}" fill="{color}" fill-opacity=".18"/>')
        points = " ".join(place(at, value) for at, value in zip(line.x, line.middle, strict=True))
        words = escape(f"{line.name}: " + ", ".join(f"{at} {v:.3f}" for at, v in zip(line.x, line.middle, strict=True)))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2">')
        parts.append(f"<title>{words}</title></polyline>")
        for point in points.split() if ticks is not None else ():
            cx, cy = point.split(",")
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="3.5" fill="{color}"/>')
        top = _TOP + 14 + 20 * number
        parts.append(f'<path d="M{_LEFT + _WIDTH + 10} {top - 4}h16" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{_LEFT + _WIDTH + 31}" y="{top}">{escape(line.name)}</text>')
    middle = _TOP + _HEIGHT / 2
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}v{_HEIGHT}h{_WIDTH}"/>')
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 33}" text-anchor="middle">{escape(x)}</text>')
    # Room for long names and for numbers of more than four characters.
    more_left = 7 * max(max(len(f"{value:.4g}") for value in values) - 4, 0)
    right = max(_RIGHT, 34 + 7 * max(len(line.name) for line in lines))
    parts.append(
        f'<text transform="translate({12 - more_left} {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )
    size = f"{-more_left} 0 {more_left + _LEFT + _WIDTH + right} {_TOP + _HEIGHT + _BOTTOM}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}"><style>{_STYLE}</style>{"".join(parts)}</svg>\n'
