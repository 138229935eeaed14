"""Where copies of training states lie: a bucket or a folder that several machines see. Errors come in two kinds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

from yolov7.errors import YoloError
from yolov7.files import atomic_path


class StoreError(YoloError):
    """A store has failed. `lasting`: another try would be refused as well."""

    def __init__(self, message: str, *, lasting: bool):
        super().__init__(message)
        self.lasting = lasting


class Store(Protocol):
    """Files by name. Every method raises :class:`StoreError`."""

    address: str

    def put(self, source: Path, name: str) -> None:
        """Keep a file under a name; it is there whole or not at all."""

    def get(self, name: str, target: Path) -> None:
        """Fetch a file."""

    def read(self, name: str) -> bytes | None:
        """The content of a small file, None where there is none."""

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""


def open_store(address: str) -> Store:
    """The store at `s3://BUCKET/PREFIX`, or in a folder."""
    if not address.startswith("s3://"):
        return Folder(address)
    from stages.training.s3_store import Bucket  # a training without copies need not wait for boto3

    return Bucket(address)


class Folder:
    """A folder that every machine sees: a share of a file server, say."""

    def __init__(self, address: str):
        self.address = address
        self._root = Path(address)

    def put(self, source: Path, name: str) -> None:
        """Keep a file under a name."""

        def copy() -> None:
            with atomic_path(self._root / name) as temporary:
                shutil.copyfile(source, temporary)

        self._tried(copy)

    def get(self, name: str, target: Path) -> None:
        """Fetch a file."""
        self._tried(lambda: shutil.copyfile(self._root / name, target))

    def read(self, name: str) -> bytes | None:
        """The content of a small file, None where there is none."""

        def ask() -> bytes | None:
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

        return self._tried(ask)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        self._tried(lambda: (self._root / name).unlink(missing_ok=True))

    def _tried(self, action: Any) -> Any:
        try:
            return action()
        except OSError as error:
            raise StoreError(f"{error.strerror or error}", lasting=isinstance(error, PermissionError)) from error
