"""Folders of images with label files of the same names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from stages.images.header import read_header
from yolov7.data.formats.coco import is_utf8
from yolov7.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Of the formats whose headers `stages.images.header` reads."""
_LISTED = 5
"""Files that a message names; it always gives their number."""


def stem_of(name: str) -> str:
    """A relative file name without its extension: an image and its labels share it."""
    return PurePosixPath(name).with_suffix("").as_posix()


def files_below(root: Path, suffixes: Sequence[str], *, key: str) -> list[str]:
    """Names of the files below `root`, relative to it and sorted, that end in one of `suffixes` (in any case).

    Hidden files and folders are skipped, and so are links to folders. Raises :class:`DataError` naming `key` of
    params.yaml if there is no such folder, for a name that is not UTF-8, because no annotation can hold it, for links
    that leave the folder, and for pipes and the like: reading one would block.
    """
    if not root.is_dir():
        raise DataError(f"no such folder; see {key} in params.yaml", path=root)
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = PurePosixPath(os.path.relpath(folder, root).replace(os.sep, "/"))
        found += [str(inside / name) for name in files if name.lower().endswith(tuple(suffixes)) and name[0] != "."]
    for name in found:
        if not is_utf8(name):
            raise DataError(f"the file name {name!r} is not UTF-8; rename the file", path=root)
        path = root / name
        if not path.is_file():
            raise DataError("is not a file; remove it", path=path)
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise DataError("is a link that leaves its folder; replace it by the file itself", path=path)
    return sorted(found)


def by_stem(names: Iterable[str], root: Path) -> dict[str, str]:
    """File names by stem. Raises :class:`DataError` if two differ only in the extension: their labels are ambiguous."""
    result: dict[str, str] = {}
    for name in names:
        other = result.setdefault(stem_of(name), name)
        if other != name:
            message = f"{other!r} and {name!r} share the labels of {stem_of(name)!r}; rename one of them and its labels"
            raise DataError(message, path=root)
    return result


def image_sizes(root: Path, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Height and width of every image, upright, from its header.

    Raises :class:`DataError` naming the files whose header cannot be read: damaged, or of a format unknown to
    `stages.images.header`.
    """
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        headers = list(pool.map(lambda name: read_header(root / name), names))
    sizes: dict[str, tuple[int, int]] = {}
    bad: list[str] = []
    for name, header in zip(names, headers, strict=True):
        if header is None or header.width == 0 or header.height == 0:
            bad.append(name)
        elif header.lies_on_its_side:
            sizes[name] = (header.width, header.height)
        else:
            sizes[name] = (header.height, header.width)
    if bad:
        message = f"the size of {len(bad)} images cannot be read: {shown(bad)}"
        raise DataError(f"{message}; they are damaged, or not JPEG, PNG, WebP, BMP, GIF or TIFF", path=root)
    return sizes


def shown(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more
