"""Downloads over HTTP from a server that misbehaves: resumed, checked, refused in words; and what is made of them."""

import hashlib
import json
import random
import shutil
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback import Served, Server, serving

from stages.ingest import ingest
from stages.project.params_data import Data
from stages.sources import http as download
from stages.sources import remote
from stages.sources.http import Download, fetch, read_note
from tests.unit.stages.test_ingest import image, picture, write_source
from yolov7.data.formats.coco import read_coco
from yolov7.errors import ConfigError, DataError

CONTENT = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(download.TOKEN, raising=False)


@pytest.fixture
def server():
    with serving() as state:
        yield state


def bring(server: Server, folder: Path, name: str = "/a.zip", **more) -> Path:
    return fetch(Download(server.url + name, **more), folder, pause=lambda seconds: None)


def test_a_file_arrives_with_a_note_of_its_origin(server, tmp_path):
    server.files["/dir/a%20b.zip"] = Served(CONTENT)
    path = bring(server, tmp_path, "/dir/a%20b.zip?token=secret")
    assert path.read_bytes() == CONTENT and path.name == "a_b.zip"
    note = read_note(path)
    assert (note.sha256, note.size, note.etag) == (SHA, len(CONTENT), '"one"')
    assert "secret" not in (tmp_path / "a_b.zip.json").read_text()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a_b.zip", "a_b.zip.json"]


def test_downloads_resume_after_cut_connections(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT, cuts=[100_000, 0, 50_000, 1])
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert server.sent() == [
        (None, 200),
        ("bytes=100000-", 206),
        ("bytes=100000-", 206),
        ("bytes=150000-", 206),
        ("bytes=150001-", 206),
    ]


def test_any_number_of_cuts_is_tolerated_while_bytes_arrive(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT, cuts=[10_000] * 25)
    assert bring(server, tmp_path, sha256=SHA).read_bytes() == CONTENT


def test_a_server_without_ranges_is_asked_for_the_whole_again(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT, ranges=False, cuts=[200_000])
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert server.sent() == [(None, 200), ("bytes=200000-", 200)]


def test_a_server_that_never_gets_further_is_given_up_and_what_came_is_kept(server, tmp_path):
    served = server.files["/a.zip"] = Served(CONTENT, cuts=[70_000, *[0] * 50])
    with pytest.raises(DataError, match=r"connection .*stopped after 6 attempts .*run it again to resume"):
        bring(server, tmp_path)
    assert (tmp_path / "a.zip.part").stat().st_size == 70_000 and not (tmp_path / "a.zip").exists()
    served.cuts.clear()
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert server.sent()[-1] == ("bytes=70000-", 206)


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(server, tmp_path):
    served = server.files["/a.zip"] = Served(CONTENT, cuts=[70_000, *[0] * 50])
    with pytest.raises(DataError):
        bring(server, tmp_path)
    server.files["/a.zip"] = Served(CONTENT[::-1], etag='"two"')
    assert bring(server, tmp_path).read_bytes() == served.content[::-1]


def test_without_a_validator_the_stated_length_tells_of_a_change(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT, etag=None, cuts=[70_000, *[0] * 50])
    with pytest.raises(DataError):
        bring(server, tmp_path)
    server.files["/a.zip"] = Served(CONTENT + b"more", etag=None)
    assert bring(server, tmp_path).read_bytes() == CONTENT + b"more"
    assert server.sent()[-2:] == [("bytes=70000-", 206), (None, 200)]


def test_a_kill_after_the_last_byte_costs_nothing(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT)
    bring(server, tmp_path)
    (tmp_path / "a.zip").rename(tmp_path / "a.zip.part")
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert server.sent()[-1] == (f"bytes={len(CONTENT)}-", 416)


def test_an_existing_file_is_checked_but_not_fetched_again(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT)
    bring(server, tmp_path)
    bring(server, tmp_path)
    assert server.sent() == [(None, 200), (None, 304)]
    bring(server, tmp_path, sha256=SHA)  # known by its checksum: no request
    assert len(server.requests) == 2
    server.files["/a.zip"] = Served(CONTENT[:10], etag='"two"')
    assert bring(server, tmp_path).read_bytes() == CONTENT[:10]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, tmp_path, status):
    server.files["/a.zip"] = Served(CONTENT, statuses=[status, status])
    assert bring(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "no such file"), (410, "no such file"), (401, "refuses access"), (403, "DATA_HTTP_TOKEN"), (418, "418")],
)
def test_a_refusal_is_reported_at_once(server, tmp_path, status, words):
    server.files["/a.zip"] = Served(CONTENT, statuses=[status] * 9)
    with pytest.raises(DataError, match=words):
        bring(server, tmp_path, "/a.zip?token=secret")
    assert len(server.requests) == 1


def test_another_size_is_refused_before_the_first_byte(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT)
    with pytest.raises(DataError, match="has 300,000 bytes; 299,999 are expected"):
        bring(server, tmp_path, size=299_999)
    assert not (tmp_path / "a.zip.part").exists()


def test_a_file_shorter_than_its_stated_length_is_incomplete(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT, length=len(CONTENT) + 9, ranges=False)
    with pytest.raises(DataError, match="stopped after"):
        bring(server, tmp_path)
    assert not (tmp_path / "a.zip").exists()


def test_another_checksum_is_refused_and_nothing_is_kept(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT[::-1])
    with pytest.raises(DataError, match=f"{SHA} is expected: the download was removed"):
        bring(server, tmp_path, sha256=SHA)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_no_stated_length_is_taken(server, tmp_path):
    server.files["/a.zip"] = Served(CONTENT, stated=False, etag=None)
    assert bring(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("stated", [True, False])
def test_too_little_space_is_found_before_the_first_byte(server, tmp_path, monkeypatch, stated):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    server.files["/a.zip"] = Served(CONTENT, stated=stated)
    with pytest.raises(DataError, match=r"needs 3\.3 MB of disk space; 0\.5 MB are free"):
        fetch(Download(server.url + "/a.zip"), tmp_path, spare=lambda size: 10 * size)
    part = tmp_path / "a.zip.part"
    assert not part.exists() or part.stat().st_size == 0 or not stated


def test_an_unreachable_server_is_reported_in_words(tmp_path):
    with serving() as state:
        url = state.url
    with pytest.raises(DataError, match=r"connection failed .*stopped after 6 attempts"):
        fetch(Download(f"{url}/a.zip"), tmp_path, pause=lambda seconds: None)


def test_a_token_is_sent_to_its_server_only(server, tmp_path, monkeypatch):
    monkeypatch.setenv(download.TOKEN, "t0ken")
    with serving() as other:
        other.files["/b.zip"] = Served(CONTENT)
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        server.files["/a.zip"] = Served(b"", statuses=[302], location=f"{elsewhere}/b.zip")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        assert bring(server, tmp_path).read_bytes() == CONTENT
        assert server.headers[0]["Authorization"] == "Bearer t0ken"
        assert "Authorization" not in other.headers[0]


def archive_of(folder: Path, target: Path) -> bytes:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))
    return target.read_bytes()


@pytest.fixture
def packed(tmp_path) -> bytes:
    for number, split in enumerate(("train", "val")):
        name = f"{split}.jpg"
        write_source(tmp_path / "made" / split, [image(7 + number, name)], {name: picture(40, 30, seed=number)})
    return archive_of(tmp_path / "made", tmp_path / "made.zip")


def http_data(url: str, **more) -> Data:
    sets = {
        split: {"images": f"{split}/images", "annotations": f"{split}/annotations.json"} for split in ("train", "val")
    }
    return Data.model_validate({"source": "http", "http": {"url": url, **more}, "coco": sets})


def test_an_archive_is_ingested_and_says_where_it_came_from(server, packed, tmp_path):
    server.files["/set.zip"] = Served(packed, cuts=[len(packed) // 2])
    ingest(http_data(f"{server.url}/set.zip?key=secret"), tmp_path / "out", tmp_path / "downloads")
    assert (tmp_path / "out/train/images/train.jpg").read_bytes() == picture(40, 30)
    assert read_coco(tmp_path / "out/val/annotations.json").annotations[0]["id"] == 108
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    checksum = hashlib.sha256(packed).hexdigest()
    assert document["source"] == "http"
    assert document["origin"] == {"archives": [{"url": f"{server.url}/set.zip", "sha256": checksum}]}
    (place,) = (tmp_path / "downloads").iterdir()
    assert sorted(path.name for path in place.iterdir()) == ["set.zip", "set.zip.json"]
    before = len(server.requests)
    ingest(http_data(f"{server.url}/set.zip", sha256=checksum), tmp_path / "out", tmp_path / "downloads")
    assert len(server.requests) == before


def test_a_killed_ingest_resumes_with_the_fetched_files(server, packed, tmp_path, monkeypatch):
    server.files["/set.zip"] = Served(packed, cuts=[1000])
    arrived = threading.Event()

    def killed(self, response, part):
        if arrived.is_set():
            raise KeyboardInterrupt
        arrived.set()
        return append(self, response, part)

    append = download._Transfer._append
    monkeypatch.setattr(download._Transfer, "_append", killed)
    monkeypatch.setattr(download, "_LONGEST_PAUSE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        ingest(http_data(f"{server.url}/set.zip"), tmp_path / "out", tmp_path / "downloads")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(download._Transfer, "_append", append)
    ingest(http_data(f"{server.url}/set.zip"), tmp_path / "out", tmp_path / "downloads")
    assert server.sent()[-1] == ("bytes=1000-", 206) and (tmp_path / "out/dataset.json").is_file()


def test_unpacked_files_stay_if_the_rest_fails(server, packed, tmp_path, monkeypatch):
    server.files["/set.zip"] = Served(packed)
    data = http_data(f"{server.url}/set.zip")
    wrong = data.model_copy(
        update={
            "coco": data.coco.model_copy(update={"val": data.coco.train.model_copy(update={"annotations": "x.json"})})
        }
    )
    with pytest.raises(DataError, match=r"files/x\.json: no such annotation file"):
        ingest(wrong, tmp_path / "out", tmp_path / "downloads")
    monkeypatch.setattr(remote, "unpack", lambda *_: pytest.fail("unpacked a second time"))
    ingest(data, tmp_path / "out", tmp_path / "downloads")
    assert (tmp_path / "out/val/images/val.jpg").is_file()


def test_coco2017_comes_from_its_archives_by_name(server, tmp_path, monkeypatch):
    archives = []
    for number, split in enumerate(("train", "val")):
        name = f"{number:012}.jpg"
        write_source(tmp_path / split, [image(number, name, license=3)], {name: picture(40, 30, seed=number)})
        (tmp_path / f"{split}-zip").mkdir()
        (tmp_path / split / "images").rename(tmp_path / f"{split}-zip" / f"{split}2017")
        archives.append((f"/zips/{split}2017.zip", archive_of(tmp_path / f"{split}-zip", tmp_path / f"{split}.zip")))
        target = tmp_path / "annotations-zip/annotations" / f"instances_{split}2017.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / split / "annotations.json").rename(target)
    archives.append(
        ("/annotations/annotations_trainval2017.zip", archive_of(tmp_path / "annotations-zip", tmp_path / "a.zip"))
    )
    known = tuple(Download(path, len(body), hashlib.sha256(body).hexdigest()) for path, body in archives)
    monkeypatch.setattr(remote, "COCO2017", known)
    for path, body in archives:
        server.files[path] = Served(body, cuts=[len(body) // 2])
    data = Data.model_validate({"source": "coco2017", "coco2017": {"url": f"{server.url}/"}})
    monkeypatch.setattr(download, "_LONGEST_PAUSE", 0.0)
    ingest(data, tmp_path / "out", tmp_path / "downloads")
    document = json.loads((tmp_path / "out/dataset.json").read_text())
    assert document["source"] == "coco2017" and document["test_is_val"]
    assert [document["splits"][split]["images"] for split in ("train", "val")] == [1, 1]
    assert read_coco(tmp_path / "out/train/annotations.json").images[0]["license"] == 3
    assert {one["url"] for one in document["origin"]["archives"]} == {server.url + path for path, _ in archives}
    assert (tmp_path / "out/train/images/000000000000.jpg").stat().st_nlink == 1


def test_coco2017_asks_for_all_the_space_before_the_first_byte(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=40 * 10**9))
    data = Data.model_validate({"source": "coco2017", "coco2017": {"url": server.url}})
    with pytest.raises(DataError, match=r"needs 40\.8 GB of disk space; 40\.0 GB are free"):
        ingest(data, tmp_path / "out", tmp_path / "downloads")
    assert server.requests == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "http"}, r"data\.http: needed with `source: http`"),
        ({"source": "s3"}, r"data\.s3: needed with `source: s3`"),
        ({"source": "http", "http": {"url": "https://host/a.zip"}}, r"data\.coco: needed with `source: http`"),
        ({"source": "http", "http": {"url": "ftp://host/a.zip"}}, "not an address of the form http://"),
        ({"source": "http", "http": {"url": "https://me:pass@host/a.zip"}}, "remove user name and password"),
        ({"source": "http", "http": {"url": "a.zip"}}, "not an address of the form"),
        ({"source": "s3", "s3": {"url": "https://bucket/x"}}, "not an address of the form s3://"),
        ({"source": "coco2017", "coco2017": {"url": "http://[::1"}}, "not an address"),
    ],
)
def test_invalid_addresses_are_refused(tmp_path, values, words):
    with pytest.raises(ConfigError, match=words):
        ingest(Data.model_validate(values), tmp_path / "out", tmp_path / "downloads")
