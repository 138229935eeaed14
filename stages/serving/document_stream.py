"""A JSON document that is read while it arrives: its long texts are decoded as images, the rest is kept as a skeleton.

The limits hold at every piece, not at the end: parts of the document, images, and bytes of each. What is kept is the
image files themselves and a skeleton of a few kilobytes, in which a long text is a placeholder. Each step costs time in
proportion to its piece, so that a server that feeds pieces of 64 kB is never busy for more than a millisecond or so.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any, NoReturn

from stages.serving.base64_stream import LETTERS, ImageText, NotBase64, TooLong

_LONG = 256
"""Bytes of a text from which it is decoded on the way; shorter ones stay in the skeleton."""
_SKELETON, _SKELETON_PER_IMAGE = 8192, 1024

_BLANKS = re.compile(rb"[ \t\r\n]+")
# Possessive: the text ends at a quote or at an escape that has not arrived as a whole.
_TEXT = re.compile(rb"(?:[^\"\\]++|\\(?:u[0-9a-fA-F]{4}|[^u]))*+", re.DOTALL)
_PARTIAL_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?")
_TABLES = (b"dataframe_split", b"dataframe_records", b"instances", b"inputs", b"data")
_KEYS = (b"image", b"columns", b"params", b"index", b"confidence", b"iou")


class FormError(ValueError):
    """The document is not one of the documented forms, or exceeds a limit."""


class DocumentStream:
    """Reader of one document: :meth:`feed` its bytes, then :meth:`finish`.

    Both raise :class:`FormError`. Reasons never repeat the document's content.
    """

    def __init__(self, *, max_images: int, max_image_bytes: int):
        self._max_images, self._max_image_bytes = max_images, max_image_bytes
        self._max_parts = 32 + 8 * max_images
        self._max_skeleton = _SKELETON + _SKELETON_PER_IMAGE * max_images
        self._mark = secrets.token_hex(16)  # nobody can write a placeholder of his own
        self._skeleton = bytearray()
        self._parts = self._row = 0
        self._held = 0
        self._images: list[bytes] = []
        self._text: bytearray | ImageText | None = None  # of the string that has not ended yet
        self._pending = b""
        self._first = True

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self._held + (self._text.size if isinstance(self._text, ImageText) else 0) + len(self._skeleton)

    def feed(self, part: bytes) -> None:
        """Read another piece of the document."""
        if self._pending:
            part, self._pending = self._pending + part, b""
        if self._first:
            if len(part) < 4:
                self._pending = part
                return
            self._first = False
            part = _without_mark(part)
        position = 0
        while position < len(part):
            position = self._outside(part, position) if self._text is None else self._inside(part, position)

    def finish(self) -> tuple[Any, dict[str, bytes]]:
        """The document, its long texts as placeholders, and the image file of each placeholder."""
        if self._first:
            self._first, rest, self._pending = False, self._pending, b""
            self.feed(rest)
        if self._text is not None or self._pending:
            raise FormError("not readable as JSON: a text does not end")
        try:
            document = json.loads(
                self._skeleton.decode(), parse_constant=_no_constant, object_pairs_hook=_without_repetition
            )
        except json.JSONDecodeError as error:
            raise FormError(f"not readable as JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise FormError(f"not readable as JSON: {str(error)[:200]}") from None
        return document, {self._placeholder(number): image for number, image in enumerate(self._images)}

    def clear(self) -> None:
        """Free the memory; nothing can be read any more."""
        self._images, self._skeleton, self._text, self._held, self._pending = [], bytearray(), None, 0, b""

    def _outside(self, part: bytes, position: int) -> int:
        """Read up to the next text."""
        quote = part.find(b'"', position)
        end = len(part) if quote < 0 else quote
        if end > position:
            piece = _BLANKS.sub(b" ", part[position:end])
            self._count(sum(piece.count(mark) for mark in (b"[", b"{", b",")))
            self._extend(piece)
        if quote < 0:
            return end
        self._count(1)
        self._text = bytearray()
        return quote + 1

    def _inside(self, part: bytes, position: int) -> int:
        """Read on in a text, to its end if that has arrived."""
        if part.find(b"\\", position) < 0:
            end = part.find(b'"', position)
            end = len(part) if end < 0 else end
        else:
            end = _TEXT.match(part, position).end()  # type: ignore[union-attr]  # it matches nothing at least
        self._add_text(part[position:end])
        if end == len(part):
            return end
        if part[end : end + 1] == b'"':
            self._end_text()
            return end + 1
        self._pending = part[end:]
        if not _PARTIAL_ESCAPE.fullmatch(self._pending):
            raise FormError("not readable as JSON: Invalid \\escape")
        return len(part)

    def _add_text(self, piece: bytes) -> None:
        if isinstance(self._text, bytearray):
            self._text += piece
            if len(self._text) <= _LONG:
                return
            if len(self._images) == self._max_images:
                raise FormError(
                    f"more than {self._max_images} images in one request; at most {self._max_images} are taken, "
                    "send them in parts"
                )
            piece, self._text = bytes(self._text), ImageText(self._max_image_bytes)
        assert self._text is not None
        self._decode(self._text, _unescaped(piece))

    def _decode(self, text: ImageText, piece: bytes | None) -> None:
        """Decode a piece, or with None the end; the image is then kept."""
        try:
            if piece is not None:
                text.feed(piece)
                return
            self._images.append(text.finish())
        except NotBase64:
            raise FormError(f"row {self._row}: the text is not base64 of an image file") from None
        except TooLong:
            raise FormError(
                f"row {self._row}: the image file is too large, at most {self._max_image_bytes} bytes are taken"
            ) from None
        self._held += len(self._images[-1])

    def _end_text(self) -> None:
        text, self._text = self._text, None
        if isinstance(text, ImageText):
            self._decode(text, None)
            self._extend(f'"{self._placeholder(len(self._images) - 1)}"'.encode())
            self._row += 1
            return
        assert text is not None
        if text in _TABLES:
            self._row = 0
        elif text not in _KEYS:
            self._row += 1
        self._extend(b'"' + text + b'"')

    def _placeholder(self, number: int) -> str:
        return f"(text {number} of this document) {self._mark}"

    def _count(self, parts: int) -> None:
        self._parts += parts
        if self._parts > self._max_parts:
            raise self._too_many_parts()

    def _extend(self, piece: bytes | bytearray) -> None:
        self._skeleton += piece
        if len(self._skeleton) > self._max_skeleton:
            raise self._too_many_parts()

    def _too_many_parts(self) -> FormError:
        return FormError(f"the document has more parts than {self._max_images} images need; send the images in parts")


def _without_mark(start: bytes) -> bytes:
    """The start of a document without the byte order mark. Other encodings than UTF-8 are refused."""
    if json.detect_encoding(start) not in ("utf-8", "utf-8-sig"):
        raise FormError("not readable as JSON: the document must be UTF-8")
    return start.removeprefix(b"\xef\xbb\xbf")


def _unescaped(piece: bytes) -> bytes:
    """A piece of a long text without JSON's escapes."""
    if not piece.translate(None, LETTERS + b"="):
        return piece
    try:
        return json.loads(f'"{piece.decode("ascii")}"').encode("ascii")
    except json.JSONDecodeError as error:
        raise FormError(f"not readable as JSON: {error.msg}") from None
    except UnicodeError:
        return b"\0"  # no letter of base64


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Two values for one key are refused: the next reader might take the other one."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return document
