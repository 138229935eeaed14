"""Names in annotations and lists, matched to the files of a folder.

Tools write names as their own machine sees them: with backslashes, percent-encoded, as an address, with folders that
the export does not have, in composed letters where the disk has decomposed ones. Every reader matches them here, so
that all formats take the same names. Only files of the folder are ever returned; a name with two candidates is
refused, never guessed.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from yolov7.data.formats.coco import is_utf8
from yolov7.text import listed

_LISTED = 5
"""Names that a note gives; it always gives their number."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"[A-Za-z]:/")

_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""Label Studio's, of uploaded files."""

_Parts = tuple[str, ...]

_SLASHES = "backslashes read as slashes"
_DOTS = "`.`, `..` and doubled slashes removed"
_LETTERS = "composed and decomposed letters taken for the same"
_PERCENT = "percent-encoding decoded"
_DROPPED = "leading folders dropped"
_ADDED = "looked for in subfolders"
_BASE_NAME = "only the base name of a path or address from another machine taken"
_UPLOAD = "the prefix that Label Studio gives to uploads removed"
_STEPS = (_SLASHES, _DOTS, _LETTERS, _PERCENT, _DROPPED, _ADDED, _BASE_NAME, _UPLOAD)
_LOOSE = frozenset({_DROPPED, _ADDED, _BASE_NAME, _UPLOAD})
"""Conversions that do not keep the whole name."""


@dataclass(frozen=True)
class Match:
    """The file that a written name means."""

    name: str | None
    """The file, relative to its folder; None if there is none or more than one."""
    steps: tuple[str, ...] = ()
    """Conversions between the written name and the file's; empty if they are equal."""
    candidates: tuple[str, ...] = ()
    """Two or more files that the name could mean; empty if it is unambiguous."""

    @property
    def problem(self) -> str | None:
        """Why there is no file, or None: there is one, or none that resembles the name."""
        if not self.candidates:
            return None
        return f"it could be {' or '.join(map(repr, self.candidates[:_LISTED]))}; write the path below the image folder"


@dataclass(frozen=True)
class _Written:
    """A name as written, taken apart."""

    parts: _Parts
    """Folders and base name, `.` and `..` resolved."""
    foreign: bool
    """An absolute path, an address, or a path out of the folder: its folders are another machine's."""
    dots: bool
    """Something other than a separator was removed."""


class FileNames:
    """The files of one folder, found by the names that annotations and lists give them."""

    def __init__(self, names: Iterable[str], *, root: Path | None = None) -> None:
        """`names` are relative, with forward slashes. The folders of `root` also identify its files: for the root
        `images`, the name `images/a.jpg` is its file `a.jpg` rather than `backup/a.jpg`."""
        self._exact = dict.fromkeys(names)
        self._above: _Parts = () if root is None else _composed(root.resolve().parts)
        self._whole: dict[_Parts, list[str]] = defaultdict(list)
        self._composed: dict[_Parts, list[str]] = defaultdict(list)
        self._decoded: dict[_Parts, list[str]] = defaultdict(list)
        self._bases: dict[str, list[str]] = defaultdict(list)
        for name in self._exact:
            parts = tuple(name.split("/"))
            self._whole[parts].append(name)
            self._composed[_composed(parts)].append(name)
            self._decoded[_decoded(parts)].append(name)
            self._bases[_decoded(parts)[-1]].append(name)

    def find(self, written: str) -> Match:
        """The file of a name: an equal one, or the only one that is left by the conversions of this module."""
        if written in self._exact:
            return Match(written)
        taken = _take_apart(written)
        if not taken.parts:
            return Match(None)
        match = self._find(written, taken)
        own_name = _PREFIX.sub("", taken.parts[-1])
        if match == Match(None) and own_name != taken.parts[-1]:
            match = self._find(written, replace(taken, parts=(*taken.parts[:-1], own_name)))
            return match if match.name is None else replace(match, steps=(*match.steps, _UPLOAD))
        return match

    def hint(self, written: str) -> str | None:
        """A file that a name without one may mean, in words; None if none resembles it."""
        parts = _decoded(_take_apart(written).parts)
        if not parts:
            return None
        wanted = parts[-1].casefold()
        stem = wanted.rpartition(".")[0]
        for name in self._exact:
            own = _decoded((name,))[-1]
            if own == parts[-1]:
                return f"there is {name!r}, in another folder"
            if own.casefold() == wanted:
                return f"there is {name!r}, which differs in case"
            if stem and own.casefold().rpartition(".")[0] == stem:
                return f"there is {name!r}, which differs in its extension"
        return None

    def _find(self, written: str, taken: _Written) -> Match:
        if not taken.foreign:
            for table, parts in (
                (self._whole, taken.parts),
                (self._composed, _composed(taken.parts)),
                (self._decoded, _decoded(taken.parts)),
            ):
                if parts in table:
                    return self._match(written, taken, table[parts])
        return self._match(written, taken, self._by_base_name(taken))

    def _by_base_name(self, taken: _Written) -> list[str]:
        """The files of the same base name that share the most folders with the name; all of them, if several do.

        The name of a relative path must end in the file's path, or the file's path in the name: `a/x.jpg` is not
        `b/x.jpg`.
        """
        wanted = _decoded(taken.parts)
        best: list[str] = []
        most = 0
        for name in self._bases.get(wanted[-1], ()):
            own = _decoded(tuple(name.split("/")))
            common = _common_tail(wanted, (*self._above, *own))
            if not taken.foreign and common < min(len(own), len(wanted)):
                continue
            if common > most:
                best, most = [], common
            if common == most:
                best.append(name)
        return best

    def _match(self, written: str, taken: _Written, names: Sequence[str]) -> Match:
        if len(names) != 1:
            return Match(None, candidates=tuple(names))
        return Match(names[0], _steps(written, taken, tuple(names[0].split("/"))))


@dataclass
class Matched:
    """The files of many names."""

    names: dict[str, str] = field(default_factory=dict)
    """File by written name; a name without a file is missing."""
    problems: dict[str, str] = field(default_factory=dict)
    """Ambiguous names, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """One per kind of conversion: number, and the first few names."""


def match_names(written: Iterable[str], files: FileNames | Callable[[], FileNames]) -> Matched:
    """The file of every written name. Different names that would mean one file are a problem.

    `files` may be a function that lists the folder; it is called only if there is a name to look for.
    """
    result = Matched()
    converted: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    users: dict[str, list[str]] = defaultdict(list)
    for one in dict.fromkeys(written):
        if callable(files):
            files = files()
        match = files.find(one)
        if match.problem is not None:
            result.problems[one] = match.problem
        elif match.name is not None:
            result.names[one] = match.name
            users[match.name].append(one)
            if match.steps:
                converted[match.steps].append((one, match.name))
    loose = {one for steps, pairs in converted.items() if _LOOSE.intersection(steps) for one, _ in pairs}
    _refuse_shared(result, users, loose)
    for steps, pairs in converted.items():
        kept = [(name, file) for name, file in pairs if name in result.names]
        if kept:
            result.notes.append(_note(steps, kept))
    return result


def _refuse_shared(result: Matched, users: Mapping[str, Sequence[str]], loose: set[str]) -> None:
    """Refuse names that were not kept whole where their file has another name, too."""
    for file, names in users.items():
        if len(names) > 1:
            for name in loose.intersection(names):
                del result.names[name]
                others = " and ".join(map(repr, [shown_name(other) for other in names if other != name][:_LISTED]))
                result.problems[name] = (
                    f"it and {others} would both be {file!r}; write the paths below the image folder"
                )


def _note(steps: Sequence[str], pairs: Sequence[tuple[str, str]]) -> str:
    shown = listed([f"{shown_name(name)!r} is {file!r}" for name, file in pairs])
    names = "1 file name differs" if len(pairs) == 1 else f"{len(pairs)} file names differ"
    return f"{names} from the file's on disk ({'; '.join(steps)}): {shown}"


def list_files(root: Path) -> FileNames:
    """All files of :func:`names_below`, to be found by their names."""
    return FileNames(names_below(root), root=root)


def names_below(root: Path) -> list[str]:
    """All files below a folder. Hidden ones, links to folders and names that no annotation can hold are left out."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        found += [prefix + name for name in files if not name.startswith(".") and is_utf8(prefix + name)]
    return sorted(found)


def shown_name(written: str) -> str:
    """A name for a message: without the query of an address, which may hold a signature, and at most 120 characters."""
    if _ADDRESS.match(written):
        scheme, _, rest = written.partition("?")[0].partition("://")
        written = f"{scheme}://{rest.rpartition('@')[2]}"
    return written if len(written) <= 120 else written[:117] + "..."


def _take_apart(written: str) -> _Written:
    path, foreign = written, False
    if _ADDRESS.match(written):
        path, foreign = _path_of(written), True
    elif "?d=" in written:  # the address of a local file, as Label Studio writes it
        path, foreign = _path_of(f"http://local/{written}"), True
    path = path.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        foreign = True
    parts: list[str] = []
    pieces = [piece for piece in path.split("/") if piece not in ("", ".")]
    for piece in pieces:
        if piece != "..":
            parts.append(piece)
        elif parts:
            parts.pop()
        else:
            foreign = True
    if pieces and pieces[-1] == "..":
        parts = []
    dots = len(pieces) != len(parts) or len(pieces) != len(path.strip("/").split("/"))
    return _Written(tuple(parts), foreign, dots)


def _path_of(address: str) -> str:
    """The path in an address, or in its query: `/data/local-files/?d=folder/a.jpg`."""
    try:
        parts = urlsplit(address)
        named = parse_qs(parts.query).get("d")
    except ValueError:
        return address
    return named[0] if named else parts.path


def _composed(parts: _Parts) -> _Parts:
    return tuple(unicodedata.normalize("NFC", part) for part in parts)


def _plain(parts: _Parts) -> _Parts:
    """Without percent-encoding. An encoded slash or backslash becomes a separator."""
    return tuple(piece for part in parts for piece in unquote(part).replace("\\", "/").split("/"))


def _decoded(parts: _Parts) -> _Parts:
    """Without percent-encoding, in composed letters."""
    return _composed(_plain(parts))


def _common_tail(first: _Parts, second: _Parts) -> int:
    """Number of equal parts at the end."""
    count = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        count += 1
    return count


def _steps(written: str, taken: _Written, file: _Parts) -> tuple[str, ...]:
    """The conversions between a written name and its file, in the order of `_STEPS`."""
    wanted, own = _decoded(taken.parts), _decoded(file)
    common = _common_tail(wanted, own)
    used: set[str] = set()
    if "\\" in written:
        used.add(_SLASHES)
    if taken.foreign:
        used.add(_BASE_NAME if common < len(own) or common == 1 else _DROPPED)
    elif common < len(wanted):
        used.add(_DROPPED)
    elif common < len(own):
        used.add(_ADDED)
    elif taken.dots:
        used.add(_DOTS)
    if _plain(taken.parts)[-common:] != _plain(file)[-common:]:
        used.add(_LETTERS)
    if _composed(taken.parts)[-common:] != _composed(file)[-common:]:
        used.add(_PERCENT)
    return tuple(step for step in _STEPS if step in used)
