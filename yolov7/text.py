"""Text for people: names from outside, made safe to write to a terminal, CSV, JSON and Markdown; long lists cut."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")
# C0 and C1, marks that turn the direction of writing, the byte-order mark, halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_UNSAFE_IN_JSON = re.compile(f"{_CONTROL.pattern}|[\x85\u2028\u2029]")
_UNSAFE_ON_TERMINAL = re.compile(f"{_CONTROL.pattern}|[\v\f\r\x1c-\x1f\x85\u2028\u2029]")

_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20\u2212"
# Spreadsheets skip blanks before a formula; with `;` as their separator they split our cells there.
_FORMULA = re.compile(rf"(^'*|;)(?=[\s\u200b\ufeff]*[{_SIGNS}])")
# Possessive, so that many digits and a bad letter cost linear time.
NUMBER = re.compile(r"[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?", re.ASCII)
"""A decimal number; `float` would also accept `nan`, `inf` and `1_0`."""

_WWW = re.compile(r"(www)\.", re.IGNORECASE)
_MARKDOWN = re.compile(r"([\\`*\[\]|])")


def printable(text: str) -> str:
    """Text in one line without control characters: line breaks and tabs become blanks, the others `\\x1b`, `\\u202e`.

    Text without any of them is returned as it is.
    """
    broken = _BREAKS.sub(" ", text)
    return _CONTROL.sub(_escape, text if broken == text else broken.strip())


def for_terminal(text: str) -> str:
    """Several lines without control characters but line breaks and tabs."""
    return _UNSAFE_ON_TERMINAL.sub(_escape, text)


def printable_json(text: str) -> str:
    """JSON with the control characters in its texts escaped; it means the same."""
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def listed(items: Sequence[str], *, most: int = 5, joint: str = ", ") -> str:
    """The first few of many items, and how many more there are: `a, b and 3 more`."""
    more = len(items) - most
    separator = " " if joint == ", " else joint
    return joint.join(items[:most]) + (f"{separator}and {more} more" if more > 0 else "")


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet runs: text that begins like a formula gets an apostrophe in front.

    Numbers, and texts that are one, stay as they are.
    """
    if not isinstance(value, str) or NUMBER.fullmatch(value):
        return value
    return _FORMULA.sub(r"\1'", printable(value))


class Rows:
    """A CSV file of :func:`csv_cell` cells."""

    def __init__(self, file: _Writable):
        self._writer = csv.writer(file, lineterminator="\n")  # it quotes: a class may be called "knife, kitchen"

    def write(self, cells: Iterable[Any]) -> None:
        """Append a row."""
        self._writer.writerow([csv_cell(cell) for cell in cells])


class _Writable(Protocol):
    def write(self, text: str, /) -> object: ...


def csv_text(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A whole CSV file."""
    text = io.StringIO()
    table = Rows(text)
    table.write(header)
    for row in rows:
        table.write(row)
    return text.getvalue()


def markdown(text: str) -> str:
    """Text that Markdown shows as it is: no tables, links, images, addresses, code or HTML begin in it."""
    plain = _MARKDOWN.sub(r"\\\1", printable(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = _WWW.sub(r"\1&#46;", plain)  # an address even without a scheme
    return plain.replace("://", ":&#47;/").replace("\r", " ").replace("\n", " ")


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
