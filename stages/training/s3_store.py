"""Copies of training states in an S3 bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound

from stages.project.redaction import in_one_line
from stages.sources.s3 import uses_paths
from stages.training.state_store import StoreError

_TIMEOUT = 60
"""Seconds without a byte from the server."""
_TRIES = 3
"""Attempts at one request, or one part of a file, within one of our own attempts."""
_ABSENT = ("NoSuchKey", "404", "NotFound")
_REFUSALS = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "the credentials may not do that",
    "403": "the credentials may not do that",
    "InvalidAccessKeyId": "the server does not know the key",
    "SignatureDoesNotMatch": "the secret is wrong",
    "ExpiredToken": "the credentials have expired",
    "EntityTooLarge": "the file is too large for it",
    "QuotaExceeded": "no space left",
}


class Bucket:
    """Objects below a prefix. Credentials, region and endpoint come from boto3's usual places."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self._bucket, _, prefix = self.address.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._made: Any = None

    def put(self, source: Path, name: str) -> None:
        """Keep a file under a name."""
        # A broken connection costs one part, not the whole file.
        parts = TransferConfig(multipart_chunksize=64 * 2**20, max_concurrency=2)
        self._tried(lambda: self._client().upload_file(str(source), self._bucket, self._prefix + name, Config=parts))

    def get(self, name: str, target: Path) -> None:
        """Fetch a file."""
        self._tried(lambda: self._client().download_file(self._bucket, self._prefix + name, str(target)))

    def read(self, name: str) -> bytes | None:
        """The content of a small object, or None if there is none."""

        def ask() -> bytes | None:
            try:
                return self._client().get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

        return self._tried(ask)

    def remove(self, name: str) -> None:
        """Remove an object if it exists."""
        self._tried(lambda: self._client().delete_object(Bucket=self._bucket, Key=self._prefix + name))

    def _client(self) -> Any:
        if self._made is None:
            config = Config(
                retries={"total_max_attempts": _TRIES, "mode": "standard"},
                connect_timeout=10,
                read_timeout=_TIMEOUT,
                s3={"addressing_style": "path" if uses_paths() else "auto"},
            )
            self._made = boto3.session.Session().client("s3", config=config)
        return self._made

    def _tried(self, action: Any) -> Any:
        try:
            return action()
        except (ClientError, BotoCoreError, Boto3Error, OSError, ValueError) as error:
            # A transfer wraps the server's answer in an exception of its own.
            cause = error.__context__ if isinstance(error.__context__, ClientError) else error
            raise _explained(cause) from error


def _explained(error: BaseException) -> StoreError:
    if isinstance(error, NoCredentialsError | ProfileNotFound):
        return StoreError("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role", lasting=True)
    if isinstance(error, ClientError) and (says := _REFUSALS.get(_code(error))):
        return StoreError(f"{says} ({_code(error)})", lasting=True)
    # ValueError: the endpoint is not an address.
    return StoreError(in_one_line(error, 200), lasting=isinstance(error, ValueError))


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
