"""The Markdown of the flows' pages."""

from __future__ import annotations

from flows.markdown import bullets, duration, section, stage_table, table
from flows.runner.pipeline import StageOutcome, StageResult


def test_duration() -> None:
    assert [duration(s) for s in (0.4, 59.4, 61, 3600, 7500)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 5 min"]


def test_cells_and_items_stay_where_they_are() -> None:
    assert table(("a", "b"), [("x|y", 1)]) == ["| a | b |", "| --- | --- |", "| x\\|y | 1 |"]
    assert bullets(["one\ntwo"]) == ["- one two"]
    assert bullets([r"\[x](http://evil)", r"a\|b"]) == [r"- \\\[x](http://evil)", r"- a\\\|b"]


def test_stages_are_a_table() -> None:
    *_, row = stage_table([StageResult("train@tiny", StageOutcome.RAN, 61.0)])
    assert row == "| `train@tiny` | ran | 1 min 1 s |"


def test_an_empty_section_has_no_heading() -> None:
    assert section("Failures", []) == []
    assert section("Failures", ["- one"]) == ["", "## Failures", "", "- one"]
