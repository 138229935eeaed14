"""Names and texts that come from outside, checked before anything uses them: params.yaml, and parameters of flows.

A name ends up in a stage's name (DVC), on a command line, in a path, in the address of a registered model: each check
allows what all of these take. Every function raises :class:`ConfigError` with `where`, the key as its author knows it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from yolov7.errors import ConfigError

_LONGEST = 100
"""Characters of a name; a file name may have 255 bytes, and folders and logs append to it."""
_MOST_BYTES = 200
_LONGEST_LINE = 250
_VARIANT = re.compile(r"\w[\w+-]*")
_MODEL = re.compile(r"\w[\w+. -]*(?<! )")
_REVISION = re.compile(r"\w[\w./+@#=,%-]*(?:[~^][0-9]{0,4}){0,10}")
_PATH = re.compile(r"\w[\w. +-]*(?:/[\w+][\w. +-]*)*")
_HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that no text of ours needs: a file name cannot hold them, or a terminal obeys them. Tab and line break
may end a text that YAML folds."""


def check_variant(name: str, *, where: str) -> None:
    """A variant: letters, digits, `_`, `-` and `+`, and neither `-` nor `+` first. DVC takes a dot for a nested key."""
    _check(name, _VARIANT, "letters, digits, _, - and +, and begin with one of the first three", where)


def check_model_name(name: str, *, where: str) -> None:
    """A registered model, or a prefix of one: also dots and, inside, spaces. MLflow refuses `/` and `:`."""
    _check(name, _MODEL, "letters, digits, _, -, +, dots and spaces, and begin with one of the first three", where)


def _check(name: str, allowed: re.Pattern[str], words: str, where: str) -> None:
    if not isinstance(name, str) or not allowed.fullmatch(name):
        raise ConfigError(f"{where}: {_shown(name)} is not a name; it may hold {words}")
    if len(name) > _LONGEST:
        raise ConfigError(f"{where}: {_shown(name)} has {len(name)} characters; {_LONGEST} are allowed")
    if (size := len(name.encode(errors="replace"))) > _MOST_BYTES:
        raise ConfigError(f"{where}: {_shown(name)} has {size} bytes in UTF-8; {_MOST_BYTES} are allowed")


def check_line(text: str, *, where: str, longest: int = _LONGEST_LINE) -> None:
    """A text of one line that is not empty: an experiment of MLflow."""
    if not text.strip() or text != text.strip() or "\n" in text or "\t" in text:
        raise ConfigError(f"{where}: {_shown(text)} must be one line that is not empty, without spaces around it")
    if len(text) > longest:
        raise ConfigError(f"{where}: {_shown(text)} has {len(text)} characters; {longest} are allowed")


def check_folder(path: str, *, where: str) -> None:
    """A folder on this machine, as DVC and the file system take it."""
    check_line(path, where=where, longest=1000)
    if "://" in path:
        raise ConfigError(f"{where}: {_shown(path)} is an address; give a folder on this machine")
    if path.startswith("-"):
        raise ConfigError(f"{where}: {_shown(path)} looks like an option; write ./{path[:40]}")


def check_revision(revision: str, *, where: str) -> None:
    """A commit, a branch or a tag of git, perhaps with `~2` or `^`; no option, range, path or search."""
    known = isinstance(revision, str) and _REVISION.fullmatch(revision) and len(revision) <= _LONGEST_LINE
    if not known or ".." in revision or "//" in revision or "/." in revision or "@{" in revision:
        raise ConfigError(f"{where}: {_shown(revision)} is not a commit, a branch or a tag")


def check_hashes(hashes: Mapping[str, Mapping[str, str]], stages: Collection[str], *, where: str) -> None:
    """DVC's hashes of outputs, stage -> path -> hash, of some of these `stages`."""
    if not isinstance(hashes, Mapping) or not hashes:
        raise ConfigError(f"{where}: expected a mapping, stage -> path -> hash")
    for stage, outputs in hashes.items():
        if stage not in stages:
            raise ConfigError(f"{where}: {_shown(stage)} is not one of the stages {', '.join(stages)}")
        if not isinstance(outputs, Mapping) or not outputs:
            raise ConfigError(f"{where}.{stage}: expected a mapping, path -> hash")
        for path, value in outputs.items():
            if not isinstance(path, str) or not _PATH.fullmatch(path) or len(path) > _LONGEST_LINE:
                raise ConfigError(f"{where}.{stage}: {_shown(path)} is not the path of an output in the project")
            if not isinstance(value, str) or not _HASH.fullmatch(value):
                raise ConfigError(f"{where}.{stage}.{path}: {_shown(value)} is not a hash of DVC")


def check_values(values: Any, *, where: str) -> None:
    """No key or text of a nested document holds a control character, and no number has more than 64 bits.

    NUL, for one, is refused here and not by the system call that it meets.
    """
    pending: list[tuple[str, Any]] = [("", values)]
    while pending:
        key, value = pending.pop()
        place = f"{where}: {key}" if key else where
        if isinstance(value, str) and (found := _CONTROL.search(value)):
            raise ConfigError(f"{place}: {_shown(value)} holds the control character U+{ord(found[0]):04X}")
        if isinstance(value, bytes):
            raise ConfigError(f"{place}: bytes (!!binary); give a text")
        if isinstance(value, int) and abs(value) >= 1 << 64:
            raise ConfigError(f"{place}: a number of {value.bit_length()} bits; 64 are allowed")
        if isinstance(value, Mapping):
            pending += [(f"{key}.{name}" if key else str(name), inner) for name, inner in value.items()]
            pending += [(f"{key}: a key" if key else "a key", name) for name in value]
        elif isinstance(value, list | tuple):
            pending += [(f"{key}.{number}", inner) for number, inner in enumerate(value)]


def _shown(value: object) -> str:
    """The value for a message: one line, cut, with control characters escaped."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
