"""The source `s3` against a real S3 server on loopback: mirrored, resumed over cut connections, refused in words."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.ingest import ingest
from stages.project.params_data import S3, Data
from stages.sources import s3 as s3_source
from stages.sources.s3 import mirror_prefix
from tests.pipeline.servers import s3_credentials, s3_server
from tests.unit.stages.test_ingest import image, picture, write_source
from yolov7.errors import DataError

pytestmark = [pytest.mark.slow, pytest.mark.thorough]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A server, and the folder whose folders are its buckets."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "buckets").mkdir()
    with s3_server(folder, watches=True) as port:
        yield SimpleNamespace(folder=folder / "buckets", url=f"http://127.0.0.1:{port}", port=port)


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    values = s3_credentials(0)
    del values["AWS_ENDPOINT_URL"]
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(store, tmp_path) -> Iterator[SimpleNamespace]:
    """A bucket of its own for each test."""
    name = f"bucket-{len(list(store.folder.iterdir()))}"
    (store.folder / name).mkdir()
    yield SimpleNamespace(folder=store.folder / name, url=f"s3://{name}", store=store)


def put(folder: Path, **files: bytes) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def found(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source(bucket: SimpleNamespace, prefix: str = "/set", **more) -> S3:
    return S3(url=bucket.url + prefix, endpoint=more.pop("endpoint", bucket.store.url), **more)


@contextmanager
def cutting(port: int, cuts: list[int]) -> Iterator[str]:
    """An address that passes everything on to `port`, but ends the next connections after that many bytes answered."""
    listener = socket.create_server(("127.0.0.1", 0))

    def passes_on(one: socket.socket, other: socket.socket, limit: int | None) -> None:
        try:
            while piece := one.recv(65536):
                if limit is not None:
                    piece, limit = piece[:limit], limit - len(piece[:limit])
                other.sendall(piece)
                if limit == 0:
                    break
        except OSError:
            pass
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accepts() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            limit = cuts.pop(0) if cuts else None
            threading.Thread(target=passes_on, args=(client, server, None), daemon=True).start()
            threading.Thread(target=passes_on, args=(server, client, limit), daemon=True).start()

    threading.Thread(target=accepts, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def test_a_bucket_is_ingested_by_the_endpoint_of_the_environment(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.store.url)
    for number, split in enumerate(("train", "val", "test")):
        name = f"sub/{split}.jpg"
        write_source(bucket.folder / "set" / split, [image(number, name)], {name: picture(40, 30, seed=number)})
    put(bucket.folder, other__x=b"not below the prefix")
    splits = ("train", "val", "test")
    sets = {split: {"images": f"{split}/images", "annotations": f"{split}/annotations.json"} for split in splits}
    data = Data.model_validate({"source": "s3", "s3": {"url": f"{bucket.url}/set/"}, "coco": sets})
    ingest(data, tmp_path / "out", tmp_path / "downloads")
    assert (tmp_path / "out/test/images/sub/test.jpg").read_bytes() == picture(40, 30, seed=2)
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    size = sum(path.stat().st_size for path in (bucket.folder / "set").rglob("*") if path.is_file())
    assert document["origin"] == {"url": f"{bucket.url}/set/", "objects": 6, "bytes": size}


def test_only_what_has_changed_is_fetched_and_what_is_gone_is_removed(bucket, tmp_path):
    put(bucket.folder, set__a=b"1" * 10, set__b__c=b"2" * 10, set__old=b"3", set__empty=b"")
    mirrored = mirror_prefix(source(bucket), tmp_path / "m")
    assert (mirrored.objects, mirrored.size) == (4, 21)
    kept = (tmp_path / "m/a").stat().st_ino
    changed = bucket.folder / "set/b/c"
    changed.write_bytes(b"4" * 10)
    os.utime(changed, (2_000_000_000, 2_000_000_000))
    (bucket.folder / "set/old").unlink()
    put(bucket.folder, set__old__new=b"5")
    mirror_prefix(source(bucket), tmp_path / "m")
    assert found(tmp_path / "m") == {"a": b"1" * 10, "b/c": b"4" * 10, "old/new": b"5", "empty": b""}
    assert (tmp_path / "m/a").stat().st_ino == kept and not (tmp_path / "m.parts").exists()


def test_an_object_arrives_whole_although_its_connection_is_cut(bucket, tmp_path):
    content = os.urandom(3_000_000)
    put(bucket.folder, set__big=content)
    cuts = [1_500_000, 700_000]
    with cutting(bucket.store.port, cuts) as url:
        mirror_prefix(source(bucket, endpoint=url, parallel=1), tmp_path / "m")
    assert cuts == [] and found(tmp_path / "m") == {"big": content}


def test_files_fetched_before_a_failure_are_not_fetched_again(bucket, tmp_path, monkeypatch):
    content = os.urandom(3_000_000)
    put(bucket.folder, set__a=b"first", set__big=content)
    monkeypatch.setattr(s3_source, "_ATTEMPTS", 1)
    with (
        cutting(bucket.store.port, [2_000_000, *[0] * 99]) as url,
        pytest.raises(DataError, match=r"run it again to resume|cannot be read"),
    ):
        mirror_prefix(source(bucket, endpoint=url, parallel=1), tmp_path / "m")
    assert found(tmp_path / "m") == {"a": b"first"}
    put(tmp_path, **{"m.parts__left": b"by a killed run"})
    asked: list[str | None] = []
    fetch = s3_source._fetch
    monkeypatch.setattr(s3_source, "_fetch", lambda *given: (asked.append(given[2].key), fetch(*given)))
    mirror_prefix(source(bucket), tmp_path / "m")
    assert asked == ["set/big"] and found(tmp_path / "m") == {"a": b"first", "big": content}
    assert not (tmp_path / "m.parts").exists()


def test_an_object_that_changes_after_it_was_listed_is_refused(bucket, tmp_path, monkeypatch):
    put(bucket.folder, set__a=b"1" * 10)
    missing = s3_source._missing

    def changed(*given: object) -> list[object]:
        put(bucket.folder, set__a=b"2" * 11)
        return missing(*given)

    monkeypatch.setattr(s3_source, "_missing", changed)
    with pytest.raises(DataError, match=r"set/a: the object has changed since it was listed; run it again"):
        mirror_prefix(source(bucket), tmp_path / "m")
    assert found(tmp_path / "m") == {}


def test_an_object_is_asked_for_once_and_by_the_tag_it_was_listed_with(bucket, tmp_path, monkeypatch):
    """Servers that honour `If-Match` refuse a change of the same size; the one of these tests ignores it."""
    put(bucket.folder, set__a=b"1" * 10, set__b=b"2" * 12_000_000)  # the second in several ranges
    requests: list[tuple[str, str | None]] = []
    made = s3_source._client

    def watched(source: S3) -> object:
        client = made(source)
        for name in ("HeadObject", "GetObject"):
            record = lambda params, name=name, **_: requests.append((name, params["headers"].get("If-Match")))  # noqa: E731
            client.meta.events.register(f"before-call.s3.{name}", record)
        return client

    monkeypatch.setattr(s3_source, "_client", watched)
    mirror_prefix(source(bucket), tmp_path / "m")
    tags = {
        entry["ETag"] for entry in made(source(bucket)).list_objects_v2(Bucket=bucket.url.split("/")[2])["Contents"]
    }
    assert {name for name, _ in requests} == {"GetObject"} and {tag for _, tag in requests} == tags


def test_a_wrong_secret_no_bucket_and_an_empty_prefix_give_different_errors(bucket, tmp_path, monkeypatch):
    put(bucket.folder, set__a=b"1")
    with pytest.raises(DataError, match="nothing below this prefix"):
        mirror_prefix(source(bucket, "/other"), tmp_path / "m")
    with pytest.raises(DataError, match=r"refuses \(NoSuchBucket\): correct the bucket's name"):
        mirror_prefix(S3(url="s3://no-such-bucket/set", endpoint=bucket.store.url), tmp_path / "m")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DataError, match=r"refuses \((SignatureDoesNotMatch|AccessDenied|403)\)"):
        mirror_prefix(source(bucket), tmp_path / "m")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DataError, match="no credentials: set AWS_ACCESS_KEY_ID"):
        mirror_prefix(source(bucket), tmp_path / "m")


def test_too_little_space_is_found_before_the_first_object(bucket, tmp_path, monkeypatch):
    put(bucket.folder, set__a=b"1" * 3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(DataError, match=r"needs 6\.0 MB of disk space; 5\.0 MB are free"):
        mirror_prefix(source(bucket), tmp_path / "m")
    assert found(tmp_path / "m") == {}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["set/../../x"], r"leaves the image folder"),
        (["set//x"], "an absolute path"),
        (["set/a//x"], "is not a plain path"),
        (["set/a\\x"], "Windows path"),
        (["set/a", "set/a/x"], "a is an object too"),
    ],
)
def test_keys_that_are_not_file_names_are_refused(keys, words):
    class Listing:
        """Keys that S3 can hold but a server on a file system cannot."""

        def get_paginator(self, name: str) -> Listing:
            return self

        def paginate(self, **_: str) -> list[dict[str, object]]:
            time = SimpleNamespace(timestamp=lambda: 0.0)
            return [{"Contents": [{"Key": key, "Size": 1, "ETag": "e", "LastModified": time} for key in keys]}]

    with pytest.raises(DataError, match=words):
        s3_source._listed(Listing(), "bucket", "set/", "s3://bucket/set")
