"""Tables for a terminal: whole words and figures, whatever its width."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from yolov7.text import printable

_GAP = 3
"""Characters between two columns."""
_NO_TERMINAL = 200
"""Width for a file or a pipe."""


def print_table(heading: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> None:
    """A table on stdout; the first `left` columns hold words, the others numbers.

    Columns that do not fit beside each other follow in a second table, after the first column again.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_NO_TERMINAL)
    for columns in parts(heading, lines, console.width):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for i in columns:
            justify = "left" if i < left else "right"
            table.add_column(Text(heading[i]), justify=justify, no_wrap=i > 0, overflow="fold")  # type: ignore[arg-type]
        for line in lines:
            table.add_row(*(Text(printable(line[i])) for i in columns))  # a file may be called [/b].onnx
        console.print(table)


def parts(heading: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> Iterator[list[int]]:
    """The columns of each table that fits into `width`, the first column in all of them."""
    widths = [max(len(line[i]) for line in (heading, *lines)) for i in range(len(heading))]
    columns, used = [0], widths[0]
    for i in range(1, len(heading)):
        if len(columns) > 1 and used + _GAP + widths[i] + 2 > width:
            yield columns
            columns, used = [0], widths[0]
        columns.append(i)
        used += _GAP + widths[i]
    yield columns
