"""Tables in a narrow terminal: nothing is cut, and the first column is in each part."""

from __future__ import annotations

import io

import pytest
import rich.console

from yolov7.catalogue import listed_infos, sections
from yolov7.tables import parts, print_table


@pytest.fixture(scope="module")
def rows():
    (section,) = sections(listed_infos(["yolov7-tiny-silu"]))
    return section.rows


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_names_and_figures_are_whole(rows, width, monkeypatch):
    heading, *lines = rows
    out = io.StringIO()
    narrow = rich.console.Console(file=out, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(rich.console, "Console", lambda: narrow)
    print_table(heading, lines, left=1)
    shown = out.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    for text in (*heading, *lines[0]):
        assert text in shown


@pytest.mark.parametrize(("columns", "longest"), [("80", 80), (None, 200)])
def test_a_pipe_is_as_wide_as_it_is_told(rows, columns, longest, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    print_table(rows[0], rows[1:], left=1)
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines) and longest - 120 < max(map(len, lines)) <= longest


@pytest.mark.parametrize("name", ["[bold]x", "[link=http://evil]a[/link]", "[/x].onnx", ":smile:"])
def test_a_name_is_no_markup(name, capsys):
    print_table(("file", "n"), [(name, "1")], left=1)
    assert name in capsys.readouterr().out
    print_table(("file", "n"), [("a\x1b[31m\n", "1")], left=1)
    assert "\x1b" not in capsys.readouterr().out


def test_a_wide_terminal_has_one_table():
    heading, lines = ("name", "a", "b"), [("x", "1", "2")]
    assert list(parts(heading, lines, 80)) == [[0, 1, 2]]
    assert list(parts(heading, lines, 11)) == [[0, 1], [0, 2]]
    assert list(parts(heading, lines, 3)) == [[0, 1], [0, 2]], "a column at least"
