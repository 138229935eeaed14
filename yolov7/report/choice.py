"""The page of a choice: the recommendation with its reasons, and AP over latency with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from yolov7.report.charts import Dot, scatter
from yolov7.report.int8 import HEAD, EightBits, FileFigures, figure_rows
from yolov7.report.page import MISSING, figure, render


@dataclass(frozen=True)
class Finalist:
    """A candidate of the last rung, measured on the test split."""

    variant: str
    ap: float
    ap_low: float
    ap_high: float
    """Ends of the 95 % interval."""
    latency_ms: float
    size_mb: float
    training_minutes: float
    on_front: bool = False
    """No other finalist is faster and of higher AP."""
    ruled_out: bool = False


@dataclass(frozen=True)
class ChoiceDocument:
    """A choice for its page."""

    recommended: str | None
    reasons: Sequence[str]
    finalists: Sequence[Finalist]
    standings: Sequence[tuple[str, int, float, float]]
    """Variant, epochs, best validation AP and minutes of every training."""
    ruled_out: Sequence[tuple[str, str, str]] = ()
    """Variant, limit and finding."""
    int8: Mapping[str, EightBits] = field(default_factory=dict)
    """The int8 files of the finalists that have some, by variant."""


def render_choice(facts: Mapping[str, str], choice: ChoiceDocument) -> str:
    """The page; `facts` describe data, limits and machine."""
    front = sorted((each.latency_ms, each.ap) for each in choice.finalists if each.on_front)
    dots = [Dot(each.variant, each.latency_ms, each.ap, each.ap_low, each.ap_high) for each in choice.finalists]
    sizes = [Dot(each.variant, each.size_mb, each.ap, each.ap_low, each.ap_high) for each in choice.finalists]
    dots += _int8_dots(choice, lambda one: one.latency_ms, lambda file: file.latency_ms)
    sizes += _int8_dots(choice, lambda one: one.size_mb, lambda file: file.size_mb)
    rungs = sorted({epochs for _, epochs, _, _ in choice.standings})
    return render(
        "choice",
        title="Which network for my data?",
        facts=facts,
        reasons=choice.reasons,
        chart=scatter(dots, "latency of an image, ms", "test AP", front=front),
        size_chart=scatter(sizes, "size of the ONNX file, MB", "test AP"),
        head=["Variant", "#AP (95 %)", "#Latency, ms", "#MB", "#Training, min", ""],
        rows=[_row(each, choice.recommended) for each in choice.finalists],
        rung_head=["Variant", *(f"#{epochs} epochs" for epochs in rungs), "#Minutes"],
        rung_rows=_rungs(choice, rungs),
        int8_head=["Variant", *HEAD],
        int8_rows=[[variant, *row] for variant, found in choice.int8.items() for row in figure_rows(found)],
        out_head=["Variant", "Limit", "Found"],
        out_rows=[list(each) for each in choice.ruled_out],
    )


def _row(each: Finalist, recommended: str | None) -> list[str]:
    notes = ["recommended"] * (each.variant == recommended) + ["on the front"] * each.on_front
    notes += ["beyond a limit"] * each.ruled_out
    return [
        each.variant,
        f"{figure(each.ap)} ({figure(each.ap_low)}–{figure(each.ap_high)})",
        f"{each.latency_ms:.1f}",
        f"{each.size_mb:.1f}",
        f"{each.training_minutes:.1f}",
        ", ".join(notes),
    ]


def _int8_dots(
    choice: ChoiceDocument, cost: Callable[[Finalist], float], of: Callable[[FileFigures], float]
) -> list[Dot]:
    """Each int8 file beside its float file, at the ratio of their costs measured here."""
    places = {each.variant: each for each in choice.finalists}
    dots = []
    for variant, found in choice.int8.items():
        x, y = cost(places[variant]), places[variant].ap
        for one in found.files:
            name, ratio = f"{variant}, {one.measured.file}", of(one.measured) / of(found.float_file)
            dots.append(Dot(name, x * ratio, one.measured.metrics["AP"], beside=(x, y)))
    return dots


def _rungs(choice: ChoiceDocument, rungs: Sequence[int]) -> list[list[str]]:
    variants = list(dict.fromkeys(variant for variant, *_ in choice.standings))
    aps = {(variant, epochs): ap for variant, epochs, ap, _ in choice.standings}
    minutes = {name: sum(took for variant, _, _, took in choice.standings if variant == name) for name in variants}
    return [
        [
            name,
            *(figure(aps[name, epochs]) if (name, epochs) in aps else MISSING for epochs in rungs),
            f"{minutes[name]:.1f}",
        ]
        for name in variants
    ]
