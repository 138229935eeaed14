"""`yolov7 train`, `evaluate` and `export` as a user mistypes them: one line, exit code 2."""

from __future__ import annotations

import pytest

from yolov7 import cli
from yolov7.cli.options import read_settings
from yolov7.errors import ConfigError


def test_settings_are_read_as_yaml_by_their_dots():
    found = read_settings(
        ["epochs=3", "augment.mixup=0.5", "augment.mosaic=0", "freeze=[backbone]", "weights="], "--set"
    )
    assert found == {"epochs": 3, "augment": {"mixup": 0.5, "mosaic": 0}, "freeze": ["backbone"], "weights": ""}


@pytest.mark.parametrize("texts", [["epochs"], ["=3"], ["a.=3"], ["a=1", "a=2"], ["a=1", "a.b=2"], ["a=[1"]])
def test_settings_of_another_form_are_refused(texts):
    with pytest.raises(ConfigError, match="--set: ") as caught:
        read_settings(texts, "--set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "yolov7-tiny", "-o", "run"], "--data"),
        (["train", "yolov7-tiny", "--data", "nowhere", "-o", "run"], "nowhere: no such file or folder"),
        (["train", "yolov7-tiny", "--data", "nowhere", "-o", "run", "--set", "epoch=2"], "did you mean 'epochs'"),
        (["train", "yolov7-tiny", "--data", "nowhere", "-o", "run", "--preset", "smal"], "did you mean 'small'"),
        (["train", "yolov7-tiny", "--data", "nowhere", "-o", "run", "--epochs", "0"], "train.epochs"),
        (
            ["train", "yolov7-tiny", "--data", "nowhere", "-o", "run", "--set", "data=here"],
            "--set: data: not a training",
        ),
        (["train", "yolov7-tiny", "--data", "nowhere", "-o", "run", "--set", "device=cpu"], "--set: device: not a"),
        (["train", "yolov7-tiny", "--data", "nowhere", "-o", "run", "--set", "variant=x"], "--set: variant: not a"),
        (
            ["train", "yolov7-tiny", "--data", "nowhere", "-o", "run", "--image-size", "64", "--set", "image_size=96"],
            "--set: image_size is given twice, by --image-size too",
        ),
        (["evaluate", "--model", "none.onnx", "--data", "nowhere"], "none.onnx"),
        (["evaluate", "--model", "none.onnx", "--data", "nowhere", "--batch-size", "0"], "--batch-size"),
        (["evaluate", "--model", "none.onnx", "--data", "nowhere", "--split", "vall"], "--split"),
        (["export", "none.safetensors", "-o", "out"], "none.safetensors"),
        (["export", "none.safetensors", "-o", "out", "--formats", "openvin"], "did you mean 'openvino'"),
        (["export", "none.safetensors", "-o", "out", "--formats", "onnx-int8"], "give data"),
        (["export", ".", "-o", "out"], "not the folder of a run"),
        (["export", "none.safetensors", "-o", "out", "--opset", "9"], "--opset"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and words in captured.err
