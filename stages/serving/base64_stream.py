"""Base64 text of an image file, decoded while it arrives: linear in time, and never more than the file in memory."""

from __future__ import annotations

import binascii
import io
import re

LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BREAKS = b"\r\n"
_PADDING = re.compile(rb"={1,2}[\r\n]*")
_HEAD = 64
"""Bytes of a file that tell whether it is base64 text itself: every image has others in its header."""


class NotBase64(ValueError):  # noqa: N818 - a verdict on a text
    """The text is not base64."""


class TooLong(ValueError):  # noqa: N818 - a verdict on a text
    """The image file is larger than allowed."""


class Base64Decoder:
    """Decodes one text piece by piece. Line breaks may stand anywhere, padding only at the end."""

    def __init__(self) -> None:
        self._rest = b""
        self._padding = b""

    def feed(self, text: bytes) -> bytes:
        """The bytes that are whole after this piece. Raises :class:`NotBase64`."""
        letters = b"" if self._padding else text
        if self._padding or b"=" in text:
            letters, _, _rest = letters.partition(b"=")
            self._end_with(text[len(letters) :] if not self._padding else text)
        letters = self._rest + letters.translate(None, _BREAKS)
        if letters.translate(None, LETTERS):
            raise NotBase64
        whole = len(letters) & ~3
        self._rest = letters[whole:]
        return binascii.a2b_base64(letters[:whole])

    def finish(self) -> bytes:
        """The last bytes, which the padding completes. Raises :class:`NotBase64` if it does not."""
        last = self._rest + self._padding.rstrip(_BREAKS)
        if len(last) % 4:
            raise NotBase64
        try:
            return binascii.a2b_base64(last)
        except binascii.Error:
            raise NotBase64 from None

    def _end_with(self, text: bytes) -> None:
        padding = self._padding + text
        if not _PADDING.fullmatch(padding):
            raise NotBase64
        kept = padding.rstrip(_BREAKS)
        self._padding = kept + b"\n" * (kept != padding)  # a break ends the padding, one is as good as many


class ImageText:
    """The text of one image; :meth:`feed` pieces of it, then take the file from :meth:`finish`.

    Some clients encode twice, which MLflow and the model have always undone; so does this.
    """

    def __init__(self, most: int):
        self._most = most
        self._decoder = Base64Decoder()
        self._inner: Base64Decoder | None = None
        self._head: bytes | None = b""
        self._file = io.BytesIO()

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._file.tell() + len(self._head or b"")

    def feed(self, text: bytes) -> None:
        """Decode another piece. Raises :class:`NotBase64` or :class:`TooLong`."""
        self._add(self._decoder.feed(text))

    def finish(self) -> bytes:
        """The image file. Raises :class:`NotBase64` or :class:`TooLong`."""
        self._add(self._decoder.finish())
        if self._head is not None:
            self._judge_head()
        if self._inner is not None:
            self._write(self._inner.finish())
        return self._file.getvalue()  # no copy: the buffer has exactly this size

    def _add(self, data: bytes) -> None:
        if self._head is None:
            self._write(data if self._inner is None else self._inner.feed(data))
            return
        self._head += data
        if len(self._head) >= _HEAD:
            self._judge_head()

    def _judge_head(self) -> None:
        head, self._head = self._head or b"", None
        if head and not head[:_HEAD].translate(None, LETTERS + b"=" + _BREAKS):
            self._inner = Base64Decoder()
            head = self._inner.feed(head)
        self._write(head)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        if self._file.tell() > self._most:
            raise TooLong
