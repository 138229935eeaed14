"""Folders of images with label files of the same names."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2

from yolov7.data.decode import decode_image
from yolov7.data.depth import decode_deep, needs_range
from yolov7.data.formats.coco import is_utf8
from yolov7.data.header import read_header
from yolov7.data.image_kind import DAMAGED, READ, ImageKind, kind_of_file
from yolov7.data.sandbox import Died, run_limited
from yolov7.errors import DataError
from yolov7.text import listed

_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}|\.3fr")
"""Not the number of a frame, as in `camera.0001`."""


_CLASS_LIST = "_classes.csv"


@dataclass(frozen=True)
class ImageFiles:
    """The images of a folder, told by their content."""

    names: list[str]
    """Relative to the folder, sorted; those that are read, and files that only have the name of an image."""
    unread: dict[str, ImageKind]
    """Images of formats that are not read, by name."""
    hidden: list[str]
    """Images whose name begins with a dot: they are left out."""

    def notes(self, labelled: Collection[str] = ()) -> Iterator[str]:
        """Notes on the images that are left out, without those of `labelled` stems, which are refused elsewhere."""
        kinds: dict[ImageKind, list[str]] = {}
        for name, kind in self.unread.items():
            if stem_of(name) not in labelled:
                kinds.setdefault(kind, []).append(name)
        for kind, names in kinds.items():
            yield f"{len(names)} images were left out: {kind.advice}: {shown(names)}"
        if self.hidden:
            yield f"{len(self.hidden)} hidden images were left out; rename them to have them: {shown(self.hidden)}"

    def instead(self, stems: Collection[str]) -> str:
        """The images of `stems` that are there and not read, for a message about labels without images; or nothing."""
        there = {name: kind for name, kind in self.unread.items() if stem_of(name) in stems}
        if not there:
            return ""
        advice = "; ".join(dict.fromkeys(kind.advice for kind in there.values()))
        return f" ({len(there)} have an image that is not read: {shown(list(there))}; {advice})"


def stem_of(name: str) -> str:
    """A relative file name without its extension: an image and its labels share it."""
    path = PurePosixPath(name)
    return path.with_suffix("").as_posix() if _EXTENSION.fullmatch(path.suffix) else path.as_posix()


def images_below(root: Path, *, key: str) -> ImageFiles:
    """The images below `root` by their content; hidden folders, links and errors as in :func:`files_below`."""
    names = _walk(root, key=key)
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        kinds = zip(names, pool.map(lambda name: kind_of_file(root / name), names), strict=True)
        images = {name: kind for name, kind in kinds if kind is not None}
    hidden = [name for name in images if _is_hidden(name)]
    open_ = [name for name in images if not _is_hidden(name)]
    _check(open_, root)
    return ImageFiles(
        [name for name in open_ if images[name].read],
        {name: images[name] for name in open_ if not images[name].read},
        [name for name in hidden if images[name] != DAMAGED],
    )


def files_below(root: Path, suffixes: Sequence[str], *, key: str) -> list[str]:
    """Names of the files below `root`, relative to it and sorted, that end in one of `suffixes` (in any case).

    Hidden files and folders are skipped, and so are links to folders. Raises :class:`DataError` naming `key` of
    params.yaml if there is no such folder, for a name that is not UTF-8, because no annotation can hold it, for links
    that leave the folder, and for pipes and the like: reading one would block.
    """
    found = [name for name in _walk(root, key=key) if name.lower().endswith(tuple(suffixes)) and not _is_hidden(name)]
    _check(found, root)
    return found


def _walk(root: Path, *, key: str) -> list[str]:
    if not root.is_dir():
        raise DataError(f"no such folder; see {key}", path=root)
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = PurePosixPath(os.path.relpath(folder, root).replace(os.sep, "/"))
        found += [str(inside / name) for name in files]
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")


def _check(found: Sequence[str], root: Path) -> None:
    foreign = [name for name in found if not is_utf8(name)]
    if foreign:
        how = "`convmv -r -f gbk -t utf8 --notest FOLDER` does so with names in GBK"
        if len(foreign) == 1:
            raise DataError(f"the file name {foreign[0]!r} is not UTF-8; rename the file ({how})", path=root)
        message = f"{len(foreign)} file names are not UTF-8; rename the files ({how}): {shown(foreign)}"
        raise DataError(message, path=root)
    for name in found:
        path = root / name
        if not path.is_file():
            raise DataError("is not a file; remove it", path=path)
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise DataError("is a link that leaves its folder; replace it by the file itself", path=path)


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
    """As :func:`find_sizes`. Raises :class:`DataError` naming the files that are damaged or no image."""
    sizes = find_sizes(root, names)
    bad = [name for name in names if 0 in sizes[name]]
    if bad:
        message = f"the size of {len(bad)} images cannot be read: {shown(bad)}"
        raise DataError(f"{message}; they are damaged, or not {READ}", path=root)
    return sizes


def find_sizes(root: Path, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Height and width of every image, upright: from its header, or decoded where `yolov7.data.header` does not know
    the format; 0, 0 for files that are damaged or no image."""
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        headers = list(pool.map(lambda name: read_header(root / name), names))
    sizes: dict[str, tuple[int, int]] = {}
    unsized: list[str] = []
    for name, header in zip(names, headers, strict=True):
        if header is None:
            unsized.append(name)
        elif header.lies_on_its_side:
            sizes[name] = (header.width, header.height)
        else:
            sizes[name] = (header.height, header.width)
    decoded = run_limited(decoded_size, [root / name for name in unsized], per_process=16)
    for name, size in zip(unsized, decoded, strict=True):
        sizes[name] = (0, 0) if isinstance(size, Died) or size is None else size
    return sizes


def decoded_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image, upright; None if it is damaged. Runs under :func:`run_limited`."""
    data = path.read_bytes()
    try:
        pixels = decode_deep(data) if needs_range(data) else decode_image(data)
    except (DataError, cv2.error):
        return None
    return None if pixels is None else (pixels.shape[0], pixels.shape[1])


def image_class_lists(folders: Iterable[Path], base: Path) -> list[DataError]:
    """An error for every `_classes.csv` of Roboflow in the folders, and in those above them up to `base`."""
    top = base.resolve()
    around = (
        above
        for folder in dict.fromkeys(path.resolve() for path in folders)
        for above in (folder, *folder.parents)
        if above.is_relative_to(top)
    )
    lists = [folder / _CLASS_LIST for folder in dict.fromkeys(around) if (folder / _CLASS_LIST).is_file()]
    message = (
        "holds classes of whole images and no boxes (Roboflow's multi-class export), which a detector cannot learn; "
        "export the boxes, or remove this file if the labels beside it are those of objects"
    )
    return [DataError(message, path=path) for path in lists]


def shown(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return listed(list(map(repr, names)))
