"""Variants side by side on one page: what each finds, how fast it is, what it holds, and what the paper says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from yolov7.model.info import VariantInfo
from yolov7.report.charts import Dot, scatter
from yolov7.report.page import document, facts_table, number, table


@dataclass(frozen=True)
class Compared:
    """One variant, as it was measured here."""

    variant: str
    metrics: Mapping[str, float]
    """The COCO tool's figures, with AP_low and AP_high."""
    per_class: Mapping[str, float]
    parameters: int
    """Of the deploy form."""
    gflops: float
    """2 x multiply-accumulates at `image_size`, in 10^9."""
    image_size: int
    latency_ms: float
    """Median of one image, preparation and suppression included."""
    latency_low: float
    latency_high: float
    """10th and 90th percentile."""
    size_mb: float
    """Of the ONNX file."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What else is to be told, by heading (the registered version, say); the same headings for all."""


def render_comparison(facts: Mapping[str, str], compared: Sequence[Compared], published: Sequence[VariantInfo]) -> str:
    """The page. `facts` say what was measured on what and where; `published` are the rows of the paper's table."""
    parts = [
        "<h1>Variants compared</h1>",
        facts_table(facts),
        "<h2>Measured here</h2>",
        _measured_charts(compared),
        _measured_table(compared),
        "<h2>Classes</h2>",
        "<p>AP of each class; a click on a heading sorts.</p>",
        _classes(compared),
        "<h2>As published</h2>",
        "<p>COCO AP of the paper, in percent; costs counted on this project's networks with 80 classes. FPS: one V100, "
        "half precision, batch 1, without suppression.</p>",
        _published_charts(published),
        _published_table(published),
    ]
    return document("Variants compared", parts)


def _charts(dots: Mapping[str, Sequence[Dot]], figure: str) -> str:
    drawn = "".join(f"<div>{scatter(one, name, figure)}</div>" for name, one in dots.items())
    return f'<div class="two">{drawn}</div>'


def _measured_charts(compared: Sequence[Compared]) -> str:
    def dots(x: Mapping[str, float]) -> list[Dot]:
        return [
            Dot(one.variant, x[one.variant], one.metrics["AP"], one.metrics.get("AP_low"), one.metrics.get("AP_high"))
            for one in compared
        ]

    words = '<p class="small">Lines: 95 % interval of AP over test images drawn again.</p>'
    return words + _charts(
        {
            "latency of an image, ms": dots({one.variant: one.latency_ms for one in compared}),
            "parameters, millions": dots({one.variant: one.parameters / 1e6 for one in compared}),
            "GFLOPs": dots({one.variant: one.gflops for one in compared}),
        },
        "AP",
    )


def _measured_table(compared: Sequence[Compared]) -> str:
    notes = list(compared[0].notes) if compared else []
    head = ["Variant", "#AP (95 %)", "#AP50", "#AP75", "#APs", "#APm", "#APl", "#Latency, ms (10–90 %)"]
    head += ["#Params, M", "#GFLOPs", "#Input", "#MB", *map(escape, notes)]
    rows = []
    for one in compared:
        low, high = (number(one.metrics.get(name, -1.0)) for name in ("AP_low", "AP_high"))
        rows.append(
            [
                escape(one.variant),
                f"{number(one.metrics['AP'])} ({low}–{high})",
                *(number(one.metrics[name]) for name in ("AP50", "AP75", "APs", "APm", "APl")),
                f"{one.latency_ms:.1f} ({one.latency_low:.1f}–{one.latency_high:.1f})",
                f"{one.parameters / 1e6:.2f}",
                f"{one.gflops:.1f}",
                str(one.image_size),
                f"{one.size_mb:.1f}",
                *(escape(one.notes.get(name, "")) for name in notes),
            ]
        )
    return table(head, rows, sorts=True)


def _classes(compared: Sequence[Compared]) -> str:
    names = list(dict.fromkeys(name for one in compared for name in one.per_class))
    rows = [[escape(name), *(number(one.per_class.get(name, -1.0)) for one in compared)] for name in names]
    return table(["Class", *(f"#{escape(one.variant)}" for one in compared)], rows, sorts=True)


def _published_charts(published: Sequence[VariantInfo]) -> str:
    known = [(row, row.published) for row in published if row.published is not None]
    timed = [(row, said, said.fps) for row, said in known if said.fps]
    return _charts(
        {
            "latency on a V100, ms": [Dot(row.variant, round(1000 / fps, 1), said.ap) for row, said, fps in timed],
            "parameters, millions": [Dot(row.variant, row.parameters_deploy / 1e6, said.ap) for row, said in known],
            "GFLOPs": [Dot(row.variant, row.gflops_deploy, said.ap) for row, said in known],
        },
        "published AP, %",
    )


def _published_table(published: Sequence[VariantInfo]) -> str:
    head = ["Variant", "#AP, %", "#AP50, %", "#AP75, %", "Measured on", "#FPS", "#Parameters", "#GFLOPs", "#Input"]
    rows = []
    for row in published:
        said = row.published
        cells = ["–", "–", "–", "", "–"]
        if said is not None:
            cells = [f"{said.ap:.1f}", f"{said.ap50:.1f}", f"{said.ap75:.1f}", f"{said.split}, {said.image_size} px"]
            cells.append(str(said.fps or "–"))
        costs = [f"{row.parameters_deploy:,}", f"{row.gflops_deploy:.1f}", str(row.image_size)]
        rows.append([escape(row.variant), *cells, *costs])
    return table(head, rows, sorts=True)
