"""Copies of training states in a folder that every machine sees."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from stages.training.state_store import StoreError
from yolov7.files import atomic_path


class Folder:
    """A folder that every machine sees, such as a share of a file server."""

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
        """The content of a small file, or None if there is none."""

        def ask() -> bytes | None:
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

        return self._tried(ask)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        self._tried(lambda: (self._root / name).unlink(missing_ok=True))

    def _tried(self, action: Any) -> Any:
        try:
            return action()
        except OSError as error:
            raise StoreError(f"{error.strerror or error}", lasting=isinstance(error, PermissionError)) from error
