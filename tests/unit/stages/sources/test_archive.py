"""Untrusted archives: sound ones are unpacked; members that lead out, link, nest or explode are refused by name."""

import gzip
import io
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.sources.archive import Limits, unpack
from yolov7.errors import DataError

FILES = {"annotations/a.json": b"{}", "images/sub/1.jpg": bytes(range(256)) * 999, "images/empty.jpg": b""}


def zipped(path: Path, members: dict[str, bytes], *, method: int = zipfile.ZIP_DEFLATED, **fields) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for key, value in fields.items():
                setattr(info, key, value)
            packed.writestr(info, content)
    return path


def tarred(path: Path, members: dict[str, bytes], mode: str = "w:gz", **fields) -> Path:
    with tarfile.open(path, mode) as packed:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            packed.addfile(info, io.BytesIO(content))
    return path


def found(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "make",
    [
        zipped,
        lambda path, members: zipped(path, {"images/": b"", **members}, method=zipfile.ZIP_STORED),
        tarred,
        lambda path, members: tarred(path, members, "w"),
        lambda path, members: tarred(path, {f"./{name}": content for name, content in members.items()}),
    ],
)
def test_sound_archives_are_unpacked_whatever_their_name(tmp_path, make):
    assert unpack(make(tmp_path / "download", FILES), tmp_path / "out") == 3
    assert found(tmp_path / "out") == FILES


def test_a_folder_packed_from_inside_is_unpacked(tmp_path):
    (tmp_path / "in/images").mkdir(parents=True)
    (tmp_path / "in/images/a.jpg").write_bytes(b"x")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as packed:
        packed.add(tmp_path / "in", ".")
    assert unpack(tmp_path / "a.tgz", tmp_path / "out") == 1 and found(tmp_path / "out") == {"images/a.jpg": b"x"}


def test_long_and_foreign_names_survive(tmp_path):
    members = {"ä/" + "b" * 150 + "/" + "c" * 150 + ".jpg": b"x", "日本.jpg": b"y"}
    for number, make in enumerate((zipped, tarred)):
        unpack(make(tmp_path / f"{number}", members), tmp_path / f"out{number}")
        assert found(tmp_path / f"out{number}") == members


OUTWARD = [
    ("../x.jpg", r"leaves the image folder by `\.\.`"),
    ("a/../../x.jpg", r"leaves the image folder"),
    ("/etc/x.jpg", "absolute path"),
    ("..\\x.jpg", "Windows path"),
    ("C:/x.jpg", "Windows path"),
    ("b/c.zip", "an archive within the archive"),
    ("c.tar.gz", "an archive within the archive"),
    ("n" * 300 + ".jpg", "too long"),
]


@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize(("name", "words"), OUTWARD)
def test_members_that_lead_elsewhere_are_refused_and_nothing_is_left(tmp_path, make, name, words):
    archive = make(tmp_path / "set.archive", {"a.jpg": b"a", name: b"b"})
    with pytest.raises(DataError, match=rf"set\.archive: member '.*': .*{words}"):
        unpack(archive, tmp_path / "in/out")
    assert found(tmp_path) == {"set.archive": archive.read_bytes()}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link, a device or sparse"),
        ({"type": tarfile.LNKTYPE, "linkname": "a.jpg"}, "a link, a device or sparse"),
        ({"type": tarfile.CHRTYPE}, "a link, a device or sparse"),
        ({"type": tarfile.FIFOTYPE}, "a link, a device or sparse"),
    ],
)
def test_links_and_devices_of_a_tar_are_refused(tmp_path, fields, words):
    with pytest.raises(DataError, match=words):
        unpack(tarred(tmp_path / "a.tar", {"x": b""}, "w", **fields), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"external_attr": 0o120777 << 16}, "a link or a device"),
        ({"external_attr": 0o060644 << 16}, "a link or a device"),
    ],
)
def test_links_and_devices_of_a_zip_are_refused(tmp_path, fields, words):
    with pytest.raises(DataError, match=words):
        unpack(zipped(tmp_path / "a.zip", {"x": b"/etc/passwd"}, **fields), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encrypted_member_is_refused(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"x.jpg": b"x"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="is encrypted"):
        unpack(archive, tmp_path / "out")


def test_other_methods_of_packing_are_refused(tmp_path):
    with pytest.raises(DataError, match="packed by method 14"):
        unpack(zipped(tmp_path / "a.zip", {"x.jpg": b"x"}, method=zipfile.ZIP_LZMA), tmp_path / "out")
    with pytest.raises(DataError, match=r"not a zip, tar or tar\.gz"):
        unpack(tarred(tmp_path / "a.tar.xz", FILES, "w:xz"), tmp_path / "out")


def test_the_same_member_twice_is_refused(tmp_path):
    for number, names in enumerate([("a/x", "a/./x"), ("a/x", "a"), ("a", "a/x")]):
        members = dict.fromkeys(names, b"x")
        for make in (zipped, tarred):
            with pytest.raises(DataError, match=r"occurs twice|which is a file"):
                unpack(make(tmp_path / f"{number}", members), tmp_path / "out")


ZEROS = bytes(80 * 2**20)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_exploding_archive_is_refused_before_it_is_written(tmp_path, make):
    archive = make(tmp_path / "bomb", {"a.jpg": ZEROS})
    assert archive.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb: member 'a\.jpg': unpacks to more than 200 times its size"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_members_that_share_their_bytes_explode_together(tmp_path):
    # Each member alone is small; the list of members names the same bytes again and again.
    archive = zipped(tmp_path / "a.zip", {"0": bytes(2**20)})
    content = archive.read_bytes()
    at, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = content[at:end]
    entries = b"".join(
        entry[:28] + struct.pack("<H", 3) + entry[30:46] + f"{number:03}".encode() for number in range(500)
    )
    tail = struct.pack("<4s4xHHIIH", b"PK\x05\x06", 500, 500, len(entries), at, 0)
    archive.write_bytes(content[:at] + entries + tail)
    with pytest.raises(DataError, match=r"more than 200 times|damaged"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [zipped, tarred])
@pytest.mark.parametrize(
    ("limits", "words"),
    [(Limits(members=2), "beyond the 2 members"), (Limits(total=200_000), r"beyond 0\.2 MB")],
)
def test_members_and_bytes_are_limited(tmp_path, make, limits, words):
    with pytest.raises(DataError, match=words):
        unpack(make(tmp_path / "a", FILES), tmp_path / "out", limits)


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"does not fit on the disk: 0\.0 MB were free"):
        unpack(zipped(tmp_path / "a.zip", FILES), tmp_path / "out")


def test_a_huge_list_of_members_is_not_read(tmp_path):
    archive = zipped(tmp_path / "a.zip", {f"{number}": b"" for number in range(50)})
    with pytest.raises(DataError, match="the list of members alone has"):
        unpack(archive, tmp_path / "out", Limits(directory=1000))


def test_a_header_of_a_tar_as_long_as_it_says_is_not_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 10**6
        packed.addfile(info, io.BytesIO(b"n" * 10**6))
        packed.addfile(tarfile.TarInfo("x"))
    with pytest.raises(DataError, match="longer than any file name"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("make", [zipped, tarred, lambda path, members: tarred(path, members, "w")])
def test_a_damaged_archive_is_reported_in_words(tmp_path, make):
    content = make(tmp_path / "a", FILES).read_bytes()
    for number, broken in enumerate(
        [content[: len(content) // 2], content[:300], content[:200] + b"x" * 90 + content[290:]]
    ):
        (tmp_path / "b").write_bytes(broken)
        with pytest.raises(DataError, match=r"/b: .*(damaged|cut short|not readable|not a zip|size than)"):
            unpack(tmp_path / "b", tmp_path / f"out{number}")
        assert not (tmp_path / f"out{number}").exists()


def test_a_file_that_is_not_an_archive_is_refused(tmp_path):
    for number, content in enumerate(
        [b"", b"PK", b"<html>not found</html>", gzip.compress(b"{}"), gzip.compress(b"{}" * 999)]
    ):
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.zip: (not a zip|the archive is)"):
            unpack(tmp_path / "a.zip", tmp_path / f"out{number}")
