"""An HTTP answer with a file, or part of one: which bytes it holds, by headers that agree with each other.

Servers, proxies and caches send wrong, doubled and contradictory headers. Such an answer is broken: nothing in it may
count as a complete file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import requests

_NUMBER = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_BEYOND = re.compile(r"bytes \*/([0-9]{1,18})")
_ETAG = re.compile(r'"[\x21\x23-\x7e]{0,200}"')
_PRINTABLE = re.compile(r"[\x20-\x7e]{1,100}")
_PACKED = (".gz", ".tgz")
"""Some servers state the compression of a stored file as if they had compressed it on the way."""


class BrokenAnswerError(Exception):
    """The headers of an answer are wrong or contradict each other."""


@dataclass(frozen=True)
class Part:
    """The bytes that an answer brings."""

    start: int
    """Offset of the first one in the file."""
    length: int | None
    """Their number; None if the answer does not say."""
    total: int | None
    """Length of the whole file; None if the answer does not say."""
    whole: bool
    """The answer's end is the file's end."""


def part_of(response: requests.Response, *, name: str) -> Part:
    """The bytes in an answer of status 200 or 206. Raises :class:`BrokenAnswerError`."""
    encoding = one_header(response, "Content-Encoding") or "identity"
    packed = encoding.lower() in ("gzip", "x-gzip") and name.lower().endswith(_PACKED)
    if encoding.lower() != "identity" and not packed:
        raise BrokenAnswerError(f"the server encodes the file ({encoding[:40]!r}), although asked not to")
    length = _stated_length(response)
    stated = one_header(response, "Content-Range")
    if response.status_code == requests.codes.ok:
        return Part(0, length, length, whole=True)
    found = _RANGE.fullmatch(stated or "")
    if found is None:
        raise BrokenAnswerError(f"the server sends part of the file, but not which (Content-Range: {_cut(stated)})")
    start, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    count = last - start + 1
    if count < 1 or (total is not None and last >= total) or length not in (None, count):
        raise BrokenAnswerError(f"the server's range and length contradict each other (Content-Range: {_cut(stated)})")
    return Part(start, count, total, whole=total is not None and last + 1 == total)


def pieces_of(response: requests.Response, size: int) -> Iterator[bytes]:
    """The body as it is stored. Raises :class:`BrokenAnswerError`, and the errors of urllib3."""
    try:
        yield from response.raw.stream(size, decode_content=False)
    except ValueError:  # a piece of negative size
        raise BrokenAnswerError("the server sends pieces of a wrong size") from None


def length_beyond(response: requests.Response) -> int | None:
    """The file's length in an answer of status 416; None if it does not say."""
    found = _BEYOND.fullmatch(one_header(response, "Content-Range") or "")
    return None if found is None else int(found[1])


def etag_of(response: requests.Response) -> str | None:
    """The strong ETag; a weak one says nothing about bytes."""
    etag = one_header(response, "ETag") or ""
    return etag if _ETAG.fullmatch(etag) else None


def modified_of(response: requests.Response) -> str | None:
    """The time of the last change, as the server writes it."""
    stated = one_header(response, "Last-Modified") or ""
    return stated if _PRINTABLE.fullmatch(stated) else None


def one_header(response: requests.Response, name: str) -> str | None:
    """The value of a header; None if there is none. Raises :class:`BrokenAnswerError` for two that differ."""
    values = {value.strip() for value in response.raw.headers.getlist(name)}
    if len(values) > 1:
        raise BrokenAnswerError(f"the server sends {name} {len(values)} times, with different values")
    return values.pop() if values else None


def _stated_length(response: requests.Response) -> int | None:
    stated = one_header(response, "Content-Length")
    coding = one_header(response, "Transfer-Encoding")
    if (coding or "identity").lower() not in ("chunked", "identity"):
        # Nothing below us undoes another one: the file would be complete, and compressed.
        raise BrokenAnswerError(f"the server encodes the transfer ({_cut(coding)}), although not asked to")
    if stated is not None and (coding or "").lower() == "chunked":
        raise BrokenAnswerError("the server states both a length and pieces (Content-Length, Transfer-Encoding)")
    if stated is not None and not _NUMBER.fullmatch(stated):
        raise BrokenAnswerError(f"the server states an invalid length (Content-Length: {_cut(stated)})")
    return None if stated is None else int(stated)


def _cut(value: str | None) -> str:
    return "missing" if value is None else ascii(value[:60])
