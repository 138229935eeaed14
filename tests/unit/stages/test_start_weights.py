"""The weights a training starts from: known to DVC by a digest in params.yaml, a published .pt as well as ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.training.run_identity import start_weights
from tests.unit.yolov7.model.test_published import published_state
from tests.unit.yolov7.train.test_initial import data
from yolov7.config import Train, train_parameters
from yolov7.errors import ConfigError
from yolov7.files import sha256_file
from yolov7.train.identity import fingerprint, run_identity
from yolov7.train.initial import initial_model


def key(train: Train) -> str:
    return fingerprint(run_identity("v", train, {"sha256": "d"}, start_weights(train)))


def test_other_bytes_at_the_same_path_are_refused_until_the_digest_says_so(tmp_path: Path) -> None:
    path = tmp_path / "start.pt"
    assert start_weights(Train()) is None and start_weights(Train(weights_sha256="0" * 64)) is None
    with pytest.raises(ConfigError, match=r"train\.weights: .*start\.pt: no such file; put it there"):
        start_weights(Train(weights=str(path)))
    (tmp_path / "start.pt.dvc").touch()
    with pytest.raises(ConfigError, match=r"no such file; `dvc pull .*start\.pt\.dvc` brings it"):
        start_weights(Train(weights=str(path)))
    path.write_bytes(b"first")
    first = sha256_file(path)
    with pytest.raises(ConfigError, match=f"weights_sha256: missing .*; write `weights_sha256: {first}`"):
        start_weights(Train(weights=str(path)))
    train = Train(weights=str(path), weights_sha256=first)
    assert start_weights(train) == first
    before = key(train)
    path.write_bytes(b"second")
    second = sha256_file(path)
    with pytest.raises(ConfigError, match=f"expects {first}, but .* has {second}; write that digest") as caught:
        start_weights(train)
    assert "`dvc checkout " in str(caught.value)
    assert key(train.model_copy(update={"weights_sha256": second})) != before, "a training of its own"


def test_an_invalid_digest_is_named() -> None:
    with pytest.raises(ConfigError, match=r"train\.weights_sha256"):
        train_parameters({"weights_sha256": "0f3c"})


def test_a_training_starts_from_a_published_file(tmp_path: Path) -> None:
    path = tmp_path / "yolov7-tiny.pt"
    tensors = published_state("yolov7-tiny", classes=3)
    torch.save({"model": tensors}, path)
    train = train_parameters({"weights": str(path), "weights_sha256": sha256_file(path), "anchors": "keep"})
    assert start_weights(train) == train.weights_sha256
    state = initial_model("yolov7-tiny", train, data(tmp_path / "data", 12, 60)).state_dict()
    assert torch.equal(state["backbone.stem1.conv.weight"], tensors["model.0.conv.weight"].float())
