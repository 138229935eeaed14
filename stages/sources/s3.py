"""All objects below a prefix of an S3 bucket, as a folder: many at a time, and each only once.

The folder is a mirror. An object that is there with its size and its time is not fetched again; one that broke off goes
on where it did; files whose objects are gone are removed. Credentials, region and endpoint come from where boto3 looks
for them (environment, ~/.aws, the machine's role), never from params.yaml.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
import urllib3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError, NoCredentialsError

from stages.project.folders import gigabytes, remove, require_space
from stages.project.params_data import S3
from yolov7.data.formats.label_files import unsafe_name
from yolov7.errors import DataError

logger = logging.getLogger(__name__)

_ATTEMPTS = 6
"""For one object, in a row without a new byte."""
_PIECE = 1 << 20
_REPORT_EVERY = 5.0


@dataclass(frozen=True)
class Mirrored:
    """What is below the prefix."""

    objects: int
    size: int


@dataclass(frozen=True)
class _Object:
    key: str
    path: PurePosixPath
    """Below the folder."""
    size: int
    etag: str
    modified: int
    """Seconds since 1970."""

    @property
    def part(self) -> str:
        """The name of what is there of it; another version of the object has another one."""
        return hashlib.sha256(f"{self.key} {self.etag} {self.size}".encode()).hexdigest()[:24]


def mirror_prefix(
    source: S3, folder: Path, *, copies: int = 2, pause: Callable[[float], None] = time.sleep
) -> Mirrored:
    """Make `folder` a mirror of the prefix. Before the first object, there must be room for `copies` of all of it.

    Raises :class:`DataError` where the server refuses or cannot be reached, there is nothing below the prefix, a key
    cannot be a file name, or too little space is left; what was fetched by then is kept for the next call.
    """
    bucket, _, prefix = source.url.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    client = _client(source)
    try:
        objects = _listed(client, bucket, prefix, source.url)
    except (ClientError, BotoCoreError) as error:
        raise _refused(source, error) from None
    total = sum(one.size for one in objects)
    parts = folder.with_name(f"{folder.name}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    _remove_others(folder, objects)
    wanted = [one for one in objects if not _is_here(folder / one.path, one)]
    missing = sum(one.size for one in wanted)
    require_space(folder, missing + (copies - 1) * total, f"{source.url} ({gigabytes(total)}) with its copy")
    logger.info(
        "%s: %d objects, %s; to fetch: %d, %s",
        source.url,
        len(objects),
        gigabytes(total),
        len(wanted),
        gigabytes(missing),
    )
    progress = _Progress(source.url, len(wanted), missing)
    pool = ThreadPoolExecutor(source.parallel)
    try:
        jobs = [
            pool.submit(_fetch, client, bucket, one, parts / one.part, folder / one.path, progress, pause)
            for one in wanted
        ]
        for job in jobs:
            job.result()
    except (ClientError, BotoCoreError) as error:
        raise _refused(source, error) from None
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", path=folder) from None
    finally:
        pool.shutdown(cancel_futures=True)
    remove(parts)
    return Mirrored(len(objects), total)


def uses_paths(endpoint: str | None = None) -> bool:
    """Whether the server is one other than Amazon's, which rarely has a host name for every bucket."""
    return bool(endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


def _client(source: S3) -> Any:
    config = Config(
        retries={"max_attempts": 5, "mode": "standard"},
        max_pool_connections=source.parallel,
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": "path" if uses_paths(source.endpoint) else "auto"},
        signature_version=UNSIGNED if source.anonymous else None,
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=source.endpoint, config=config)
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no address
        raise DataError(f"no client for this address: {_words(error)}", path=source.url) from None


def _listed(client: Any, bucket: str, prefix: str, url: str) -> list[_Object]:
    """All objects below the prefix. Raises :class:`DataError` for keys that cannot be files of one folder."""
    found: list[_Object] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            key, name = item["Key"], item["Key"].removeprefix(prefix)
            if name == "" or name.endswith("/"):  # what stands for a folder in some tools
                continue
            path = PurePosixPath(name)
            reason = unsafe_name(name) or (None if str(path) == name else "is no plain path")
            if reason is not None:
                raise DataError(f"the key {reason}; rename the object", path=url, record=f"key {key!r}")
            found.append(_Object(key, path, item["Size"], item["ETag"], int(item["LastModified"].timestamp())))
    if not found:
        raise DataError("nothing below this prefix; correct the address", path=url)
    files = {one.path for one in found}
    for one in found:
        above = next((parent for parent in one.path.parents if parent in files), None)
        if above is not None:
            message = f"{above} is an object too, so it cannot be a folder; rename one of them"
            raise DataError(message, path=url, record=f"key {one.key!r}")
    return found


def _remove_others(folder: Path, objects: list[_Object]) -> None:
    """Files that have no object any more: a label file of yesterday would be read as one of today."""
    kept = {folder / one.path for one in objects}
    for path in list(_files(folder)):
        if path not in kept:
            path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            yield Path(root) / name


def _is_here(path: Path, one: _Object) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size == one.size and int(found.st_mtime) == one.modified


def _fetch(
    client: Any,
    bucket: str,
    one: _Object,
    part: Path,
    target: Path,
    progress: _Progress,
    pause: Callable[[float], None],
) -> None:
    """Bring one object by way of `part`; a connection that breaks is taken up again."""
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            if have < one.size or not part.exists():
                _append(client, bucket, one, part, have)
        except (HTTPClientError, IncompleteReadError, urllib3.exceptions.HTTPError) as error:
            reason = _words(error)
        else:
            reason = "the connection was cut"
        now = part.stat().st_size if part.exists() else -1
        if now == one.size:
            break
        failures = 0 if now > have else failures + 1
        if failures >= _ATTEMPTS:
            message = f"{reason}; given up after {failures} attempts: run it again to go on"
            raise DataError(message, path=f"s3://{bucket}/{one.key}")
        pause(min(30.0, 2.0**failures))
    os.utime(part, (one.modified, one.modified))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():  # without files by now: see above
        remove(target)
    part.replace(target)
    progress.add(one.size)


def _append(client: Any, bucket: str, one: _Object, part: Path, have: int) -> None:
    """Ask for the rest of an object, of the version that was listed, and append it."""
    wanted = {"Range": f"bytes={have}-"} if have else {}
    answer = client.get_object(Bucket=bucket, Key=one.key, IfMatch=one.etag, **wanted)
    size = answer["ContentLength"]
    if have and size != one.size - have:  # the server knows no ranges
        part.unlink()
        have = 0
    if size != one.size - have:
        message = "the object has changed since it was listed; run it again"
        raise DataError(message, path=f"s3://{bucket}/{one.key}")
    with part.open("ab") as file:
        for piece in answer["Body"].iter_chunks(_PIECE):
            file.write(piece)


class _Progress:
    """A line every few seconds, whichever thread brings the news."""

    def __init__(self, what: str, objects: int, size: int):
        self._what, self._objects, self._size = what, objects, size
        self._done = self._bytes = 0
        self._said = time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += 1
            self._bytes += count
            if time.monotonic() - self._said < _REPORT_EVERY:
                return
            self._said = time.monotonic()
            bytes_of = f"{gigabytes(self._bytes)} of {gigabytes(self._size)}"
            logger.info("%s: %d of %d objects, %s", self._what, self._done, self._objects, bytes_of)


def _refused(source: S3, error: ClientError | BotoCoreError) -> DataError:
    """What the server or the client says, and what to do."""
    if isinstance(error, NoCredentialsError):
        message = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or, for a public"
        return DataError(f"{message} bucket, data.s3.anonymous", path=source.url)
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        advice = {
            "NoSuchBucket": "correct the bucket's name, or data.s3.endpoint",
            "AccessDenied": "the credentials may not list or read here",
            "403": "the credentials may not list or read here",
            "PreconditionFailed": "an object has changed since it was listed: run it again",
            "412": "an object has changed since it was listed: run it again",
        }.get(code, "see the credentials, the address and data.s3.endpoint")
        return DataError(f"the server refuses ({code}): {advice}", path=source.url)
    return DataError(f"cannot be read ({_words(error)}); see the address and data.s3.endpoint", path=source.url)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."
