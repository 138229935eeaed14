"""Unpack untrusted archives: zip, tar and tar.gz.

Nothing is written outside the folder, no link is made, no archive within the archive is opened, and the unpacked size
is limited. Members are checked before they are written; one refused member refuses the archive, so no half of a data
set is left.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from stages.project.redaction import in_one_line
from yolov7.data.formats.coco import is_utf8
from yolov7.data.formats.label_files import unsafe_name
from yolov7.errors import DataError
from yolov7.folders import gigabytes, remove

logger = logging.getLogger(__name__)

_NESTED = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_PIECE = 1 << 16
"""Bytes read at a time; no honest tar header is longer: names have a few hundred."""
_PADDING = 16 * 2**20
"""Largest padding after the end of a tar: programs fill up to a whole block of some kilobytes."""


@dataclass(frozen=True)
class Limits:
    """Limits on the content of an archive. The defaults leave room for several times COCO."""

    members: int = 500_000
    """Files and folders."""
    total: int = 200 * 10**9
    """Bytes of all files, unpacked."""
    ratio: int = 200
    """Largest ratio of unpacked to packed bytes, beyond `harmless`. Images have 1, annotations up to 30."""
    harmless: int = 64 * 2**20
    """Unpacked bytes below which the ratio does not matter."""
    directory: int = 64 * 2**20
    """Largest list of members of a zip in bytes: it is read into memory as a whole."""


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> int:
    """Unpack `archive` into `folder`, where none of its files exists yet; returns the number of files.

    Raises :class:`DataError` naming archive and member: another format, damage, a member that leads out of the folder,
    is a link or a device, occurs twice, is encrypted or itself an archive, or more than `limits` allow. On an error the
    folder is removed.
    """
    bounds = limits or Limits()
    folder.mkdir(parents=True, exist_ok=True)
    packed = archive.stat().st_size
    try:
        budget = _Budget(archive, bounds, packed, shutil.disk_usage(folder).free)
        files = _unpack(archive, folder, budget)
    except BaseException:
        remove(folder)
        raise
    logger.info("%s: %d files, %s unpacked", archive.name, files, gigabytes(budget.written))
    return files


def _unpack(archive: Path, folder: Path, budget: _Budget) -> int:
    with archive.open("rb") as file:
        start = file.read(512)
    try:
        if start[:2] == b"PK":
            return _unpack_zip(archive, folder, budget)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(archive, "rb") as packed:
                return _unpack_tar(archive, cast("IO[bytes]", packed), folder, budget)
        if start[257:262] == b"ustar":
            with archive.open("rb") as plain:
                return _unpack_tar(archive, plain, folder, budget)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, struct.error) as error:
        message = f"the archive is damaged ({in_one_line(error, 160)}); fetch or pack it again"
        raise DataError(message, path=archive) from None
    # zipfile raises NotImplementedError for a compression it does not know.
    except (RecursionError, UnicodeError, ValueError, NotImplementedError) as error:
        message = f"the archive is not readable ({in_one_line(error, 160)}); pack it again"
        raise DataError(message, path=archive) from None
    except OSError as error:
        raise DataError(f"cannot be unpacked: {error.strerror or error}", path=archive) from None
    raise DataError("not a zip, tar or tar.gz; pack the data set as one of them", path=archive)


class _Budget:
    """Keeps count of the members and bytes of an archive; every member is announced before it is written."""

    def __init__(self, archive: Path, limits: Limits, packed: int, free: int):
        self.archive, self.limits, self.packed, self.free = archive, limits, packed, free
        self.members = self.written = 0
        self._seen: set[PurePosixPath] = set()
        self._folders: set[PurePosixPath] = set()

    def count(self, name: str) -> None:
        """Count one more member, of any kind."""
        self.members += 1
        if self.members > self.limits.members:
            raise self.refusal(name, f"is beyond the {self.limits.members:,} members an archive may have")

    def admit(self, name: str, size: int, *, packed: int | None = None) -> PurePosixPath:
        """Count the size of a member and return its path below the folder."""
        reason = unsafe_name(name)
        if reason is not None:
            raise self.refusal(name, f"{reason.partition(';')[0]}: it would leave the folder or go by another name")
        path = PurePosixPath(name)
        if not is_utf8(name) or "\0" in name or len(os.fsencode(path.name)) > 255:
            raise self.refusal(name, "has a name that is not UTF-8 or too long; rename it")
        self.written += size
        if self.written > self.limits.total:
            raise self.refusal(name, f"brings the archive beyond {gigabytes(self.limits.total)}")
        if self.written > self.free:
            raise self.refusal(name, f"does not fit on the disk: {gigabytes(self.free)} were free")
        self._check_ratio(name, size, packed)
        return path

    def _check_ratio(self, name: str, size: int, packed: int | None) -> None:
        harmless, ratio = self.limits.harmless, self.limits.ratio
        alone = packed is not None and size > harmless and size > ratio * packed
        if alone or (self.written > harmless and self.written > ratio * self.packed):
            raise self.refusal(name, f"unpacks to more than {ratio} times its size: not a data set")

    def add_file(self, name: str, path: PurePosixPath) -> None:
        """Record a file. Refuses archives and names that occur twice."""
        if name.lower().endswith(_NESTED):
            raise self.refusal(name, "is an archive within the archive; unpack it and pack the files themselves")
        if path in self._seen or path in self._folders:
            raise self.refusal(name, "occurs twice")
        self._seen.add(path)
        for parent in path.parents:
            if parent in self._seen:
                raise self.refusal(name, f"lies in {parent}, which is a file")
            if parent in self._folders:
                break
            self._folders.add(parent)

    def refusal(self, name: str, reason: str) -> DataError:
        """The error for a member."""
        shown = name if len(name) <= 120 else name[:117] + "..."
        return DataError(reason, path=self.archive, record=f"member {shown!r}")


def _write(source: IO[bytes], target: Path, size: int) -> bool:
    """Copy exactly `size` bytes; False if there are fewer."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = size
    with target.open("xb") as file:
        while left > 0:
            piece = source.read(min(_PIECE, left))
            if not piece:
                return False
            file.write(piece)
            left -= len(piece)
    return True


def _unpack_zip(archive: Path, folder: Path, budget: _Budget) -> int:
    _check_directory(archive, budget.limits)
    with zipfile.ZipFile(archive) as opened:
        files: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
        for member in opened.infolist():
            name, mode = member.filename, member.external_attr >> 16
            budget.count(name)
            if member.is_dir():  # folders are made where files need them
                continue
            path = budget.admit(name, member.file_size, packed=member.compress_size)
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise budget.refusal(name, "is a link or a device; pack the file itself")
            if member.flag_bits & 1:
                raise budget.refusal(name, "is encrypted; pack it without a password")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise budget.refusal(name, f"is packed by method {member.compress_type}; use deflate or none")
            budget.add_file(name, path)
            files.append((member, path))
        for member, path in files:
            with opened.open(member) as source:
                # The last read compares the checksum.
                if not _write(source, folder / path, member.file_size) or source.read(1):
                    raise budget.refusal(member.filename, "has another size than the archive says")
    return len(files)


def _check_directory(archive: Path, limits: Limits) -> None:
    """Refuse a zip whose list of members is huge (APPNOTE.TXT, sections 4.3.14 to 4.3.16)."""
    with archive.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 65_557 - 20))  # the end record with the longest comment, and the locator before it
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) < at + 22:
            raise DataError("the archive is damaged (its end is missing); fetch or pack it again", path=archive)
        (size,) = struct.unpack_from("<I", tail, at + 12)
        if size == 0xFFFFFFFF and at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
            file.seek(struct.unpack_from("<Q", tail, at - 12)[0])
            (size,) = struct.unpack("<40xQ8x", file.read(56))
    if size > limits.directory:
        raise DataError(f"the list of members alone has {gigabytes(size)}; not a data set", path=archive)


def _unpack_tar(archive: Path, packed: IO[bytes], folder: Path, budget: _Budget) -> int:
    source = _Guarded(packed, archive, budget.limits)
    files = 0
    with tarfile.open(fileobj=cast("IO[bytes]", source), mode="r:", errorlevel=2) as opened:
        for member in _members(opened):
            budget.count(member.name)
            if member.isdir():
                continue
            path = budget.admit(member.name, member.size)
            if not member.isreg() or member.issparse():
                raise budget.refusal(member.name, "is a link, a device or sparse; pack the file itself")
            budget.add_file(member.name, path)
            content = opened.extractfile(member)
            if content is None or not _write(content, folder / path, member.size):
                raise budget.refusal(member.name, "is cut short: fetch or pack the archive again")
            files += 1
    source.finish()
    return files


def _members(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members one by one, and empty tarfile's list of them: a long archive would fill the memory."""
    while (member := opened.next()) is not None:
        yield member
        opened.members.clear()  # type: ignore[attr-defined]


class _Guarded:
    """A stream that refuses what only a hostile tar needs: huge headers, and more bytes than an archive may have.

    tarfile reads the headers of long names into memory, however long they claim to be.
    """

    def __init__(self, source: IO[bytes], archive: Path, limits: Limits):
        self._source, self._archive, self._limits = source, archive, limits

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _PIECE:
            raise DataError("a header in this archive is longer than any file name; not a data set", path=self._archive)
        return self._source.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > 2 * self._limits.total:
            raise DataError(f"is longer than {gigabytes(self._limits.total)}", path=self._archive)
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def finish(self) -> None:
        """Read the rest after the last member: gzip compares its checksum at the very end."""
        for _ in range(_PADDING // _PIECE):
            if not self._source.read(_PIECE):
                return
        raise DataError("there are bytes after the end of the archive; pack it again", path=self._archive)
