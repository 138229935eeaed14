"""A file from a web server, by the standard library: complete, or not there.

A cut connection is resumed where the server names the version of its file (a strong ETag), else begun again. Proxies
come from the environment (HTTPS_PROXY, NO_PROXY), as urllib reads it.
"""

from __future__ import annotations

import base64
import errno
import http.client
import logging
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

from yolov7.redaction import in_one_line, redacted

log = logging.getLogger(__name__)

Advance = Callable[[int, int | None], object]
"""Told of the bytes that are here, and of their number in the end, if known."""

SECONDS = 30.0
"""Without a connection, and without a byte."""
PAUSES = (1.0, 2.0, 4.0)
"""Seconds before another attempt; without a new byte after the last of them, the download is given up."""
LARGEST = 2 * 2**30
"""Bytes. The largest published file has a sixth of it; an answer may have no end."""
_PIECE = 1 << 20
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that are worth another attempt."""
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_ETAG = re.compile(r'"[\x21\x23-\x7e]{0,200}"')
_UNREACHABLE = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)


class FetchError(Exception):
    """The file does not come; the message says why."""


class _Again(Exception):  # noqa: N818 - not an error yet
    """This attempt failed; the next one may succeed."""


def bring(address: str, part: Path, *, advance: Advance = lambda have, total: None) -> None:
    """Write the file at an http or https address to `part`, which is removed first and may be left incomplete.

    A user and a password in the address go to its host alone, not to where it redirects. Raises :class:`FetchError`
    if the server or the network refuses, and :class:`OSError` if the disk does.
    """
    part.unlink(missing_ok=True)
    transfer = _Transfer(address, part, advance)
    best, failures = 0, 0
    while True:
        try:
            transfer.attempt()
            return
        except _Again as again:
            have = transfer.have()
            failures = 0 if have > best else failures + 1
            best = max(best, have)
            if failures >= len(PAUSES):
                raise FetchError(f"{again}; given up after {failures} attempts without a new byte") from None
            log.info("%s: %s; trying again", part.name, again)
            time.sleep(PAUSES[failures])


class _Transfer:
    """One download: the bytes so far, and the next attempt to get the rest."""

    def __init__(self, address: str, part: Path, advance: Advance):
        self.part, self.advance = part, advance
        self.address, self.authorization = _without_user(address)
        self.etag: str | None = None
        self.opener = urllib.request.build_opener(_GuardedRedirects)

    def have(self) -> int:
        """Bytes that have arrived."""
        return self.part.stat().st_size if self.part.exists() else 0

    def attempt(self) -> None:
        """Ask for what is missing and write it. Raises :class:`_Again` if that must be repeated."""
        offset = self.have() if self.etag else 0
        request = urllib.request.Request(self.address, headers={"User-Agent": "yolov7", "Accept-Encoding": "identity"})
        if self.authorization:
            request.add_unredirected_header("Authorization", self.authorization)
        if offset and self.etag:
            request.add_header("Range", f"bytes={offset}-")
            request.add_header("If-Range", self.etag)
        try:
            answer = self.opener.open(request, timeout=SECONDS)
        except HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise _unreached(error) from None
        with answer:
            self._take(answer, offset)

    def _refused(self, error: HTTPError) -> Exception:
        if error.code in _AGAIN:
            return _Again(f"the server answers {error.code}")
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            self.etag = None  # begins again
            return _Again("the server refuses the range that was asked for")
        if error.code in (404, 410):
            return FetchError(f"the server has no such file ({error.code})")
        if error.code in (401, 403, 407):
            return FetchError(f"the server, or a proxy, refuses access ({error.code})")
        return FetchError(f"the server answers {error.code} {in_one_line(error.reason, 80)}")

    def _take(self, answer: Any, offset: int) -> None:
        start, total = self._span(answer, offset)
        if total is not None and total > LARGEST:
            raise FetchError(f"the server states {total:,} bytes, more than any published file has")
        have = start
        with self.part.open("ab" if start else "wb") as file:
            while piece := _piece(answer):
                have += len(piece)
                if have > (LARGEST if total is None else total):
                    raise FetchError("the server sends more bytes than it states, or than any published file has")
                file.write(piece)
                self.advance(have, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and have < total:
            raise _Again(f"the connection was cut after {have:,} of {total:,} bytes")

    def _span(self, answer: Any, offset: int) -> tuple[int, int | None]:
        """Where the bytes of an answer begin, and where the file ends, if the answer tells."""
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise FetchError(f"the server encodes the file ({encoding[:40]!r}), although asked not to")
        etag = answer.headers.get("ETag", "")
        if answer.status == http.client.PARTIAL_CONTENT:
            found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if not offset or found is None or int(found[1]) != offset or int(found[2]) + 1 != int(found[3]):
                self.etag = None
                raise _Again("the server sends another part of the file than was asked for")
            return offset, int(found[3])
        if answer.status != http.client.OK:
            raise FetchError(f"the server answers {answer.status}, without a file")
        self.etag = etag if _ETAG.fullmatch(etag) else None
        return 0, answer.length


class _GuardedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request for the new address. Raises :class:`FetchError` for one that must not be asked."""
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after == "http"):
            raise FetchError(f"the server redirects from {before} to {after[:20]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _piece(answer: Any) -> bytes:
    try:
        found: bytes = answer.read(_PIECE)
        return found
    except TimeoutError:
        raise _Again(f"no byte came for {SECONDS:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Again(f"the connection was cut ({in_one_line(error, 120)})") from None


def _unreached(error: Exception) -> Exception:
    """Why there was no answer; a network that is not there will not be there in a second."""
    reason = error.reason if isinstance(error, URLError) else error
    words = in_one_line(reason, 160)
    if isinstance(reason, TimeoutError):
        return FetchError(f"there was no answer within {SECONDS:g} s")
    if isinstance(reason, ssl.SSLError):
        return FetchError(f"there is no secure connection: {words}")
    if isinstance(reason, socket.gaierror):
        return FetchError(f"there is no network, or no such host ({words})")
    if isinstance(reason, OSError) and reason.errno in _UNREACHABLE:
        return FetchError(f"the server cannot be reached ({words})")
    if isinstance(error, http.client.InvalidURL) or not isinstance(reason, OSError | http.client.HTTPException):
        return FetchError(words)
    return _Again(f"the connection failed ({words})")


def _without_user(address: str) -> tuple[str, str]:
    """The address without user and password, and the header that carries them. Raises :class:`FetchError`."""
    try:
        parts = urlsplit(address)
        user, password = parts.username, parts.password
    except ValueError as error:
        raise FetchError(f"{redacted(address)} is not an address: {in_one_line(error, 80)}") from None
    if user is None:
        return address, ""
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    bare: Final = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, f"Basic {base64.b64encode(pair).decode()}"
