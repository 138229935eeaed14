"""AP over the border: the figures of the evaluation, one decode of every image, and the command."""

from __future__ import annotations

import json
import re

import pytest
from small_detector import SIDE, metadata_of, pictures, small_index

from yolov7.errors import ConfigError
from yolov7.evaluate import evaluate
from yolov7.figures import border
from yolov7.figures.border import scan
from yolov7.letterbox import Border
from yolov7.model import save_checkpoint
from yolov7.predict import Predictor, TorchRuntime, load_detector

IMAGES = pictures(5)


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(TorchRuntime(trained.reparameterize(), metadata_of(trained)))


@pytest.fixture(scope="module")
def index(tmp_path_factory, trained, predictor):
    sure = Predictor(predictor.runtime, confidence=0.3, iou=0.5, max_detections=12)
    return small_index(tmp_path_factory.mktemp("border"), sure.predict(IMAGES), IMAGES, metadata_of(trained))


def test_the_figures_are_those_of_the_evaluation_and_every_image_is_decoded_once(predictor, index, monkeypatch):
    read, real = [], border.read_annotated
    monkeypatch.setattr(border, "read_annotated", lambda index, i: read.append(i) or real(index, i))
    found = scan(predictor, index, [16, 0, 4, 4], batch_size=2, resamples=20)
    assert read == [0, 1, 2, 3, 4]
    assert [each.pixels for each in found] == [0, 4, 16]
    wanted = [evaluate(predictor, index, batch_size=2, border=Border(each.pixels)) for each in found]
    assert [each.metrics for each in found] == [each.metrics for each in wanted]
    assert len({each.metrics["AP"] for each in found}) == 3
    for each in found:
        assert each.difference.value == pytest.approx(each.metrics["AP"] - found[0].metrics["AP"], abs=1e-9)
        assert each.difference.low <= each.difference.value + 1e-9
    assert found[0].difference.low == found[0].difference.high == 0


def test_an_input_that_grows_leaves_the_images_their_size(predictor, index):
    small, large = scan(predictor, index, [0, 32], grow=True, resamples=20)
    assert small.metrics == evaluate(predictor, index).metrics
    assert large.metrics == evaluate(predictor, index, image_size=SIDE + 32, border=Border(32)).metrics
    with pytest.raises(ConfigError, match="--grow: a multiple of the network's stride 8 is expected, got 12"):
        scan(predictor, index, [0, 12], grow=True)


@pytest.fixture(scope="module")
def file(tmp_path_factory, trained):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_checkpoint(path, trained, metadata_of(trained))
    return str(path)


def test_the_command_draws_and_writes_the_figures(index, file, tmp_path, capsys):
    arguments = [file, "--data", str(index.folder), "--widths", "0,8"]
    for name in ("a", "b"):
        border.main([*arguments, "--out", str(tmp_path / f"{name}.svg")])
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text() and drawn.count("<circle") == 2
    document = json.loads((tmp_path / "a.json").read_text())
    (model,) = document["models"]
    assert (document["images"], model["variant"]) == (5, "small")
    assert [(each["pixels"], each["input"]) for each in model["widths"]] == [(0, [SIDE, SIDE]), (8, [SIDE, SIDE])]
    printed = capsys.readouterr().out
    for each in scan(load_detector(file), index, [0, 8]):
        ap = each.metrics["AP"]
        assert f"{each.pixels} {ap:.3f}" in drawn
        difference = re.escape(f"{each.difference.value:+.4f} (")
        assert re.search(rf"small +{each.pixels} +{ap:.4f} +{difference}", printed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--widths", "4,4"], "at least two widths"),
        (["--widths", "0,96"], "a border of 0 to 95 pixels is expected"),
        (["--out", "a.png"], r"a.png: the name of this picture ends in \.svg"),
    ],
)
def test_mistakes(index, file, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        border.main([file, "--data", str(index.folder), *words])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("low", "high"), [(0.353, 0.4529), (0.3601, 0.3622), (0.0, 1.0), (0.1, 0.1)])
def test_an_axis_holds_its_curve(low, high):
    first, last = border._span(low, high)
    assert first <= low and high <= last + 1e-12 and last - first <= max(10 * (high - low), 0.004 + 1e-12)
