"""Variants side by side on one page: AP, latency, size, and the published figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from yolov7.catalogue import VariantInfo, by_family, speed_note
from yolov7.int8_files import runtime_of
from yolov7.report.charts import Dot, scatter
from yolov7.report.page import MISSING, figure, render


@dataclass(frozen=True)
class Int8Compared:
    """An int8 file of a variant, as measured here."""

    file: str
    metrics: Mapping[str, float]
    """The COCO tool's figures."""
    difference: tuple[float, float, float]
    """AP minus that of the float file, and the ends of the 95 % interval."""
    latency_ms: float
    size_mb: float


@dataclass(frozen=True)
class Compared:
    """One variant, as measured here."""

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
    """Further cells by heading, such as the registered version; the same headings for all."""
    int8: Sequence[Int8Compared] = ()


def render_comparison(facts: Mapping[str, str], compared: Sequence[Compared], published: Sequence[VariantInfo]) -> str:
    """The page. `facts` describe data, settings and machine; `published` are the rows of the papers' tables, which get
    a section for each family.
    """
    names = list(dict.fromkeys(name for variant in compared for name in variant.per_class))
    families = by_family(published)
    title_of = {row.variant: title for title, rows in families.items() for row in rows}
    return render(
        "comparison",
        title="Variants compared",
        facts=facts,
        measured_charts=_measured_charts(compared),
        measured_head=_measured_head(compared),
        measured_rows=[_measured_row(variant, title_of.get(variant.variant, MISSING)) for variant in compared],
        int8_head=_INT8_HEAD,
        int8_rows=[row for variant in compared for row in _int8_rows(variant)],
        class_head=["Class", *(f"#{variant.variant}" for variant in compared)],
        class_rows=[[name, *(figure(variant.per_class.get(name, -1.0)) for variant in compared)] for name in names],
        published_charts=_published_charts(published),
        published_head=_PUBLISHED_HEAD,
        published=[
            (title, speed_note(rows), [_published_row(row) for row in rows]) for title, rows in families.items()
        ],
    )


def _charts(dots: Mapping[str, Sequence[Dot]], y_name: str) -> list[Markup]:
    return [scatter(drawn, x_name, y_name) for x_name, drawn in dots.items()]


def _measured_charts(compared: Sequence[Compared]) -> list[Markup]:
    def dots(x: Mapping[str, float]) -> list[Dot]:
        return [
            Dot(v.variant, x[v.variant], v.metrics["AP"], v.metrics.get("AP_low"), v.metrics.get("AP_high"))
            for v in compared
        ]

    costs = {
        "latency of an image, ms": [
            *dots({v.variant: v.latency_ms for v in compared}),
            *_int8_dots(compared, lambda one: one.latency_ms),
        ],
        "parameters, millions": dots({v.variant: v.parameters / 1e6 for v in compared}),
        "GFLOPs": dots({v.variant: v.gflops for v in compared}),
    }
    if any(variant.int8 for variant in compared):
        sizes = dots({v.variant: v.size_mb for v in compared})
        costs["size of the file, MB"] = [*sizes, *_int8_dots(compared, lambda one: one.size_mb)]
    return _charts(costs, "AP")


def _int8_dots(compared: Sequence[Compared], cost: Callable[[Compared | Int8Compared], float]) -> list[Dot]:
    return [
        Dot(f"{v.variant}, {one.file}", cost(one), one.metrics["AP"], beside=(cost(v), v.metrics["AP"]))
        for v in compared
        for one in v.int8
    ]


_INT8_HEAD = ["Variant", "File", "Runtime", "#AP", "#Difference (95 %)", "#AP50", "#AP75", "#Latency, ms"]
_INT8_HEAD += ["#Times as fast", "#MB"]


def _int8_rows(variant: Compared) -> list[list[str]]:
    """The float file, then the int8 files; none for a variant without."""
    if not variant.int8:
        return []
    rows = [_int8_row(variant.variant, "model.onnx", variant, MISSING, 1.0)]
    for one in variant.int8:
        value, low, high = one.difference
        change = f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
        rows.append(_int8_row(variant.variant, one.file, one, change, variant.latency_ms / one.latency_ms))
    return rows


def _int8_row(variant: str, file: str, one: Compared | Int8Compared, change: str, ratio: float) -> list[str]:
    ap, ap50, ap75 = (figure(one.metrics[name]) for name in ("AP", "AP50", "AP75"))
    times = [f"{one.latency_ms:.1f}", f"{ratio:.2f}"]
    return [variant, file, runtime_of(file), ap, change, ap50, ap75, *times, f"{one.size_mb:.1f}"]


def _measured_head(compared: Sequence[Compared]) -> list[str]:
    notes = list(compared[0].notes) if compared else []
    head = ["Variant", "Family", "#AP (95 %)", "#AP50", "#AP75", "#APs", "#APm", "#APl", "#Latency, ms (10–90 %)"]
    return [*head, "#Params, M", "#GFLOPs", "#Input", "#MB", *notes]


def _measured_row(variant: Compared, family: str) -> list[str]:
    low, high = (figure(variant.metrics.get(name, -1.0)) for name in ("AP_low", "AP_high"))
    return [
        variant.variant,
        family,
        f"{figure(variant.metrics['AP'])} ({low}–{high})",
        *(figure(variant.metrics[name]) for name in ("AP50", "AP75", "APs", "APm", "APl")),
        f"{variant.latency_ms:.1f} ({variant.latency_low:.1f}–{variant.latency_high:.1f})",
        f"{variant.parameters / 1e6:.2f}",
        f"{variant.gflops:.1f}",
        str(variant.image_size),
        f"{variant.size_mb:.1f}",
        *variant.notes.values(),
    ]


def _published_charts(published: Sequence[VariantInfo]) -> list[Markup]:
    known = [(row, row.published) for row in published if row.published is not None]
    latencies: dict[str, list[Dot]] = {}  # a chart per device and precision: others do not compare
    for row, said in known:
        if (speed := said.speed) is not None:
            x_name = f"latency on one {speed.device}, {speed.precision}, ms"
            latencies.setdefault(x_name, []).append(Dot(row.variant, round(1000 / speed.fps, 1), said.ap))
    costs = {
        **(latencies or {"latency, ms": []}),
        "parameters, millions": [Dot(row.variant, row.parameters_deploy / 1e6, said.ap) for row, said in known],
        "GFLOPs": [Dot(row.variant, row.gflops_deploy, said.ap) for row, said in known],
    }
    return _charts(costs, "published AP, %")


_PUBLISHED_HEAD = [
    "Variant",
    "#AP, %",
    "#AP50, %",
    "#AP75, %",
    "Measured on",
    "#FPS",
    "FPS on",
    "#Parameters",
    "#GFLOPs",
    "#Input",
]


def _published_row(row: VariantInfo) -> list[str]:
    cells = [MISSING, MISSING, MISSING, "", MISSING, ""]
    if (said := row.published) is not None:
        shares = [MISSING if share is None else f"{share:.1f}" for share in (said.ap, said.ap50, said.ap75)]
        speed = [MISSING, ""]
        if said.speed is not None:
            speed = [str(said.speed.fps), f"{said.speed.device} {said.speed.precision}"]
        cells = [*shares, f"{said.split}, {said.image_size} px", *speed]
    return [row.variant, *cells, f"{row.parameters_deploy:,}", f"{row.gflops_deploy:.1f}", str(row.image_size)]
