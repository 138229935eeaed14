"""Places of published files: the cache folder, the mirror, and the note beside a kept file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from yolov7.errors import ConfigError, ModelError
from yolov7.files import write_json
from yolov7.weights.releases import HOST, FormName, PublishedFiles

CACHE = "YOLOV7_CACHE"
"""Environment variable: the folder for what is fetched once."""
MIRROR = "YOLOV7_WEIGHTS_MIRROR"
"""Environment variable: what takes the place of https://github.com: an http(s) or file address, or a folder."""


@dataclass(frozen=True)
class Note:
    """What is known of a kept file since its first use."""

    sha256: str
    size: int
    converted: str | None = None
    """sha256 of the .safetensors file that was made of it."""


@dataclass(frozen=True)
class Place:
    """A published file in the cache folder, and the files beside it."""

    path: Path

    @property
    def note(self) -> Path:
        """Of :class:`Note`."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def part(self) -> Path:
        """A download that has not been checked."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def lock(self) -> Path:
        """Lock between processes."""
        return self.path.with_name(f"{self.path.name}.lock")

    @property
    def converted(self) -> Path:
        """The network in deploy form."""
        return self.path.with_suffix(".safetensors")

    def read_note(self) -> Note | None:
        """None before the first use. Raises :class:`ModelError` for a damaged one: it says which bytes are meant."""
        try:
            found = Note(**json.loads(self.note.read_text(encoding="utf-8")))
            if not isinstance(found.sha256, str) or not isinstance(found.size, int):
                raise ValueError
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ModelError(f"{self.note}: cannot be read: {error.strerror} ({CACHE} moves the folder)") from None
        except (ValueError, TypeError):
            raise ModelError(f"{self.note}: damaged; remove it to take {self.path.name} as it is now") from None
        return found

    def write_note(self, note: Note) -> None:
        """Keep the note, in one step."""
        write_json(self.note, asdict(note))


def cache_folder() -> Path:
    """The folder of `YOLOV7_CACHE`, or `yolov7` in the platform's folder for caches of this user.

    Raises :class:`ConfigError` where the user has no home folder.
    """
    given = os.environ.get(CACHE)
    try:
        if given:
            return Path(given).expanduser().absolute()
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "yolov7" / "Cache"
        if sys.platform == "darwin":
            return Path.home() / "Library/Caches/yolov7"
        chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one counts for nothing, says its standard
        return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "yolov7"
    except RuntimeError:
        raise ConfigError(f"there is no home folder for a cache; name a folder in {CACHE}") from None


def place_of(files: PublishedFiles, form: FormName) -> Place:
    """Where the file is kept: below `weights`, by its path on the host, so that this folder can be a mirror."""
    return Place(cache_folder() / "weights" / files.path(form))


def source_of(files: PublishedFiles, form: FormName) -> str | Path:
    """Where the file comes from: its address, or a file in a folder.

    Raises :class:`ConfigError` for a mirror of another kind.
    """
    mirror = os.environ.get(MIRROR) or HOST
    scheme, colon, rest = mirror.partition("://")
    if not colon:
        return Path(mirror).expanduser() / files.path(form)
    if scheme.lower() in ("http", "https") and not {"?", "#"} & set(rest):
        return f"{mirror.rstrip('/')}/{files.path(form)}"
    if scheme.lower() == "file" and urlsplit(mirror).netloc in ("", "localhost"):
        return Path(url2pathname(urlsplit(mirror).path)) / files.path(form)
    raise ConfigError(
        f"{MIRROR}: an http, https or file address, or a folder, is expected, without a query, got {mirror!r}"
    )
