"""Published weights by name: fetched once, checked, noted, kept; never other bytes without a word."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from loopback import Served, serving

import yolov7
from tests.unit.yolov7.model.test_published import published_state
from tests.unit.yolov7.model.test_yolov6_files import filled
from tests.unit.yolov7.model.test_yolov6_files import state as yolov6_state
from tests.unit.yolov7.model.test_yolov9_files import state as yolov9_state
from yolov7.cli import main
from yolov7.errors import ModelError
from yolov7.model import load_checkpoint
from yolov7.weights import download, fetch
from yolov7.weights.coco import CLASSES
from yolov7.weights.fetch import kept_file, origin_of, published_detector, published_file, start_file
from yolov7.weights.places import CACHE, MIRROR, place_of
from yolov7.weights.releases import RELEASED

TINY = "yolov7-tiny"
PATH = f"/{RELEASED[TINY].path('deploy')}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "yolov7-tiny.pt"
    torch.save({"model": published_state(TINY, form="deploy"), "ema": None, "epoch": -1}, path)
    return path.read_bytes()


@pytest.fixture
def server(monkeypatch, tmp_path):
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    with serving() as state:
        monkeypatch.setenv(MIRROR, state.url)
        yield state


def place():
    return place_of(RELEASED[TINY], "deploy")


def left() -> list[str]:
    """Names in the cache folder, without locks."""
    folder = place().path.parent
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def refusal(call=lambda: published_detector(TINY)) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_detector_by_name_is_fetched_once_and_kept(server, tiny, caplog):
    server.files[PATH] = Served(tiny, cuts=[1_000_000])
    with caplog.at_level(logging.INFO):
        detector = yolov7.load_detector(TINY)
    told = caplog.text
    assert f"fetching it from {server.url}{PATH}" in told and "under GPL-3.0, not under this project's licence" in told
    assert [status for _, status in server.sent()] == [200, 206]
    assert left() == ["yolov7-tiny.pt", "yolov7-tiny.pt.json", "yolov7-tiny.safetensors"]
    assert place().path.read_bytes() == tiny
    sha256 = hashlib.sha256(tiny).hexdigest()
    note = json.loads(place().note.read_text())
    assert (note["sha256"], note["size"]) == (sha256, len(tiny))

    metadata = detector.runtime.metadata
    assert (metadata.form, metadata.class_names, metadata.category_ids[-1]) == ("deploy", CLASSES, 90)
    address = f"https://github.com{PATH}"
    assert metadata.extra["published_weights"] == {"address": address, "sha256": sha256, "licence": "GPL-3.0"}
    expected = yolov7.create_model(TINY, seed=2)
    expected.load_official(place().path)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        ours, theirs = load_checkpoint(place().converted)[0](image), expected.reparameterize().eval()(image)
    assert torch.equal(ours, theirs)

    caplog.clear()
    server.files.clear()
    again = yolov7.load_detector(TINY)
    assert len(server.requests) == 2 and "fetching" not in caplog.text
    assert len(again.predict([np.zeros((64, 64, 3), np.uint8)])) == 1


def test_no_network_says_which_file_goes_where_and_by_hand_works(server, tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:9")
    message = refusal()
    assert f"put yolov7-tiny.pt at {place().path}, or name a mirror in {MIRROR}" in message and left() == []
    assert main(["fetch-weights", TINY]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert (
        last.startswith(f"error: {TINY}: http://127.0.0.1:9{PATH}: ")
        and f"put yolov7-tiny.pt at {place().path}" in last
    )
    place().path.write_bytes(tiny)
    assert published_detector(TINY) == place().converted
    assert main(["fetch-weights", TINY, "--form", "training"]) == 0
    assert f"sha256 {hashlib.sha256(tiny).hexdigest()}" in capsys.readouterr().out
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((64, 64, 3), np.uint8))
    assert main(["predict", str(tmp_path / "photo.jpg"), "--model", TINY, "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/detections.json").is_file()
    assert not server.requests


def test_a_folder_is_a_mirror_and_so_is_another_machine_s_cache(server, tiny, monkeypatch, tmp_path):
    server.files[PATH] = Served(tiny)
    published_file(TINY, "training")
    monkeypatch.setenv(CACHE, str(tmp_path / "other"))
    for mirror in (tmp_path / "cache/weights", (tmp_path / "cache/weights").as_uri()):
        monkeypatch.setenv(MIRROR, str(mirror))
        assert published_file(TINY, "training").sha256 == hashlib.sha256(tiny).hexdigest()
        shutil.rmtree(tmp_path / "other")
    monkeypatch.setenv(MIRROR, str(tmp_path / "empty"))
    assert "there is no such file; put yolov7-tiny.pt at" in refusal()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n <!DOCTYPE html><title>Sign in</title>", "it is a page (HTML), not a file of weights"),
        (b"", "not a checkpoint"),
        (b"PK\x03\x04 and then nothing", "not a checkpoint"),
        ("half", "truncated"),
        ("flipped", "missing or damaged"),
    ],
)
def test_other_bytes_are_not_kept(server, tiny, content, reason):
    flipped = bytearray(tiny)
    flipped[len(tiny) // 2] ^= 1
    content = {"half": tiny[: len(tiny) // 2], "flipped": bytes(flipped)}.get(content, content)
    server.files[PATH] = Served(content)
    message = refusal()
    assert message.startswith(
        f"{TINY}: {server.url}{PATH}: {len(content):,} bytes came that are not its published file"
    )
    assert reason in message and left() == []
    server.files[PATH] = Served(tiny)
    assert published_detector(TINY).is_file()


def test_weights_of_another_network_or_class_count_are_not_kept(server, tmp_path):
    for state, reason in (
        (published_state("yolov7", form="deploy"), "looks like yolov7 (deploy form), not like yolov7-tiny"),
        (published_state(TINY, form="deploy", classes=3), "has 3 classes, and the published file 80"),
    ):
        torch.save({"model": state}, tmp_path / "other.pt")
        server.files[PATH] = Served((tmp_path / "other.pt").read_bytes())
        assert reason in refusal() and left() == []


def test_a_wrong_file_put_there_by_hand_is_refused_and_stays(server):
    place().path.parent.mkdir(parents=True)
    place().path.write_bytes(b"not a checkpoint")
    message = refusal()
    assert message.startswith(str(place().path)) and "put the published yolov7-tiny.pt there, or remove it" in message
    assert left() == ["yolov7-tiny.pt"] and not server.requests


def test_a_missing_file_names_the_address_without_its_password(server, monkeypatch):
    monkeypatch.setenv(MIRROR, server.url.replace("//", "//me:hunter2222@"))
    message = refusal()
    assert "the server has no such file (404)" in message and "hunter2222" not in message
    assert server.headers[0]["Authorization"].startswith("Basic ")


def test_changed_bytes_are_refused_here_and_from_the_server(server, tiny):
    server.files[PATH] = Served(tiny)
    published_detector(TINY)
    sha256 = hashlib.sha256(tiny).hexdigest()
    changed = bytearray(tiny)
    changed[1000] ^= 1
    place().path.write_bytes(changed)
    message = refusal()
    assert f"{place().path}: had sha256 {sha256} at its first use, and has " in message and "remove" in message
    assert kept_refusal() == message
    place().path.write_bytes(tiny[:-1])
    assert f"has other bytes ({len(tiny) - 1:,} instead of {len(tiny):,})" in refusal()
    place().path.unlink()
    server.files[PATH] = Served(bytes(changed))
    message = refusal()
    assert f"https://github.com{PATH}: had sha256 {sha256}" in message and f"remove {place().note}" in message
    assert not place().path.exists() and not place().part.exists()
    server.files[PATH] = Served(tiny)
    assert published_file(TINY, "deploy").sha256 == sha256
    place().note.write_text("{")
    assert f"{place().note}: damaged" in refusal()


def kept_refusal() -> str:
    return refusal(lambda: kept_file(TINY, "deploy"))


def test_a_damaged_conversion_is_made_again(server, tiny):
    server.files[PATH] = Served(tiny)
    path = published_detector(TINY)
    good = path.read_bytes()
    path.write_bytes(good[:-4] + b"\0\0\0\1")
    assert published_detector(TINY).read_bytes() == good
    path.unlink()
    assert published_detector(TINY).read_bytes() == good
    assert len(server.requests) == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(server, tiny, monkeypatch):
    server.files[PATH] = Served(tiny)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(download.os, "fsync", full)
        message = refusal()
    assert message.startswith(str(place().path)) and "the disk is full; free at least" in message and CACHE in message
    assert left() == []
    with monkeypatch.context() as patched:  # the download fits, the conversion does not
        patched.setattr("yolov7.model.checkpoint.save_file", full)
        message = refusal()
    assert "the disk is full" in message and "not its published file" not in message and left() == []
    assert published_detector(TINY).is_file()


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_without_permission_is_one_line(server, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "cannot be written" in refusal()


def test_a_cache_that_cannot_be_made_is_one_line(server, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    message = refusal()
    assert "cannot be written" in message and CACHE in message


def test_a_prepared_cache_is_used_without_writing(server, tiny, monkeypatch):
    server.files[PATH] = Served(tiny)
    published_detector(TINY)

    def writes(*_, **__):
        raise AssertionError("a read-only folder")

    monkeypatch.setattr(fetch._Kept, "_lock", writes)
    assert published_detector(TINY).is_file() and published_file(TINY, "training").size == len(tiny)


PROCESS = f"import logging; logging.basicConfig(level=20)\nfrom yolov7.weights.fetch import published_file\n\
print(published_file({TINY!r}, 'training').sha256)"


def test_of_two_processes_one_fetches(server, tiny):
    server.files[PATH] = Served(tiny)
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], answers
    assert {output.strip() for output, _ in answers} == {hashlib.sha256(tiny).hexdigest()}
    assert len(server.requests) == 1


def test_a_killed_download_leaves_nothing_that_counts(server, tiny):
    place().path.parent.mkdir(parents=True)
    place().part.write_bytes(tiny[:1000])
    assert kept_file(TINY, "training") is None
    server.files[PATH] = Served(tiny)
    assert published_file(TINY, "training").size == len(tiny) and not place().part.exists()


@pytest.mark.parametrize("variant", ["yolov9-t", "yolov6-n"])
def test_files_of_the_other_families_predict_and_start_trainings(server, variant, tmp_path):
    files = RELEASED[variant]
    if variant == "yolov9-t":
        contents = {"deploy": yolov9_state("gelan-t", 80), "training": yolov9_state(variant, 80)}
    else:  # one file, which holds no class names
        contents = {"deploy": yolov6_state(filled(variant, 80), "2.0 training")}
    for form, tensors in contents.items():
        torch.save({"ema": tensors}, tmp_path / "file.pt")
        server.files[f"/{files.path(form)}"] = Served((tmp_path / "file.pt").read_bytes())
    found = published_file(variant, "training")
    assert found.path.name == files.training
    model = yolov7.create_model(variant, 80)
    assert model.load_official(found.path).untouched == ()
    detector = yolov7.load_detector(variant)
    assert detector.runtime.metadata.class_names == CLASSES
    assert len(server.requests) == len(contents)


def test_a_training_starts_from_the_training_file(server, monkeypatch, tmp_path):
    files = RELEASED["yolov7"]
    assert start_file("weights/own.pt") == Path("weights/own.pt") and origin_of("weights/own.pt") == {}
    server.files[f"/{files.path('deploy')}"] = Served(b"not asked for")
    with pytest.raises(ModelError, match=r"yolov7_training\.pt: the server has no such file"):
        start_file("yolov7")
    assert [path for path, _, _ in server.requests] == [f"/{files.path('training')}"]


def test_weights_made_from_published_ones_keep_their_origin(server, tiny, tmp_path):
    server.files[PATH] = Served(tiny)
    origin = origin_of(TINY)
    assert origin["published_weights"]["licence"] == "GPL-3.0"
    assert origin_of(str(published_detector(TINY))) == origin
    yolov7.save_checkpoint(
        tmp_path / "own.safetensors",
        model := yolov7.create_model(TINY, 2),
        yolov7.ModelMetadata.of(model, class_names=("a", "b"), extra={"published_weights": "anything"}),
    )
    assert origin_of(str(tmp_path / "own.safetensors")) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolov7-tny", "no such model (did you mean yolov7-tiny?)"),
        ("gelan-t", "no weights were published for this network; take yolov9-t"),
    ],
)
def test_names_that_lead_nowhere(server, name, message):
    assert message in refusal(lambda: yolov7.load_detector(name)) and not server.requests
