"""Markdown for the pages of the flows: tables, sections, lists, times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flows.runner.pipeline import StageResult
from yolov7.text import printable


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; cells are escaped."""
    lines = [columns, *([escape(str(cell)) for cell in row] for row in rows)]
    head, *body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return [head, "|" + " --- |" * len(columns), *body]


def stage_table(results: Iterable[StageResult]) -> list[str]:
    """Stages with their outcome and time."""
    rows = [(f"`{result.stage}`", result.outcome, duration(result.seconds)) for result in results]
    return table(("stage", "what happened", "time"), rows)


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A heading and `lines` below it; nothing without lines."""
    return ["", f"## {title}", "", *lines] if lines else []


def bullets(texts: Iterable[str]) -> list[str]:
    """A list; texts are escaped."""
    return [f"- {escape(text)}" for text in texts]


def escape(text: str) -> str:
    """Text that stays inside its table cell or list item, and begins no link, image or HTML; code (`x`) stays code."""
    plain = printable(text).replace("\\", "\\\\")  # or a backslash of theirs takes the force of ours
    return plain.replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def duration(seconds: float) -> str:
    """`4 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
