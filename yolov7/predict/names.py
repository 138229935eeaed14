"""Names of images in results and of the files drawn for them: valid, different, and none an original's."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from yolov7.errors import DataError

DRAWN_AS_THEY_ARE = frozenset({".jpg", ".jpeg", ".png"})
_LONGEST = 255
"""Bytes of a name that file systems hold."""
_ROOM = 24
"""Bytes that a temporary name needs beside the name itself."""


def readable_names(names: Sequence[str]) -> list[str]:
    """The names as text that is valid UTF-8, as different as before.

    Bytes that are not UTF-8, which a file system may hold, are written as `\\\\xb9`.
    """
    taken = {name for name in names if _is_utf8(name)}
    readable: list[str] = []
    for name in names:
        text = name
        if not _is_utf8(name):
            text = escaped = os.fsencode(name).decode("utf-8", "backslashreplace")
            number = 2
            while text in taken:
                text, number = f"{escaped} ({number})", number + 1
            taken.add(text)
        readable.append(text)
    return readable


@contextmanager
def named_for_libraries(path: str) -> Iterator[str]:
    """A path under which a library in C++ can open a file: absolute, because FFmpeg takes `12:30:05.mp4` for an
    address, and valid UTF-8. OpenCV crashes at any other: such a file gets a link, for as long as it is being opened.
    """
    place = os.path.abspath(path)  # noqa: PTH100 - keeps links
    if _is_utf8(place):
        yield place
        return
    with TemporaryDirectory(prefix="yolov7-") as folder:
        link = Path(folder) / "video"
        link.symlink_to(place)
        yield str(link)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class OutputNames:
    """Output names of each image: all different, and none an original's.

    Those of frames of a video are fit as they are. Raises :class:`DataError` if a drawn image would replace an
    original. `reserved`: files of the output folder itself.
    """

    def __init__(
        self, names: Sequence[str], originals: Sequence[Path], out: Path, *, reserved: Collection[str] = ()
    ) -> None:
        self._reserved = frozenset(reserved)
        self._folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
        kept = [name for name in names if self._is_kept(name)]
        others = [name for name in names if not self._is_kept(name)]
        self._drawn = {name: self._fit(name, PurePosixPath(name).suffix) for name in kept}
        self._drawn |= self._free({name: f"{name}.jpg" for name in others}, ".jpg", {*names})
        stems = Counter(_stem(name) for name in names)
        labels = {
            name: f"{name if stems[_stem(name)] > 1 or _stem(name) in self._drawn else _stem(name)}.txt"
            for name in names
        }
        self._labels = self._free(labels, ".txt", set())
        resolved = {file.resolve() for file in originals}
        for drawn in self._drawn.values():
            if (out / drawn).resolve() in resolved:
                raise DataError(
                    "the drawn image would overwrite this original; choose another folder with -o", path=out / drawn
                )

    def drawn(self, name: str) -> str:
        """Name of the drawn image: `.jpg` is added unless the suffix is of a format we write."""
        return self._drawn.get(name, name)

    def label(self, name: str) -> str:
        """Name of the YOLO label file. If there are `a.jpg` and `a.png`, both keep their suffix."""
        return self._labels.get(name) or f"{_stem(name)}.txt"

    def _is_kept(self, name: str) -> bool:
        return PurePosixPath(name).suffix.lower() in DRAWN_AS_THEY_ARE and name not in self._folders

    def _free(self, wanted: Mapping[str, str], suffix: str, taken: set[str]) -> dict[str, str]:
        """The wanted names, with more suffixes where one is taken, by another or by a folder."""
        found: dict[str, str] = {}
        for name, free in wanted.items():
            while free in taken or free in self._folders:
                free += suffix
            taken.add(free)
            found[name] = self._fit(free, suffix)
        return found

    def _fit(self, name: str, suffix: str) -> str:
        """The name, shortened where the file system does not hold it, and outside the files of the job itself."""
        first, *rest = name.split("/")
        if first in self._reserved:
            first = f"{first}_"
        parts = [first, *rest]
        if len(parts[-1].encode()) + _ROOM > _LONGEST:
            digest = hashlib.sha256(name.encode()).hexdigest()[:12]
            room = _LONGEST - _ROOM - len(digest) - len(suffix.encode()) - 1
            parts[-1] = f"{parts[-1].encode()[:room].decode('utf-8', 'ignore')}-{digest}{suffix}"
        return "/".join(_folder(part) for part in parts[:-1]) + ("/" if parts[1:] else "") + parts[-1]


def _folder(name: str) -> str:
    """A folder's name, shortened: bytes written as `\\\\xb9` take four times their room."""
    if len(name.encode()) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: _LONGEST - 13].decode('utf-8', 'ignore')}-{digest}"


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
