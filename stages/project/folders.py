"""Folders that are either old or new, never half: built beside their place, then swapped in. And room for them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from yolov7.errors import DataError


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; on a clean exit it takes `target`'s place.

    On an exception it is removed and whatever stood at `target` stays as it was. What a killed run left behind is
    cleared by the next one, which also brings the old folder back if the kill fell between the two renames.
    """
    fresh = target.with_name(f".{target.name}.new")
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)
    remove(fresh)
    remove(old)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if target.exists() or target.is_symlink():
            target.rename(old)
        fresh.rename(target)
    finally:
        remove(fresh)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds, if it is there."""
    # DVC may make an output a link into its cache: the link goes, never what it points to.
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise :class:`DataError` where the file system of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{purpose} needs {gigabytes(needed)} of disk space; {gigabytes(free)} are free: make room, or link"
        raise DataError(f"{message} this folder to a larger disk", path=folder)


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
