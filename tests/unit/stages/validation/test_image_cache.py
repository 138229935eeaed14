"""Image checks of many files: what is remembered, what is noticed, and what an interruption leaves."""

import logging
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.validation import images, progress
from stages.validation.image_cache import ImageCache, ImageCheck, Stamp, stamp_of
from stages.validation.images import check_images
from stages.validation.progress import Progress, time_left

ROOT = Path(__file__).parents[4]


def make_images(folder: Path, count: int) -> list[Path]:
    import cv2

    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(cv2.imencode(".png", np.full((8, 8 + i, 3), i, np.uint8))[1].tobytes())
        age(path)
    return paths


def age(path: Path) -> None:
    """An hour old, so that its digest is kept."""
    os.utime(path, (time.time() - 3600,) * 2)


@pytest.fixture
def read_files(monkeypatch) -> list[str]:
    """The files whose bytes are read for a digest."""
    found: list[str] = []
    digest = images._sha256
    monkeypatch.setattr(images, "_sha256", lambda path: (found.append(path), digest(path))[1])
    return found


@pytest.fixture
def decoded_here(monkeypatch) -> None:
    """Decode in this process: these files are harmless, and processes take a second to start."""
    monkeypatch.setattr(images, "_decode_all", lambda paths: (images.check_image(path) for path in paths))


@pytest.mark.usefixtures("decoded_here")
def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(tmp_path, read_files, monkeypatch):
    monkeypatch.setattr(images, "clear_complaints", lambda: None)
    monkeypatch.setattr(images, "complaints", lambda: "")
    paths, cache = make_images(tmp_path / "images", 5), tmp_path / "checks.sqlite"
    first = check_images(paths, decode=True, cache=cache)
    assert len(read_files) == 5 and first.decoded == 5
    read_files.clear()
    assert check_images(paths, decode=True, cache=cache) == images.CheckedImages(first.checks, 0)
    assert read_files == []

    content = bytearray(paths[2].read_bytes())
    before = paths[2].stat()
    content[-20] ^= 1  # of the same size, and with the time set back
    paths[2].write_bytes(bytes(content))
    os.utime(paths[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    paths[3].unlink()
    changed = check_images(paths, decode=True, cache=cache)
    assert read_files == [str(paths[2]), str(paths[3])]
    assert [one == other for one, other in zip(first.checks, changed.checks, strict=True)] == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert not changed.checks[3].exists


def test_the_digest_of_a_file_that_was_just_written_is_not_kept(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    with ImageCache(tmp_path / "checks.sqlite") as cache:
        stamp = stamp_of(str(path))
        cache.add_file(str(path), stamp, "one")
    with ImageCache(tmp_path / "checks.sqlite") as cache:
        assert not stamp.is_settled and cache.digests([str(path)], [stamp]) == {}
        age(path)
        cache.add_file(str(path), stamp_of(str(path)), "one")
    with ImageCache(tmp_path / "checks.sqlite") as cache:
        assert cache.digests([str(path), "none"], [stamp_of(str(path)), None]) == {str(path): "one"}
    assert stamp_of(str(tmp_path / "none")) is None


_KILLED = """
import os, signal, sys
from pathlib import Path
from stages.validation import image_cache, images

image_cache._BATCH = 4
def check(paths):
    for number, path in enumerate(paths):
        if number == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        yield image_cache.ImageCheck(exists=True, width=number + 1)
images._decode_all = check
images.check_images(sorted(Path(sys.argv[1]).iterdir()), decode=True, cache=Path(sys.argv[2]))
"""


def test_a_killed_check_resumes(tmp_path, read_files, monkeypatch):
    make_images(tmp_path / "images", 24)
    cache = tmp_path / "checks.sqlite"
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "images"), str(cache)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    with sqlite3.connect(cache) as database:
        assert database.execute("SELECT count(*) FROM checks").fetchone() == (8,)
    decoded: list[Path] = []

    def decode(paths):
        for path in paths:
            decoded.append(path)
            yield images.ImageCheck(exists=True, width=0)

    monkeypatch.setattr(images, "_decode_all", decode)
    paths = sorted((tmp_path / "images").iterdir())
    found = check_images(paths, decode=True, cache=cache)
    assert decoded == paths[8:] and found.decoded == 16 and read_files == []
    assert [check.width for check in found.checks] == [*range(1, 9), *[0] * 16]


def test_a_cache_with_damaged_pages_is_begun_anew(tmp_path, caplog):
    path, names = tmp_path / "checks.sqlite", [f"{number}.png" for number in range(400)]
    stamps = [Stamp(name, is_settled=True) for name in names]
    with ImageCache(path) as cache:
        for name, stamp in zip(names, stamps, strict=True):
            cache.add(name, ImageCheck(exists=True))
            cache.add_file(name, stamp, name)
    data = path.read_bytes()
    assert len(data) > 20 * 4096
    path.write_bytes(data[: 8 * 4096] + b"\xff" * (len(data) - 8 * 4096))
    with ImageCache(path) as cache:
        assert len(cache.digests(names, stamps)) < len(names) and len(cache.read(names)) < len(names)
        assert "damaged; starting with an empty cache" in caplog.text
        cache.add("new", ImageCheck(exists=True))
    with ImageCache(path) as cache:
        assert cache.read([*names, "new"]).keys() == {"new"}


def test_long_work_says_how_much_is_left(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    counted = Progress("reading images", 1_000_000)
    with caplog.at_level(logging.INFO):
        for now[0] in (10.0, 20.0, 25.0, 100.0):
            counted.add(10_000)
        counted.add(960_000)
    assert caplog.messages == [
        "reading images: 20,000 of 1,000,000, 1000 a second, 16 min left",
        "reading images: 40,000 of 1,000,000, 400 a second, 40 min left",
    ]
    assert [time_left(seconds) for seconds in (5, 100, 11_100)] == ["5 s", "2 min", "3 h 05 min"]


@pytest.mark.usefixtures("decoded_here")
def test_reading_and_decoding_say_how_much_is_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(images, "_FILES_AT_ONCE", 2)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    monkeypatch.setattr(images, "clear_complaints", lambda: None)
    monkeypatch.setattr(images, "complaints", lambda: "")
    paths, cache = make_images(tmp_path / "images", 5), tmp_path / "checks.sqlite"
    with caplog.at_level(logging.INFO):
        first = check_images(paths, decode=True, cache=cache)
    told = [re.sub(r"\d+ a second, .*", "...", message) for message in caplog.messages]
    reading = [f"reading images: {done} of 5, ..." for done in (2, 4)]
    assert told == reading + [f"decoding images: {done} of 5, ..." for done in (1, 2, 3, 4)]
    assert all(message.endswith(" s left") for message in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert check_images(paths, decode=True, cache=cache).checks == first.checks
    assert [re.sub(r"\d+ a second, .*", "...", message) for message in caplog.messages] == reading
