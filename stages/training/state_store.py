"""Where copies of training states lie: a bucket or a folder that several machines see. Errors come in two kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from yolov7.errors import YoloError


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
