"""The page that compares the variants, made at the end of a run (:mod:`stages.compare_variants`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flows.report import VariantReport
from flows.runner.pipeline import Log, Pipeline, StageError, StageOutcome

PAGE = Path("reports/comparison.html")


def compare_variants(pipeline: Pipeline, reports: Sequence[VariantReport], log: Log) -> Path | None:
    """Path of the page, made again if a variant was measured in this run; None with fewer than two measured variants.

    A page that cannot be made is only a warning: the variants' own reports hold everything it would show.
    """
    if sum(report.ap is not None for report in reports) < 2:
        return None
    stages = [result for report in reports for result in report.stages if result.stage.startswith("evaluate@")]
    measured = any(result.outcome is not StageOutcome.UNCHANGED for result in stages)
    if measured or not (pipeline.root / PAGE).is_file():
        try:
            pipeline.run("compare", [sys.executable, "-m", "stages.compare_variants"], log)
        except StageError as error:
            log.warning("the variants are not compared: %s", error)
            return None
    return PAGE
