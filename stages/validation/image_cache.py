"""Cache of image checks: no content is decoded twice, and no file is read again that has not changed.

Checks are kept by the sha256 of the bytes; the sha256 of a file by its path, size and times.

A small database outside of DVC: it changes the speed of the stage, never its findings. An entry is valid for the code
that made it; other code, or another version of the decoders, starts an empty one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

_ROOT = Path(__file__).parents[2]
_CODE = (
    "yolov7/data/header.py",
    "stages/images/near_duplicates.py",
    "yolov7/data/sandbox.py",
    "stages/validation/images.py",
    "yolov7/data/decode.py",
)
"""Code that an entry depends on, as well as on the bytes."""
_BATCH = 500
"""Entries per write, and per question."""
_SECONDS = 5.0
"""An interrupted run loses no more than these last ones."""
_SETTLED = 2.0
"""A file changed less than these seconds ago may change again within one tick of its clock: its digest is not kept."""


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """The result of decoding one image file."""

    exists: bool
    sha256: str | None = None
    """Of the bytes; None where they could not be read or were not looked at."""
    defect: str | None = None
    """Why the pixels cannot be trusted."""
    complaint: str | None = None
    """A message of the decoder although it delivered every pixel."""
    width: int | None = None
    """Of the decoded image, upright; None where there is none."""
    height: int | None = None
    format: str | None = None
    """As Pillow names it: JPEG, PNG."""
    mode: str | None = None
    """Pixel format by Pillow's name: RGB, L, CMYK, I;16."""
    is_animated: bool | None = None
    brightness: float | None = None
    """Mean of the grey image, 0 to 255."""
    contrast: float | None = None
    """Standard deviation of the grey image."""
    hash: str | None = None
    """Difference hash, hexadecimal (see `stages.images.near_duplicates`)."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes with a file: inode, size, and the times of its content and of its entry."""

    text: str
    is_settled: bool


def stamp_of(path: str) -> Stamp | None:
    """The stamp of a file; None where it cannot be had."""
    now = time.time()
    try:
        found = Path(path).stat()
    except OSError:
        return None
    text = f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    return Stamp(text, now - found.st_mtime > _SETTLED)


class ImageCache:
    """A context manager; with `path` None nothing is kept. A damaged or unusable file is ignored."""

    def __init__(self, path: Path | None):
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._checks: list[tuple[str, str]] = []
        self._files: list[tuple[str, str, str]] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> ImageCache:
        if self._path is not None:
            self._database = _open(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._flush()
        if self._database is not None:
            self._database.close()

    def read(self, digests: Collection[str]) -> dict[str, ImageCheck]:
        """Known entries by digest."""
        rows = self._ask("SELECT sha256, found FROM checks")
        return {digest: _check_of(json.loads(found), digest) for digest, found in rows if digest in digests}

    def add(self, digest: str, check: ImageCheck) -> None:
        """Store the result for a content."""
        self._checks.append((digest, json.dumps(asdict(check))))
        self._flush_in_time()

    def digests(self, files: Sequence[str], stamps: Sequence[Stamp | None]) -> dict[str, str]:
        """The sha256 of the files that are as they were when it was taken, by path; at most `_BATCH` files."""
        marks = ", ".join("?" * len(files))
        rows = self._ask(f"SELECT path, stamp, sha256 FROM files WHERE path IN ({marks})", files)
        known = {path: (stamp, digest) for path, stamp, digest in rows}
        return {
            path: known[path][1]
            for path, stamp in zip(files, stamps, strict=True)
            if stamp is not None and path in known and known[path][0] == stamp.text
        }

    def add_file(self, path: str, stamp: Stamp, digest: str) -> None:
        """Store the sha256 of a file, whose `stamp` was taken before."""
        if stamp.is_settled:
            self._files.append((path, stamp.text, digest))
            self._flush_in_time()

    def _ask(self, question: str, values: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
        """The answer, as far as the file gives one; a damaged file is replaced by an empty one."""
        if self._database is None or self._path is None:
            return
        try:
            yield from self._database.execute(question, values)
        except sqlite3.OperationalError as error:
            log.warning("%s: cannot be read: %s", self._path, error)
        except sqlite3.DatabaseError:
            self._database.close()
            self._database = _restart(self._path)

    def _flush_in_time(self) -> None:
        full = len(self._checks) + len(self._files) >= _BATCH
        if full or time.monotonic() - self._flushed > _SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._database is not None and (self._checks or self._files):
            try:
                with self._database:
                    self._database.executemany("INSERT OR REPLACE INTO checks VALUES (?, ?)", self._checks)
                    self._database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", self._files)
            except sqlite3.Error as error:
                log.warning("%s: the image checks are not kept: %s", self._path, error)
        self._checks.clear()
        self._files.clear()
        self._flushed = time.monotonic()


def _check_of(found: dict[str, Any], digest: str) -> ImageCheck:
    for name in ("format", "mode"):  # a few texts, which a million images share
        found[name] = found[name] and sys.intern(found[name])
    return ImageCheck(**{**found, "sha256": digest})


def _open(path: Path) -> sqlite3.Connection | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _prepare(path)
    except sqlite3.OperationalError as error:  # no space, no right to write
        log.warning("%s: cannot be used, every image is decoded: %s", path, error)
    except sqlite3.DatabaseError:
        return _restart(path)
    except OSError as error:
        log.warning("%s: cannot be used, every image is decoded: %s", path, error.strerror)
    return None


def _restart(path: Path) -> sqlite3.Connection:
    log.warning("%s: damaged; starting with an empty cache", path)
    path.unlink(missing_ok=True)
    return _prepare(path)


def _prepare(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    try:
        with database:
            database.execute("CREATE TABLE IF NOT EXISTS code (version TEXT)")
            database.execute("CREATE TABLE IF NOT EXISTS checks (sha256 TEXT PRIMARY KEY, found TEXT)")
            database.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)")
            version = _version()
            if database.execute("SELECT version FROM code").fetchone() != (version,):
                database.execute("DELETE FROM checks")
                database.execute("DELETE FROM code")
                database.execute("INSERT INTO code VALUES (?)", (version,))
    except sqlite3.Error:
        database.close()
        raise
    return database


def _version() -> str:
    import cv2
    import PIL

    total = hashlib.sha256(f"{cv2.__version__} {PIL.__version__}".encode())
    for name in _CODE:
        total.update((_ROOT / name).read_bytes())
    return total.hexdigest()
