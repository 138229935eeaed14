"""What a training says on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from yolov7.train.progress import ProgressDisplay


@pytest.mark.parametrize("name", ["[/b].jpg", "[link=http://evil]a[/link]", "a:smile:b"])
def test_a_name_in_a_note_is_no_markup(name):
    out = io.StringIO()
    ProgressDisplay(Console(file=out, soft_wrap=True)).note(f"{name} is not used\x1b[2J")
    assert out.getvalue() == f"{name} is not used\\x1b[2J\n"
