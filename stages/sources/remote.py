"""Data sets that are somewhere else: brought to this machine, then read like any folder.

What is fetched lies under `.state/downloads`, outside DVC's outputs, so that an ingest that was killed goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.project.folders import remove, require_space
from stages.project.params_data import Coco, Coco2017, CocoSplit, Data
from stages.sources.archive import unpack
from stages.sources.http import Download, fetch, read_note
from yolov7.errors import ConfigError
from yolov7.files import write_json

logger = logging.getLogger(__name__)

DOWNLOADS = Path(".state/downloads")
_UNPACKED = "unpacked.json"
"""Says which archives `files` holds; written when it holds all of them."""


@dataclass(frozen=True)
class Fetched:
    """A data set on this machine."""

    data: Data
    """As if its source had been the folder."""
    origin: dict[str, Any]
    """Where it came from, for dataset.json."""
    disposable: bool
    """Its files are no longer needed once they were taken over."""


# Sizes and checksums as in tensorflow_datasets (url_checksums/coco.txt, Apache-2.0).
COCO2017 = (
    Download(
        "/annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    Download("/zips/val2017.zip", 815_585_330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    Download("/zips/train2017.zip", 19_336_861_798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
)
"""The official archives, by their path on the server."""


@contextmanager
def fetched(data: Data, downloads: Path = DOWNLOADS) -> Iterator[Fetched | None]:
    """Bring what `data` names; None where it names nothing remote.

    On a clean exit, unpacked files are removed; the archives they came from, and copies of buckets, are kept.
    Raises :class:`DataError` for everything that goes wrong on the way (`stages.sources.http`, `archive`, `s3_source`).
    """
    if data.source == "http" and data.http is not None:
        one = data.http
        place = downloads / _place(one.url)
        with _unpacked([Download(one.url, one.size, one.sha256)], place) as (folder, origin):
            local = data.model_copy(update={"source": one.format, "folder": str(folder)})
            yield Fetched(local, {"archives": origin}, disposable=True)
    elif data.source == "coco2017":
        with _unpacked(coco2017_archives(data.coco2017), downloads / "coco2017") as (folder, origin):
            local = data.model_copy(update={"source": "coco", "folder": str(folder), "coco": _COCO2017_LAYOUT})
            yield Fetched(local, {"archives": origin}, disposable=True)
    elif data.source == "s3" and data.s3 is not None:
        from stages.sources.s3 import bring_prefix

        folder = downloads / _place(data.s3.url)
        found = bring_prefix(data.s3, folder)
        local = data.model_copy(update={"source": data.s3.format, "folder": str(folder)})
        yield Fetched(local, {"url": data.s3.url, "objects": found.objects, "bytes": found.size}, disposable=False)
    elif data.source in ("http", "s3"):
        raise ConfigError(f"data.{data.source}: needed with `source: {data.source}`")
    else:
        yield None


_COCO2017_LAYOUT = Coco(
    train=CocoSplit(images="train2017", annotations="annotations/instances_train2017.json"),
    val=CocoSplit(images="val2017", annotations="annotations/instances_val2017.json"),
)


def coco2017_archives(parameters: Coco2017) -> list[Download]:
    """The official archives on the server that `parameters` names."""
    base = parameters.url.rstrip("/")
    return [Download(base + one.url, one.size, one.sha256) for one in COCO2017]


def _place(url: str) -> str:
    """A folder name of its own for every address; queries, which may be secrets that change, do not count."""
    address = url.partition("?")[0].rstrip("/")
    return f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{Download(address).name}"


@contextmanager
def _unpacked(archives: Sequence[Download], place: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """A folder with the content of all archives, and what they were; removed on a clean exit."""
    place.mkdir(parents=True, exist_ok=True)
    # Before the first byte: room for all archives and for what is in them. Images unpack to about their archive's size.
    total = sum(one.size or 0 for one in archives)
    there = sum(path.stat().st_size for one in archives for path in place.glob(f"{one.name}*"))
    inside = 0 if (place / "files").is_dir() else total
    require_space(place, total - there + inside, "fetching and unpacking this data set")
    paths = [fetch(one, place, spare=lambda size: size) for one in archives]
    origin = [{"url": one.shown, "sha256": read_note(path).sha256} for one, path in zip(archives, paths, strict=True)]
    files, note = place / "files", place / _UNPACKED
    if not _is_unpacked(files, note, origin):
        note.unlink(missing_ok=True)
        fresh = place / "files.new"
        remove(files)
        remove(fresh)
        for path in paths:
            unpack(path, fresh)
        fresh.rename(files)
        write_json(note, origin)
    yield files, origin
    note.unlink(missing_ok=True)
    remove(files)


def _is_unpacked(files: Path, note: Path, origin: list[dict[str, Any]]) -> bool:
    try:
        return files.is_dir() and json.loads(note.read_text(encoding="utf-8")) == origin
    except (OSError, ValueError):
        return False
