"""HTTP downloads: resumable, checksummed, and renamed into place only when complete.

A download grows in `NAME.part`; `NAME.json` records its file on the server. A cut connection, a restarted process or a
rebooted machine loses only bytes in flight. The complete file takes its name after a check of its size and, if known,
its checksum. Proxies, certificates and credentials come from the environment (HTTPS_PROXY, REQUESTS_CA_BUNDLE;
DATA_HTTP_TOKEN, or ~/.netrc).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from stages.project.redaction import in_one_line, redacted
from stages.sources.http_answer import BrokenAnswerError, Part, etag_of, length_beyond, modified_of, part_of, pieces_of
from stages.sources.http_session import GuardedSession
from stages.sources.progress import Progress
from yolov7.errors import DataError
from yolov7.files import sha256_file, write_json
from yolov7.folders import gigabytes, require_space

logger = logging.getLogger(__name__)

TOKEN = "DATA_HTTP_TOKEN"
"""Environment variable: a bearer token for the server."""
_ATTEMPTS = 6
"""In a row without a new byte; while there is progress, the download continues."""
_LONGEST_PAUSE = 30.0
_TIMEOUT = (10.0, 60.0)
"""Seconds: to connect, and without a byte."""
_PIECE = 1 << 20
_CONDITIONS = {"If-None-Match", "If-Modified-Since"}
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that are worth another attempt."""


@dataclass(frozen=True)
class Download:
    """A file on a server."""

    url: str
    size: int | None = None
    """Expected bytes, if known."""
    sha256: str | None = None
    """Expected checksum in hex, if known."""

    @property
    def name(self) -> str:
        """The last part of the address, as a file name."""
        last = PurePosixPath(unquote(urlsplit(self.url).path)).name
        return re.sub(r"[^\w.-]", "_", last).lstrip(".") or "download"

    @property
    def shown(self) -> str:
        """The address without query, user and password, which may be secrets."""
        return re.split("[?#]", redacted(self.url), maxsplit=1)[0]


@dataclass(frozen=True)
class Known:
    """The server's description of a file; kept next to it."""

    url: str
    size: int | None = None
    etag: str | None = None
    modified: str | None = None
    sha256: str | None = None
    """Of the complete file."""


class _Again(Exception):  # noqa: N818 - not an error yet
    """This attempt failed; the next one may succeed."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def fetch(
    one: Download,
    folder: Path,
    *,
    spare: Callable[[int], int] = lambda size: 0,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Bring a file into `folder`; an existing one that has not changed on the server is kept.

    `spare(size)` is the disk space needed after the download: with the download itself it must be free before the first
    byte. Raises :class:`DataError` if it is not, if the server refuses, if size or checksum are not the expected ones,
    and after several attempts in a row without a new byte; the bytes so far are kept for the next call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    transfer = _Transfer(one, folder, spare)
    if transfer.is_complete():
        return transfer.target
    best, failures = transfer.have(), 0
    while True:
        try:
            transfer.attempt()
            return transfer.finish()
        except _Again as again:
            failures = 0 if transfer.have() > best else failures + 1
            best = max(best, transfer.have())
            if failures >= _ATTEMPTS:
                message = f"{again}; stopped after {failures} attempts without a new byte"
                raise DataError(
                    f"{message}, {gigabytes(best)} are kept: run it again to resume", path=one.shown
                ) from None
            wait = max(again.wait, min(_LONGEST_PAUSE, 2.0**failures))
            logger.info("%s: %s; resuming in %.0f s from %s", one.name, again, wait, gigabytes(transfer.have()))
            pause(wait)
        except OSError as error:  # of the disk: those of the network are _Again
            raise DataError(f"cannot be written: {error.strerror}", path=transfer.part) from None


class _Transfer:
    """One download: its bytes so far, and the next attempt to get the rest."""

    def __init__(self, one: Download, folder: Path, spare: Callable[[int], int]):
        self.one, self.folder, self.spare = one, folder, spare
        self.target = folder / one.name
        self.part = folder / f"{one.name}.part"
        self.note = folder / f"{one.name}.json"
        self.known = _read_note(self.note)
        if self.known is None or self.known.url != one.shown:
            self._forget()

    def have(self) -> int:
        """Bytes that have arrived."""
        return self.part.stat().st_size if self.part.exists() else 0

    def is_complete(self) -> bool:
        """True if the file is here and has the expected checksum."""
        known, wanted = self.known, self.one.sha256
        here = self.target.is_file() and known is not None and known.size == self.target.stat().st_size
        return here and wanted is not None and known is not None and known.sha256 == wanted

    def attempt(self) -> None:
        """Ask for the missing bytes and append them. Raises :class:`_Again` if that must be repeated."""
        offset = self.have()
        headers = self._headers(offset)
        try:
            with (
                GuardedSession() as session,
                session.get(self.one.url, headers=headers, stream=True, timeout=_TIMEOUT) as response,
            ):
                self._take(response, offset, conditional=_CONDITIONS & headers.keys() != set())
        except BrokenAnswerError as error:
            raise _Again(str(error)) from None
        except requests.exceptions.SSLError as error:
            raise DataError(f"no secure connection: {in_one_line(error, 160)}", path=self.one.shown) from None
        except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            raise _Again(f"the connection failed ({in_one_line(error, 160)})") from None
        except requests.RequestException as error:
            if isinstance(error, requests.exceptions.InvalidHeader) and "Content-Length" in str(error):
                raise _Again("the server states two lengths") from None
            raise DataError(f"cannot be fetched: {in_one_line(error, 160)}", path=self.one.shown) from None

    def _take(self, response: requests.Response, offset: int, *, conditional: bool) -> None:
        """Take what an answer brings; `conditional`: it was asked for only if the file has changed."""
        self._judge(response)
        if response.status_code == requests.codes.not_modified:
            if not conditional:
                raise BrokenAnswerError("the server says that nothing has changed, without being asked")
            return
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            self._beyond_the_end(response, offset)
            return
        part = self._part(response, offset)
        self._expect(part.total)
        self._remember(response, part.total)
        self._append(response, part)

    def _headers(self, offset: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}  # the bytes as stored, or lengths would mean nothing
        token = os.environ.get(TOKEN)
        if token:
            headers["Authorization"] = f"Bearer {token}"
        known = self.known
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if known is not None and (known.etag or known.modified):
                headers["If-Range"] = known.etag or known.modified or ""
        elif self.target.is_file() and known is not None and known.sha256 is not None and self.one.sha256 is None:
            if known.etag:
                headers["If-None-Match"] = known.etag
            elif known.modified:
                headers["If-Modified-Since"] = known.modified
        return headers

    def _judge(self, response: requests.Response) -> None:
        """Raise for answers without the file."""
        status, where = response.status_code, self.one.shown
        if status in _AGAIN:
            wait = response.headers.get("Retry-After", "")
            raise _Again(f"the server answers {status}", min(float(wait), 120.0) if wait.isdecimal() else 0.0)
        if status in (401, 403):
            raise DataError(f"the server refuses access ({status}); give a token in {TOKEN}, or ~/.netrc", path=where)
        if status in (404, 410):
            raise DataError(f"there is no such file ({status}); correct the address", path=where)
        if status not in (200, 206, 304, 416):
            raise DataError(f"the server answers {status} {in_one_line(response.reason, 80)}", path=where)

    def _beyond_the_end(self, response: requests.Response, offset: int) -> None:
        """The server has nothing after our bytes: they are the whole file, or not part of it."""
        if not offset or length_beyond(response) != offset:
            self._forget()
            raise _Again("the server refuses the range that was asked for")
        self._expect(offset)
        if self.known is None:
            self.known = Known(self.one.shown, offset)

    def _part(self, response: requests.Response, offset: int) -> Part:
        """The bytes of the answer: they continue ours, or are the whole file if it has changed."""
        part = part_of(response, name=self.one.name)
        if response.status_code == requests.codes.ok:
            return part
        if part.start != offset:
            self._forget()
            raise _Again("the server sent a range other than the requested one")
        if self.known is not None and None not in (self.known.size, part.total) and self.known.size != part.total:
            self._forget()
            raise _Again("the file has changed on the server")
        return part

    def _expect(self, total: int | None) -> None:
        expected = self.one.size
        if expected is not None and total not in (None, expected):
            raise DataError(f"has {total:,} bytes; {expected:,} are expected: is it another file?", path=self.one.shown)

    def _remember(self, response: requests.Response, total: int | None) -> None:
        self.known = Known(url=self.one.shown, size=total, etag=etag_of(response), modified=modified_of(response))
        write_json(self.note, asdict(self.known))

    def _append(self, response: requests.Response, part: Part) -> None:
        total = part.total
        if total is not None:
            require_space(self.folder, total - part.start + self.spare(total), self._purpose(total))
        limit = self.one.size if total is None else total
        progress = Progress(self.one.name, have=part.start, total=total)
        with self.part.open("ab" if part.start else "wb") as file:
            for piece in pieces_of(response, _PIECE):
                have = progress.have + len(piece)
                if total is None:  # it may never end
                    require_space(self.folder, len(piece) + self.spare(have), self._purpose(have))
                if limit is not None and have > limit:
                    break
                file.write(piece)
                progress.add(len(piece))
            else:
                have = progress.have
            file.flush()
            os.fsync(file.fileno())
        if limit is not None and have > limit:
            self._forget()
            self._expect(have if total is None else total)
            raise _Again(f"the server sends more bytes than the {limit:,} of the file")
        if part.length is not None and have != part.start + part.length:
            raise _Again("the connection was cut")
        if not part.whole:
            raise _Again("the server sent part of the file")
        if total is None and self.one.sha256 is None and "chunked" not in response.headers.get("Transfer-Encoding", ""):
            logger.warning("%s: the server states no length; a cut download would look complete", self.one.name)

    def _purpose(self, total: int) -> str:
        return f"{self.one.name} ({gigabytes(total)}) with its unpacked files"

    def finish(self) -> Path:
        """Check the file and rename it into place."""
        if not self.part.exists():  # not modified
            return self.target
        assert self.known is not None
        size = self.have()
        self._expect(size)
        digest = sha256_file(self.part)
        if self.one.sha256 not in (None, digest):
            self._forget()
            message = f"the sha256 is {digest}; {self.one.sha256} is expected: the download was removed"
            raise DataError(f"{message}; run it again, or correct the checksum", path=self.one.shown)
        self.part.replace(self.target)
        self.known = Known(self.known.url, size, self.known.etag, self.known.modified, digest)
        write_json(self.note, asdict(self.known))
        logger.info("%s: complete, %s, sha256 %s", self.one.name, gigabytes(size), digest)
        return self.target

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.known = None


def read_note(file: Path) -> Known:
    """The server's description of a file from :func:`fetch`, and its checksum."""
    known = _read_note(file.with_name(f"{file.name}.json"))
    if known is None:
        raise DataError("this download has no record; remove the file and run it again", path=file)
    return known


def _read_note(path: Path) -> Known | None:
    """None if there is none, or not one of ours."""
    try:
        return Known(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
