"""A set of annotated images in a folder: records as COCO's, whatever the format was, and the files they name."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolov7.data.formats.coco import CocoAnnotations, Record
from yolov7.data.formats.label_files import unsafe_name
from yolov7.errors import DataError
from yolov7.text import listed


@dataclass(frozen=True)
class ImageSet:
    """Annotated images and their folder."""

    coco: CocoAnnotations
    root: Path
    """Folder of the `file_name` entries."""
    key: str
    """Key of the set in params.yaml, for messages."""
    notes: tuple[str, ...] = ()
    """Records that the reader left out or added; for dataset.json."""
    disposable: bool = False
    """The files are temporary: they are linked instead of copied, if possible."""

    @property
    def source(self) -> str:
        """The format: `coco`, `voc` or `yolo`."""
        return self.key.split(".")[1] if "." in self.key else self.key

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise DataError(f"no such image folder; see {self.key}.images", path=self.root)


def locate(coco: CocoAnnotations, root: Path) -> list[tuple[Path, Record]]:
    """The file of every image record, in their order; links are followed, but not out of the folder.

    Raises :class:`DataError` for missing files and unsafe names: all are checked, and the first few named.
    """
    inside = root.resolve()
    found: list[tuple[Path, Record]] = []
    refused: list[tuple[Record, str]] = []
    for record in coco.images:
        path, reason = find_file(inside, record["file_name"])
        if path is not None:
            found.append((path, record))
        elif reason is not None:
            refused.append((record, reason))
    if refused:
        raise DataError(refused_images(refused, len(coco.images), root), path=coco.path)
    return found


def refused_images(refused: Sequence[tuple[Record, str]], total: int, root: Path) -> str:
    """The message on image records without a file, each with the reason."""
    reasons = [f"image {record['id']}: {_shown(record['file_name'])} {reason}" for record, reason in refused]
    return f"{len(refused)} of {total} images cannot be taken from {root}: {listed(reasons, joint='; ')}"


def find_file(inside: Path, name: str) -> tuple[Path | None, str | None]:
    """The regular file of a name below a resolved folder, or the reason why there is none.

    Links are followed, but not out of the folder.
    """
    reason = unsafe_name(name)
    if reason is not None:
        return None, reason
    try:
        path = (inside / name).resolve(strict=True)
    except FileNotFoundError:
        return None, _missing(inside / name)
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        reason = getattr(error, "strerror", None) or "circular links"
        return None, f"cannot be reached ({reason})"
    if not path.is_relative_to(inside):
        return None, "is a link that leaves the image folder"
    if not path.is_file():
        return None, "is not a file"
    return path, None


def _missing(path: Path) -> str:
    """The reason for a missing file, with one that may be meant."""
    with contextlib.suppress(OSError):
        for other in path.parent.iterdir():
            if other.name.casefold() == path.name.casefold():
                return f"is missing; there is {other.name!r}, which differs in case"
    return "is missing"


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else name[:117] + "...")
