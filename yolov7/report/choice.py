"""The page of a choice: the recommendation with its reasons, and AP over latency with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from yolov7.report.charts import Dot, scatter
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


def render_choice(facts: Mapping[str, str], choice: ChoiceDocument) -> str:
    """The page; `facts` describe data, limits and machine."""
    front = sorted((each.latency_ms, each.ap) for each in choice.finalists if each.on_front)
    dots = [Dot(each.variant, each.latency_ms, each.ap, each.ap_low, each.ap_high) for each in choice.finalists]
    sizes = [Dot(each.variant, each.size_mb, each.ap, each.ap_low, each.ap_high) for each in choice.finalists]
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
