"""Mirror all objects below a prefix of an S3 bucket into a folder: many at a time, each only once.

An object whose file is here with its size and its time is not fetched again; files whose objects are gone are removed.
boto3 fetches the objects: it retries, and notices an object that changes during the download. It looks for
credentials, region and endpoint in the usual places (environment, ~/.aws, the machine's role), never in params.yaml.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from s3transfer.exceptions import RetriesExceededError
from s3transfer.subscribers import BaseSubscriber

from stages.project.params_data import S3
from stages.project.redaction import in_one_line
from stages.sources.progress import Progress
from yolov7.data.formats.label_files import unsafe_name
from yolov7.errors import DataError
from yolov7.folders import gigabytes, remove, require_space

logger = logging.getLogger(__name__)

_ATTEMPTS = 6
"""For one object, or one piece of a large one."""


@dataclass(frozen=True)
class Mirrored:
    """The content of the prefix."""

    objects: int
    size: int


@dataclass(frozen=True)
class _Object:
    key: str
    path: PurePosixPath
    """Below the folder."""
    size: int
    modified: int
    """Seconds since 1970."""
    etag: str


class _AsListed(BaseSubscriber):
    """Tells a transfer what the list says, so that it need not ask, and refuses an object that has changed since."""

    def __init__(self, item: _Object):
        self._item = item

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self._item.size)
        future.meta.provide_object_etag(self._item.etag)


def mirror_prefix(source: S3, folder: Path, *, copies: int = 2) -> Mirrored:
    """Make `folder` a mirror of the prefix. Before the first object, there must be room for `copies` of all of it.

    Raises :class:`DataError` where the server refuses or cannot be reached, nothing is below the prefix, a key cannot
    be a file name, or too little space is left; complete objects are kept for the next call.
    """
    bucket, _, prefix = source.url.removeprefix("s3://").partition("/")
    prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    client = _client(source)
    try:
        objects = _listed(client, bucket, prefix, source.url)
        wanted = _missing(source, objects, folder, copies)
        parts = folder.with_name(f"{folder.name}.parts")
        remove(parts)  # left by a killed run
        parts.mkdir()
        progress = Progress(source.url, total=sum(item.size for item in wanted), objects=len(wanted))
        pool = ThreadPoolExecutor(source.parallel)
        try:
            jobs = [
                pool.submit(_fetch, client, bucket, item, parts / str(number), folder / item.path, progress)
                for number, item in enumerate(wanted)
            ]
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    except (ClientError, BotoCoreError, RetriesExceededError) as error:
        raise _refused(source, error) from None
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", path=folder) from None
    remove(parts)
    return Mirrored(len(objects), sum(item.size for item in objects))


def _missing(source: S3, objects: list[_Object], folder: Path, copies: int) -> list[_Object]:
    """The objects to fetch; files without an object are removed, and there is room for the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_others(folder, objects)
    wanted = [item for item in objects if not _is_here(folder / item.path, item)]
    total, missing = sum(item.size for item in objects), sum(item.size for item in wanted)
    require_space(folder, missing + (copies - 1) * total, f"{source.url} ({gigabytes(total)}) with its copy")
    counts = f"{len(objects)} objects, {gigabytes(total)}; to fetch: {len(wanted)}, {gigabytes(missing)}"
    logger.info("%s: %s", source.url, counts)
    return wanted


def uses_paths(endpoint: str | None = None) -> bool:
    """True if the server is not Amazon's: others rarely have a host name for every bucket."""
    return bool(endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


def _client(source: S3) -> Any:
    config = Config(
        retries={"max_attempts": _ATTEMPTS, "mode": "standard"},
        max_pool_connections=source.parallel,
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": "path" if uses_paths(source.endpoint) else "auto"},
        signature_version=UNSIGNED if source.anonymous else None,
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=source.endpoint, config=config)
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is not an address
        raise DataError(f"no client for this address: {in_one_line(error, 160)}", path=source.url) from None


def _listed(client: Any, bucket: str, prefix: str, url: str) -> list[_Object]:
    """All objects below the prefix. Raises :class:`DataError` for keys that cannot be files of one folder."""
    found: list[_Object] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            key, name = entry["Key"], entry["Key"].removeprefix(prefix)
            if name == "" or name.endswith("/"):  # how some tools mark a folder
                continue
            path = PurePosixPath(name)
            reason = unsafe_name(name) or (None if str(path) == name else "is not a plain path")
            if reason is not None:
                raise DataError(f"the key {reason}; rename the object", path=url, record=f"key {key!r}")
            modified = int(entry["LastModified"].timestamp())
            found.append(_Object(key, path, entry["Size"], modified, entry["ETag"]))
    if not found:
        raise DataError("nothing below this prefix; correct the address", path=url)
    files = {item.path for item in found}
    for item in found:
        above = next((parent for parent in item.path.parents if parent in files), None)
        if above is not None:
            message = f"{above} is an object too, so it cannot be a folder; rename one of them"
            raise DataError(message, path=url, record=f"key {item.key!r}")
    return found


def _remove_others(folder: Path, objects: list[_Object]) -> None:
    """Remove files that have no object any more: a label file of yesterday would be read as one of today."""
    kept = {folder / item.path for item in objects}
    for path in list(_files(folder)):
        if path not in kept:
            path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            yield Path(root) / name


def _is_here(path: Path, item: _Object) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size == item.size and int(found.st_mtime) == item.modified


def _fetch(client: Any, bucket: str, item: _Object, part: Path, target: Path, progress: Progress) -> None:
    """Bring one object to `target`, by way of `part`."""
    # The objects are fetched side by side; the pieces of one need not be. Only pieces carry the tag of the list.
    settings = TransferConfig(use_threads=False, num_download_attempts=_ATTEMPTS, multipart_threshold=1)
    listeners = [_AsListed(item), ProgressCallbackInvoker(progress.add)]
    with create_transfer_manager(client, settings) as transfers:
        transfers.download(bucket, item.key, str(part), subscribers=listeners).result()
    if part.stat().st_size != item.size:
        raise DataError("the object has changed since it was listed; run it again", path=f"s3://{bucket}/{item.key}")
    os.utime(part, (item.modified, item.modified))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():  # without files by now: see above
        remove(target)
    part.replace(target)
    progress.add(0, objects=1)


def _refused(source: S3, error: ClientError | BotoCoreError | RetriesExceededError) -> DataError:
    """The answer of the server, or the failure of the client, with advice."""
    if isinstance(error, NoCredentialsError):
        message = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or, for a public"
        return DataError(f"{message} bucket, data.s3.anonymous", path=source.url)
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        advice = {
            "NoSuchBucket": "correct the bucket's name, or data.s3.endpoint",
            "AccessDenied": "the credentials may not list or read here",
            "403": "the credentials may not list or read here",
            "404": "an object has gone since it was listed: run it again",
            "PreconditionFailed": "an object has changed since it was listed: run it again",
            "412": "an object has changed since it was listed: run it again",
        }.get(code, "see the credentials, the address and data.s3.endpoint")
        return DataError(f"the server refuses ({code}): {advice}", path=source.url)
    if isinstance(error, RetriesExceededError):
        reason = in_one_line(error.last_exception, 160)
        message = f"{reason}; stopped after {_ATTEMPTS} attempts: run it again to resume with the next object"
        return DataError(message, path=source.url)
    return DataError(
        f"cannot be read ({in_one_line(error, 160)}); see the address and data.s3.endpoint", path=source.url
    )
