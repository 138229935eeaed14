"""Data sets on other machines: fetched, then read like any folder.

Downloads are kept in `.state/downloads`, outside DVC's outputs, so that a killed ingest resumes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.project.params_data import S3, Coco2017, Data, Http, required
from stages.project.redaction import bare_address
from stages.sources.archive import unpack
from stages.sources.http import Download, fetch, read_note
from yolov7.data.sources.parameters import Coco, CocoSplit
from yolov7.files import write_json
from yolov7.folders import remove, require_space

_UNPACKED = "unpacked.json"
"""Names the archives that `files` holds; written once it holds all of them."""


@dataclass(frozen=True)
class Fetched:
    """A data set on this machine."""

    data: Data
    """`data` with the folder as its source."""
    origin: dict[str, Any] | None
    """Its origin, for dataset.json; None for data of this machine."""
    disposable: bool
    """Its files are not needed after the ingest."""


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
def fetch_archive(data: Data, downloads: Path) -> Iterator[Fetched]:
    """The archive that `data.http` names, unpacked; the unpacked files are removed on a clean exit."""
    http: Http = required(data, "http")
    archives = [Download(http.url, http.size, http.sha256)]
    with _unpacked(archives, downloads / _place(http.url)) as (folder, origin):
        yield Fetched(_local(data, http.format, folder), {"archives": origin}, disposable=True)


@contextmanager
def fetch_coco2017(data: Data, downloads: Path) -> Iterator[Fetched]:
    """The official archives of COCO 2017, unpacked; the unpacked files are removed on a clean exit."""
    with _unpacked(coco2017_archives(data.coco2017), downloads / "coco2017") as (folder, origin):
        local = _local(data, "coco", folder).model_copy(update={"coco": _COCO2017_LAYOUT})
        yield Fetched(local, {"archives": origin}, disposable=True)


@contextmanager
def fetch_prefix(data: Data, downloads: Path) -> Iterator[Fetched]:
    """A mirror of the prefix that `data.s3` names; it stays for the next call."""
    from stages.sources.s3 import mirror_prefix

    s3: S3 = required(data, "s3")
    folder = downloads / _place(s3.url)
    mirrored = mirror_prefix(s3, folder)
    origin = {"url": bare_address(s3.url), "objects": mirrored.objects, "bytes": mirrored.size}
    yield Fetched(_local(data, s3.format, folder), origin, disposable=False)


def _local(data: Data, source: str, folder: Path) -> Data:
    """`data` with `folder` as its source."""
    return data.model_copy(update={"source": source, "folder": str(folder)})


_COCO2017_LAYOUT = Coco(
    train=CocoSplit(images="train2017", annotations="annotations/instances_train2017.json"),
    val=CocoSplit(images="val2017", annotations="annotations/instances_val2017.json"),
)


def coco2017_archives(parameters: Coco2017) -> list[Download]:
    """The official archives on the server that `parameters` names."""
    base = parameters.url.rstrip("/")
    return [Download(base + archive.url, archive.size, archive.sha256) for archive in COCO2017]


def _place(url: str) -> str:
    """A folder name per address, without its query: that may be a secret, and change."""
    address = url.partition("?")[0].rstrip("/")
    return f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{Download(address).name}"


@contextmanager
def _unpacked(archives: Sequence[Download], place: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Yield a folder with the content of all archives, and their origin; remove the folder on a clean exit."""
    place.mkdir(parents=True, exist_ok=True)
    # Before the first byte: room for all archives and their content. Images unpack to about their archive's size.
    total = sum(archive.size or 0 for archive in archives)
    there = sum(path.stat().st_size for archive in archives for path in place.glob(f"{archive.name}*"))
    inside = 0 if (place / "files").is_dir() else total
    require_space(place, total - there + inside, "fetching and unpacking this data set")
    paths = [fetch(archive, place, spare=lambda size: size) for archive in archives]
    origin = [
        {"url": archive.shown, "sha256": read_note(path).sha256} for archive, path in zip(archives, paths, strict=True)
    ]
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
