"""A part of params.yaml is written into it, and everything else stays as it was, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.apply_params import apply, read_patch
from stages.project import params as params_module
from yolov7.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[3] / "params.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(SHIPPED, tmp_path / "params.yaml"))


def test_comments_order_and_quotes_stay(file):
    patch = {"per_variant": {"yolov7-tiny": {"augment": {"mosaic": 0.5}}}, "train": {"epochs": 40}}
    changes = apply(patch, file)
    assert changes == ["per_variant.yolov7-tiny.augment: new -> {'mosaic': 0.5}", "train.epochs: 33 -> 40"]
    before, after = (path.read_text().splitlines() for path in (SHIPPED, file))
    assert [line for line in before if line not in after] == ["  epochs: 33", "  yolov7-tiny: {}"]
    assert [line for line in after if line not in before] == [
        "  epochs: 40",
        "  yolov7-tiny:",
        "    augment:",
        "      mosaic: 0.5",
    ]
    assert params_module.load(file).training("yolov7-tiny").augment.mosaic == 0.5


def test_a_second_time_changes_nothing(file):
    patch = {"per_variant": {"yolov7-tiny": {"augment": {"mosaic": 0.5, "scale": 0.2}}}}
    apply(patch, file)
    written = file.read_bytes()
    assert apply(patch, file) == [] and file.read_bytes() == written
    assert apply({"per_variant": {"yolov7-tiny": {"augment": {"scale": 0.3}}}}, file) == [
        "per_variant.yolov7-tiny.augment.scale: 0.2 -> 0.3"
    ]


def test_values_that_are_not_valid_are_not_written(file):
    with pytest.raises(ConfigError, match=r"^not applied: .*params.yaml.*mosaik: unknown key.*'mosaic'"):
        apply({"per_variant": {"yolov7-tiny": {"augment": {"mosaik": 0.5}}}}, file)
    assert file.read_bytes() == SHIPPED.read_bytes()
    assert sorted(path.name for path in file.parent.iterdir()) == ["params.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("- 1\n", "expected a mapping"), ("", "expected a mapping"), ("a: [", "not readable")],
)
def test_a_file_that_is_no_part_of_params(tmp_path, text, message):
    path = tmp_path / "best.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_patch(path)
