"""Read an annotation file piece by piece: its lists come in batches of records, so that its size does not matter.

Runs of whole records are parsed by orjson. What that refuses, or may read otherwise than Python's own parser (NaN,
whole numbers of more than 64 bits, lone surrogates), and the ends of the lists go through Python's, record by record:
values, messages and places are those of :func:`yolov7.data.formats.coco.parse_coco`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from yolov7.data.formats.coco import NESTED, parse_coco, parse_integer
from yolov7.errors import DataError

_WINDOW = 1 << 20
"""Bytes read at a time; more than a byte-order mark has."""
_TRIES = 8
"""Places looked at for the border between two records."""
_NEAR = 16
"""Characters before the end of a window in which an error may be the cut: longer than any word or escape."""
_SPACE = re.compile(r"[ \t\n\r]*")
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_CONTINUATION = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that begin no character."""
_NUMBER = "0123456789+-.eE"
"""Characters of numbers."""
_LONG = b"0" * 19
"""Whole numbers of more digits may not fit 64 bits."""


@dataclass(frozen=True)
class Begin:
    """A list of the top level begins. A name given twice counts the second time, as in every JSON reader."""

    name: str


@dataclass(frozen=True)
class Batch:
    """Some elements of a list, in their order."""

    name: str
    records: list[Any]


@dataclass(frozen=True)
class Value:
    """A value of the top level that is not a list."""

    name: str
    value: Any


Part = Begin | Batch | Value


def stream_coco(path: Path) -> Iterator[Part]:
    """The content of an annotation file, unchecked, in the order of the file.

    Raises :class:`DataError` as :func:`parse_coco`, though only when the place is reached: for no such file, not
    UTF-8, not JSON, a top level that is not an object, a whole number of more than 64 bits.
    """
    try:
        with path.open("rb") as file:
            window = _Window(file)
            window.skip_mark()
            try:
                if window.peek() != "{":
                    parse_coco(path)  # names what is there instead
                yield from _members(window)
            except json.JSONDecodeError as error:
                raise _not_json(path, window, error) from None
            except UnicodeDecodeError:
                raise _not_utf8(path) or DataError("not UTF-8", path=path) from None
            except RecursionError:
                raise DataError(NESTED, path=path) from None
            except ValueError as error:  # from parse_integer
                raise _not_utf8(path) or DataError(str(error), path=path) from None
    except FileNotFoundError:
        raise DataError("no such annotation file", path=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None


class _Window:
    """The part of the file that is looked at: its bytes, and its text where Python's parser is asked."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.data = b""
        self.begin = 0
        """Place of `data` in the file."""
        self.ended = False
        self._size = _WINDOW
        self.decode = json.JSONDecoder(parse_int=parse_integer).raw_decode
        self._text: str | None = None

    def skip_mark(self) -> None:
        self.fill()
        if self.data.startswith(codecs.BOM_UTF8):
            self.drop(len(codecs.BOM_UTF8))

    def fill(self) -> None:
        """Read on until the window is full or the file ends."""
        pieces = [self.data]
        lacking = self._size - len(self.data)
        while lacking > 0 and not self.ended:
            piece = self._file.read(lacking)
            self.ended = not piece
            lacking -= len(piece)
            pieces.append(piece)
        if len(pieces) > 1:
            self.data, self._text = b"".join(pieces), None

    def grow(self) -> None:
        self._size = 2 * max(self._size, len(self.data))
        self.fill()

    def drop(self, count: int) -> None:
        """Go on behind the next `count` bytes."""
        self.data, self._text = self.data[count:], None
        self.begin += count
        self._size = _WINDOW

    @property
    def text(self) -> str:
        """The window's text, without a character that the window cuts."""
        if self._text is None:
            self._text = codecs.utf_8_decode(self.data, "strict", self.ended)[0]
        return self._text

    def advance(self, characters: int) -> None:
        """Go on behind the next characters of the text."""
        text = self.text
        rest = text[characters:]
        self.drop(len(text[:characters].encode()))
        self._text = rest

    def peek(self) -> str:
        """The next character that is not space; empty at the end of the file."""
        while True:
            self.fill()
            end = _end_of_space(self.text, 0)
            if end < len(self.text) or self.ended:
                if end:
                    self.advance(end)
                return self.text[:1]
            self.advance(end)

    def take_value(self) -> Any:
        """The next value, whatever its size."""
        while True:
            text = self.text
            try:
                value, end = self.decode(text, 0)
            except json.JSONDecodeError as error:
                self._cut_or_wrong(error)
            except ValueError:  # from parse_integer; the window may cut a fraction or an exponent off
                if self.ended or text[-1] not in _NUMBER:
                    raise
                self.grow()
            else:
                if end < len(text) or self.ended:
                    self.advance(end)
                    return value
                self.grow()

    def _cut_or_wrong(self, error: json.JSONDecodeError) -> None:
        """Read on if the error may come from the end of the window; otherwise raise it."""
        unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(error.doc) - _NEAR
        if self.ended or not unfinished:
            raise error
        self.grow()

    def refuse(self, before: str) -> None:
        """Raise the error of Python's parser for this place; `before` stands for what it has read already."""
        self.fill()
        try:
            json.loads(before + self.text)
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, self.text, max(0, error.pos - len(before))) from None
        raise AssertionError(f"{before!r} and {self.text[:40]!r} are JSON")


def _end_of_space(text: str, start: int) -> int:
    found = _SPACE.match(text, start)
    return found.end() if found else start


def _members(window: _Window) -> Iterator[Part]:
    window.advance(1)
    if window.peek() == "}":
        window.advance(1)
    else:
        before = "{"
        while True:
            if window.peek() != '"':
                window.refuse(before)
            before = '{"a":0,'
            name = window.take_value()
            if window.peek() != ":":
                window.refuse('{"a"')
            window.advance(1)
            if window.peek() == "[":
                window.advance(1)
                yield Begin(name)
                yield from _elements(window, name)
            else:
                yield Value(name, window.take_value())
            if window.peek() not in (",", "}"):
                window.refuse('{"a":0')
            last = window.text[:1] == "}"
            window.advance(1)
            if last:
                break
    if window.peek():
        window.refuse("{}")


def _elements(window: _Window, name: str) -> Iterator[Batch]:
    if window.peek() == "]":
        window.advance(1)
        return
    while True:
        window.fill()
        records = _fast(window)
        if records is not None:
            yield Batch(name, records)
            continue
        records, ended = _exact(window)
        yield Batch(name, records)
        if ended:
            return


def _fast(window: _Window) -> list[Any] | None:
    """The whole records of the window but the last, parsed at once; None where that is left to Python's parser.

    A wrong guess of the border leaves unbalanced text, which orjson refuses.
    """
    import orjson  # a served model, whose code includes this module, reads no annotations and goes without it

    cut = _border(window.data)
    if cut is None:
        return None
    data = window.data[:cut]
    if _LONG in data.translate(_DIGITS_AS_ZEROS):
        return None
    try:
        records: list[Any] = orjson.loads(b"[" + data + b"]")
    except orjson.JSONDecodeError:
        return None
    rest = window.data[cut:].lstrip(b" \t\n\r")[1:].lstrip(b" \t\n\r")  # the comma, and space around it
    window.drop(len(window.data) - len(rest))
    return records


def _border(data: bytes) -> int | None:
    """The end of an object that a comma and another object follow, as late as possible."""
    end = len(data)
    for _ in range(_TRIES):
        end = data.rfind(b"{", 0, end)
        if end < 0:
            return None
        before = data[max(0, end - 64) : end].rstrip(b" \t\n\r")
        if before.endswith(b","):
            before = before[:-1].rstrip(b" \t\n\r")
            if before.endswith(b"}"):
                return max(0, end - 64) + len(before)
    return None


def _exact(window: _Window) -> tuple[list[Any], bool]:
    """The next records, by Python's parser: half a window of them at most; and whether the list has ended."""
    text, at = window.text, 0
    records: list[Any] = []
    while at <= len(text) // 2:
        start = _end_of_space(text, at)
        try:
            value, end = window.decode(text, start)
        except ValueError:  # not JSON, or a number too large
            break
        end = _end_of_space(text, end)
        if text[end : end + 1] not in (",", "]") or end == len(text):
            break
        records.append(value)
        at = end + 1
        if text[end] == "]":
            window.advance(at)
            return records, True
    window.advance(at)
    if records:
        return records, False
    value, following = _take_element(window)  # larger than half a window, or wrong
    return [value], following == "]"


def _take_element(window: _Window) -> tuple[Any, str]:
    """One element, and the comma or bracket behind it."""
    if window.peek() in ("]", ""):
        window.refuse("[0,")
    value = window.take_value()
    following = window.peek()
    if following not in (",", "]") or not following:
        window.refuse("[0")
    window.advance(1)
    return value, following


def _not_json(path: Path, window: _Window, error: json.JSONDecodeError) -> DataError:
    at = window.begin + len(error.doc[: error.pos].encode())
    line, column = _place(path, at)
    wrong = DataError(f"not JSON (line {line}, column {column}: {error.msg}); is the file complete?", path=path)
    return _not_utf8(path) or wrong


def _place(path: Path, position: int) -> tuple[int, int]:
    """Line and column, in characters, of a byte of the file."""
    lines, column = 0, 0
    with path.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        left = position - file.tell()
        while left > 0 and (piece := file.read(min(left, _WINDOW))):
            left -= len(piece)
            lines += piece.count(b"\n")
            start = piece.rfind(b"\n") + 1
            column = _characters(piece[start:]) + (0 if start else column)
    return lines + 1, column + 1


def _characters(data: bytes) -> int:
    """Characters that begin in some bytes of UTF-8."""
    return len(data.translate(None, _CONTINUATION))


def _not_utf8(path: Path) -> DataError | None:
    """The error of a file that is not UTF-8: it comes before every other."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0  # bytes, without the mark
    with path.open("rb") as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        while True:
            piece = file.read(_WINDOW)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                at = read - pending + error.start
                return DataError(f"not UTF-8 at byte {at}; save the annotations as UTF-8 JSON", path=path)
            if not piece:
                return None
            read += len(piece)
