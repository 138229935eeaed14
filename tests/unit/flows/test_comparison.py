"""The comparison of variants at the end of a run: when it is made, and its messages."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flows.comparison import PAGE, compare_variants
from flows.report import RunReport, VariantReport, markdown
from flows.runner.pipeline import StageError, StageOutcome, StageResult

LOG = logging.getLogger("test")


class Commands:
    """Fake pipeline: keeps the commands, and makes the page or fails."""

    def __init__(self, root: Path, fails: bool = False):
        self.root, self.fails, self.ran = root, fails, []

    def run(self, name, command, log):
        self.ran.append((name, command[1:]))
        if self.fails:
            raise StageError("no variant is evaluated on the current test data", stage=name)
        (self.root / PAGE).parent.mkdir(exist_ok=True)
        (self.root / PAGE).write_text("<!doctype html>")


def variants(*aps: float | None, outcome: StageOutcome = StageOutcome.RAN) -> list[VariantReport]:
    return [VariantReport(f"v{i}", [StageResult(f"evaluate@v{i}", outcome, 1.0)], ap=ap) for i, ap in enumerate(aps)]


def test_several_variants_are_compared_when_one_is_new(tmp_path: Path) -> None:
    pipeline, reports = Commands(tmp_path), variants(0.5, None, 0.6)
    page = compare_variants(pipeline, reports, LOG)
    assert pipeline.ran == [("compare", ["-m", "stages.compare_variants"])]
    assert f"`{PAGE}`" in markdown(RunReport(variants=reports, comparison=page))
    again = compare_variants(pipeline, variants(0.5, 0.6, outcome=StageOutcome.UNCHANGED), LOG)
    assert len(pipeline.ran) == 1 and again == PAGE, "what is there already is only named"


def test_one_variant_is_not_compared(tmp_path: Path) -> None:
    pipeline, reports = Commands(tmp_path), variants(0.5, None)
    page = compare_variants(pipeline, reports, LOG)
    assert not pipeline.ran and "comparison" not in markdown(RunReport(variants=reports, comparison=page))


def test_a_comparison_that_fails_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    page = compare_variants(Commands(tmp_path, fails=True), variants(0.5, 0.6), LOG)
    assert "the variants are not compared" in caplog.text
    assert page is None
