"""Stores for copies of training states: a bucket or a shared folder. Errors are either transient or permanent."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from yolov7.errors import YoloError


class StoreError(YoloError):
    """A store failed. `lasting`: a retry would fail as well."""

    def __init__(self, message: str, *, lasting: bool):
        super().__init__(message)
        self.lasting = lasting


class Store(Protocol):
    """Files by name. Every method raises :class:`StoreError`."""

    address: str

    def put(self, source: Path, name: str) -> None:
        """Keep a file under a name; readers see the whole file or none."""

    def get(self, name: str, target: Path) -> None:
        """Fetch a file."""

    def read(self, name: str) -> bytes | None:
        """The content of a small file, or None if there is none."""

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
