"""What each layer costs in eight bits, as a page: a table and bars for each int8 file of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from yolov7.files import write_text
from yolov7.int8_files import SENSITIVITY_PAGE, Int8Making, read_makings
from yolov7.report.int8 import facts_of
from yolov7.report.page import MISSING, render

_METRICS = {"mse": "MSE", "snr": "SNR, dB", "cosine": "Cosine", "shift": "Shift", "ap": "AP"}
_RISING = ("mse", "shift")
"""Metrics of which the larger value is the worse one."""
_SAYS = {
    "mse": "mean squared error of the outputs of the last convolutions",
    "snr": "their signal to noise ratio in decibels",
    "cosine": "the cosine of the angle between them and those without eight bits",
    "shift": "the mean change of the most confident scores, plus what their boxes lack of IoU 1",
    "ap": "AP on validation images",
}
_DRAWN = 40
"""Bars in a chart."""
_WIDTH, _STEP = 300, 17


@dataclass(frozen=True)
class _Bar:
    layer: str
    length: float
    """From 0 to 1."""
    shown: str
    in_float: bool


def write_sensitivity_page(folder: Path, *, title: str) -> bool:
    """Write the page on an export folder into it; False, and no page, where nothing was measured.

    Raises :class:`yolov7.errors.ModelError` for a record of the folder that cannot be read.
    """
    text = render_sensitivity(title, list(read_makings(folder).values()))
    if text is None:
        return False
    write_text(folder / SENSITIVITY_PAGE, text)
    return True


def render_sensitivity(title: str, makings: Sequence[Int8Making]) -> str | None:
    """The page; None where the layers of no file were measured."""
    measured = [making for making in makings if making.sensitivity]
    if not measured:
        return None
    files = [_file(making) for making in measured]
    return render("sensitivity", title=f"{title}: layers in eight bits", facts={}, says=_said(measured), files=files)


def _said(measured: Sequence[Int8Making]) -> list[tuple[str, str]]:
    names = [name for name in _METRICS if any(row.get(name) is not None for m in measured for row in m.sensitivity)]
    return [(_METRICS[name], _SAYS[name]) for name in names]


def _file(making: Int8Making) -> dict[str, Any]:
    names = [name for name in _METRICS if any(row.get(name) is not None for row in making.sensitivity)]
    kept = set(making.kept_in_float)
    metric = making.metric if making.metric in names else names[0]
    return {
        "name": making.file,
        "facts": facts_of(making),
        "ranked_by": _METRICS[metric],
        "drawn": min(_DRAWN, len(making.sensitivity)),
        "count": len(making.sensitivity),
        "bars": _bars(_ranked(making, metric)[:_DRAWN]),
        "head": ["#", "Layer", "Kind", "#Channels", *(f"#{_METRICS[name]}" for name in names), "In the file"],
        "rows": [_row(place, row, names, kept) for place, row in enumerate(making.sensitivity, start=1)],
    }


def _row(place: int, row: Mapping[str, Any], names: Sequence[str], kept: set[str]) -> list[str]:
    channels = row.get("channels")
    return [
        str(place),
        str(row["layer"]),
        str(row.get("kind", MISSING)),
        MISSING if channels is None else str(channels),
        *(_number(row.get(name)) for name in names),
        "float" if row["layer"] in kept else "int8",
    ]


def _ranked(making: Int8Making, metric: str) -> list[_Bar]:
    """A bar for each layer, the worst first. Its length is what the layer loses, 1 for the worst one."""
    found = [(str(row["layer"]), float(row[metric])) for row in making.sensitivity if row.get(metric) is not None]
    # What the float network has; noise has no such value, and is compared with the best layer.
    best = {"cosine": 1.0, "snr": max(value for _, value in found), "ap": making.float_ap}.get(metric, 0.0)
    losses = [max(value - best if metric in _RISING else best - value, 0.0) for _, value in found]
    worst = max(max(losses), 1e-12)
    bars = [
        _Bar(layer, loss / worst, _number(value), layer in making.kept_in_float)
        for (layer, value), loss in zip(found, losses, strict=True)
    ]
    return sorted(bars, key=lambda bar: -bar.length)


def _bars(bars: Sequence[_Bar]) -> Markup:
    """Horizontal bars; those of layers that stayed in float are hollow."""
    margin = 14 + 7 * max(len(bar.layer) for bar in bars)
    parts = []
    for place, bar in enumerate(bars):
        y, width = 4 + _STEP * place, max(_WIDTH * bar.length, 1.0)
        hollow = ' style="fill-opacity:0;stroke:var(--accent);stroke-width:1.5"' if bar.in_float else ""
        words = escape(f"{bar.layer}: {bar.shown}{', kept in float' if bar.in_float else ''}")
        parts.append(f'<text x="{margin - 6}" y="{y + 11}" text-anchor="end">{escape(bar.layer)}</text>')
        parts.append(
            f'<rect class="dot" x="{margin}" y="{y}" width="{width:.1f}" height="{_STEP - 4}"{hollow}>'
            f"<title>{words}</title></rect>"
        )
        parts.append(f'<text x="{margin + width + 6:.1f}" y="{y + 11}">{escape(bar.shown)}</text>')
    size = f'viewBox="0 0 {margin + _WIDTH + 80} {8 + _STEP * len(bars)}" width="{margin + _WIDTH + 80}"'
    return Markup(f'<svg {size} role="img" aria-label="sensitivity of layers">{"".join(parts)}</svg>')


def _number(value: Any) -> str:
    """Three significant digits, more where a number is close to one; a dash where nothing was measured."""
    if value is None:
        return MISSING
    number = float(value)
    return f"{number:.8f}" if 0.9 < abs(number) < 1.0 else f"{number:#.3g}".removesuffix(".")
