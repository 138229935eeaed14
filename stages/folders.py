"""Folders that are either old or new, never half: built beside their place, then swapped in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


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
    _remove(fresh)
    _remove(old)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if target.exists() or target.is_symlink():
            target.rename(old)
        fresh.rename(target)
    finally:
        _remove(fresh)
    _remove(old)


def _remove(path: Path) -> None:
    # DVC may make an output a link into its cache: the link goes, never what it points to.
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
