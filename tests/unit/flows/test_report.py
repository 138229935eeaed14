"""The report of a run: tables, page, summary."""

from __future__ import annotations

import json
from dataclasses import replace

from flows.promotion.judge import Decision, describe
from flows.report import COLUMNS, RunReport, VariantReport, decision_lines, markdown, rows
from flows.runner.pipeline import StageOutcome, StageResult


def decision(outcome: str = "promoted", *, dry_run: bool = False) -> Decision:
    return Decision("tiny", outcome, "because", 3, 0.6, 2, 0.5, "hash", dry_run=dry_run)


def test_summary_never_claims_that_nothing_was_done_when_something_was() -> None:
    report = RunReport(data=[StageResult("ingest", StageOutcome.UNCHANGED, 1.0)])
    assert report.summary == "Nothing was recomputed: all 1 stages are up to date."
    report.variants = [VariantReport("tiny", stages=[StageResult("train@tiny", StageOutcome.RAN, 61.0)])]
    assert report.summary == "1 of 2 stages ran (train@tiny)."
    report.data = [StageResult("ingest", StageOutcome.RESTORED, 1.0)]
    assert report.summary == "1 of 2 stages ran (train@tiny); 1 restored from the cache (ingest)."
    report.variants[0].error = "stage export of variant tiny failed"
    assert report.summary.endswith("; 1 failed.") and report.failures == ["stage export of variant tiny failed"]
    assert RunReport().summary == "Nothing was run."


def test_page_holds_figures_decision_stages_and_failures() -> None:
    done = VariantReport("tiny", [StageResult("train@tiny", StageOutcome.RAN, 61.0)], ap=0.6123, ap50=0.9)
    done.version, done.size_bytes, done.decision = 3, 24_600_000, decision()
    failed = VariantReport("large", error="stage train of variant large failed: a | b")
    page = markdown(RunReport(variants=[done, failed], errors=["push: no remote"]))
    assert "| tiny | 0.612 | 0.900 | 24.6 MB | 3 | 3 | promoted | 1 min 1 s |" in page
    assert "| large | - | - | - | - | - | failed | 0 s |" in page
    assert "- `tiny`: **version 3 promoted**, because" in page
    assert "- push: no remote" in page and "a \\| b" in page
    assert all(len(row) == len(COLUMNS) for row in rows([done, failed]))


def test_int8_files_have_a_section_where_there_are_some(tmp_path) -> None:
    done = VariantReport("tiny", ap=0.6, ap50=0.9)
    assert "Int8" not in markdown(RunReport(variants=[done]))
    found = {"AP": 0.5912, "AP_difference": {"value": -0.0088}, "size_mb": 6.4}
    (tmp_path / "reports/tiny").mkdir(parents=True)
    document = {"AP": 0.6, "AP50": 0.9, "int8": {"model-int8.onnx": found}}
    (tmp_path / "reports/tiny/metrics.json").write_text(json.dumps(document))
    page = markdown(RunReport(variants=[done.with_results(tmp_path)]))
    assert "## Int8\n\n- `tiny`, `model-int8.onnx`: AP 0.591 (-0.0088 against float), 6.4 MB" in page


def test_a_decision_shows_float_and_int8_of_both_models() -> None:
    ours = {"AP": 0.6, "size_mb": 24.2, "latency_ms": 20.0}
    int8 = {"model-int8.onnx": {"AP": 0.5912, "size_mb": 6.4, "latency_ms": 12.5}}
    lines = decision_lines([replace(decision(), evidence={"challenger": {**ours, "int8": int8}, "champion": ours})])
    assert lines[1:] == [
        "  - challenger, version 3: float AP 0.6000, 24.2 MB, 20.0 ms; "
        "`model-int8.onnx` AP 0.5912 (-0.0088), 6.4 MB, 12.5 ms",
        "  - champion, version 2: float AP 0.6000, 24.2 MB, 20.0 ms",
    ]
    assert decision_lines([replace(decision(), evidence={"challenger": ours, "champion": ours})])[1:] == []
    first = decision_lines([replace(decision(), evidence={"challenger": {**ours, "size_mb": None, "int8": int8}})])
    assert len(first) == 2 and "float AP 0.6000, 20.0 ms;" in first[1]


def test_decision_says_what_holds_now() -> None:
    assert decision().champion_now == 3
    assert decision("kept").champion_now == 2
    trial = decision(dry_run=True)
    assert trial.champion_now == 2
    assert describe(trial) == "tiny: version 3 would be promoted: because"
