"""Every variant has published files, or a word about what to do without them; each file has one place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from yolov7.errors import ConfigError, ModelError
from yolov7.model import list_variants
from yolov7.weights import places
from yolov7.weights.coco import CLASSES
from yolov7.weights.places import CACHE, MIRROR, cache_folder, place_of, source_of
from yolov7.weights.releases import RELEASED, UNRELEASED, is_published_name, published_files

TINY = RELEASED["yolov7-tiny"]
PATH = "WongKinYiu/yolov7/releases/download/v0.1/yolov7-tiny.pt"


def test_every_variant_is_released_or_has_advice():
    assert set(RELEASED) | set(UNRELEASED) == set(list_variants())
    assert not set(RELEASED) & set(UNRELEASED)


def test_no_two_variants_share_a_file():
    names = [{files.path("deploy"), files.path("training")} for files in RELEASED.values()]
    assert len(set().union(*names)) == sum(map(len, names))


def test_names_follow_the_releases():
    addresses = {(name, form): RELEASED[name].address(form) for name in RELEASED for form in ("deploy", "training")}
    for key, end in {
        ("yolov7-x", "deploy"): "yolov7/releases/download/v0.1/yolov7x.pt",
        ("yolov7-e6e", "training"): "yolov7/releases/download/v0.1/yolov7-e6e_training.pt",
        ("yolov7-tiny", "training"): "yolov7/releases/download/v0.1/yolov7-tiny.pt",
        ("yolov9-c", "deploy"): "yolov9/releases/download/v0.1/yolov9-c-converted.pt",
        ("yolov9-c", "training"): "yolov9/releases/download/v0.1/yolov9-c.pt",
        ("yolov6-n", "deploy"): "meituan/YOLOv6/releases/download/0.2.0/yolov6n.pt",
        ("yolov6v3-n", "deploy"): "meituan/YOLOv6/releases/download/0.4.0/yolov6n.pt",
        ("yolov6v3-l6", "training"): "meituan/YOLOv6/releases/download/0.4.0/yolov6l6.pt",
        ("yolov6-l-relu", "training"): "meituan/YOLOv6/releases/download/0.2.0/yolov6l_relu.pt",
    }.items():
        assert addresses[key].startswith("https://github.com/") and addresses[key].endswith(end), key


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("yolov7-tiny-silu", "no weights were published .*`train.weights: yolov7-tiny`"),
        ("gelan-t", "no weights were published .*take yolov9-t"),
        ("yolov7-w66", "did you mean 'yolov7-w6'"),
    ],
)
def test_a_variant_without_files_says_what_to_use(name, advice):
    with pytest.raises(ModelError, match=advice):
        published_files(name)


def test_a_file_or_export_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_published_name("yolov7-tiny") and is_published_name("gelan-t")
    assert not is_published_name("yolov7-tiny.pt") and not is_published_name("")
    Path("yolov7-tiny").mkdir()
    assert is_published_name("yolov7-tiny"), "a folder like the package of this project"
    Path("yolov7-tiny/model.json").touch()
    Path("gelan-c").touch()
    assert not is_published_name("yolov7-tiny") and not is_published_name("gelan-c")


def test_the_cache_folder_is_the_platform_s_or_the_one_named(monkeypatch, tmp_path):
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for system, variables, expected in (
        ("linux", {"XDG_CACHE_HOME": str(tmp_path / "xdg")}, tmp_path / "xdg/yolov7"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, tmp_path / ".cache/yolov7"),
        ("darwin", {}, tmp_path / "Library/Caches/yolov7"),
        ("win32", {"LOCALAPPDATA": str(tmp_path / "Local")}, tmp_path / "Local/yolov7/Cache"),
    ):
        monkeypatch.setattr(places.sys, "platform", system)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert cache_folder() == expected, system
    monkeypatch.setenv(CACHE, "~/kept")
    assert place_of(TINY, "deploy").path == tmp_path / "kept/weights" / PATH


def test_without_a_home_the_variable_is_named(monkeypatch):
    monkeypatch.delenv(CACHE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(places.Path, "home", no_home)
    with pytest.raises(ConfigError, match="name a folder in YOLOV7_CACHE"):
        cache_folder()


@pytest.mark.parametrize(
    ("mirror", "source"),
    [
        (None, f"https://github.com/{PATH}"),
        ("https://nexus.corp/raw/github/", f"https://nexus.corp/raw/github/{PATH}"),
        ("/srv/weights", Path("/srv/weights") / PATH),
        ("file:///srv/my%20weights", Path("/srv/my weights") / PATH),
    ],
)
def test_a_mirror_takes_the_place_of_the_host(monkeypatch, mirror, source):
    monkeypatch.delenv(MIRROR, raising=False)
    if mirror:
        monkeypatch.setenv(MIRROR, mirror)
    assert source_of(TINY, "deploy") == source


@pytest.mark.parametrize("mirror", ["ftp://user:hunter2222@host/x", "https://host/x?token=hunter2222", "file://host/x"])
def test_a_mirror_of_another_kind_is_refused_without_its_secrets(monkeypatch, mirror):
    monkeypatch.setenv(MIRROR, mirror)
    with pytest.raises(ConfigError, match="an http, https or file address, or a folder, is expected") as caught:
        source_of(TINY, "deploy")
    assert "hunter2222" not in str(caught.value)


def test_the_names_load_no_torch():
    code = "import sys, yolov7.weights.releases, yolov7.weights.places; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_there_are_eighty_classes():
    assert len(set(CLASSES)) == 80 and (CLASSES[0], CLASSES[-1]) == ("person", "toothbrush")
