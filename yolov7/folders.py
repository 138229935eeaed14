"""Replace whole folders, never half, and check for disk space."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from yolov7.errors import DataError


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder next to `target`; on a clean exit it replaces `target`.

    On an exception it is removed and `target` stays as it was. The next run clears the leftovers of a killed one, and
    restores the old folder if the kill came between the two renames.
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
    """Remove a file, a link or a folder with its content, if it exists; another thread may be removing it, too."""
    # DVC may make an output a link into its cache: remove the link, never its target.
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    while path.is_dir():
        with contextlib.suppress(FileNotFoundError):  # one that another was quicker to remove
            shutil.rmtree(path)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise :class:`DataError` if the file system of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{purpose} needs {gigabytes(needed)} of disk space; {gigabytes(free)} are free: make room, or link"
        raise DataError(f"{message} this folder to a larger disk", path=folder)


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
