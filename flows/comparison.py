"""At the end of a run of several variants: the page that compares them (:mod:`stages.compare_variants`)."""

from __future__ import annotations

import sys
from pathlib import Path

from flows.report import FamilyReport
from flows.runner.pipeline import Log, Outcome, Pipeline, StageError

PAGE = Path("reports/comparison.html")


def compare_variants(pipeline: Pipeline, report: FamilyReport, log: Log) -> None:
    """Make the page where at least two variants are measured and one of them anew; it is named in the run's report.

    A page that cannot be made is a warning: everything it would show is in the variants' own reports.
    """
    if sum(variant.ap is not None for variant in report.variants) < 2:
        return
    measured = (stage.outcome for stage in report.stages if stage.stage.startswith("evaluate@"))
    if not (pipeline.root / PAGE).is_file() or any(outcome is not Outcome.UNCHANGED for outcome in measured):
        try:
            pipeline.run("compare", [sys.executable, "-m", "stages.compare_variants"], log)
        except StageError as error:
            log.warning("the variants are not compared: %s", error)
            return
    report.comparison = PAGE
