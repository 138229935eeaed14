"""The weights a training starts from: known to DVC by a digest in params.yaml; ours, a published .pt, or its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stages.training.run_identity import start_weights
from tests.unit.yolov7.model.test_published import published_state
from tests.unit.yolov7.train.test_initial import data
from yolov7.config import Train, train_parameters
from yolov7.errors import ConfigError, ModelError
from yolov7.files import sha256_file
from yolov7.train.identity import fingerprint, run_identity
from yolov7.train.initial import initial_model
from yolov7.weights.places import Note, place_of
from yolov7.weights.releases import RELEASED


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


def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None = None) -> Path:
    """The place of yolov7-tiny's published file in a cache of its own; with `content` and its note, as after a use."""
    monkeypatch.setenv("YOLOV7_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLOV7_WEIGHTS_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.chdir(tmp_path)
    place = place_of(RELEASED["yolov7-tiny"], "training")
    place.path.parent.mkdir(parents=True)
    if content is not None:
        place.path.write_bytes(content)
        place.write_note(Note(sha256_file(place.path), len(content)))
    return place.path


def test_published_weights_by_name_are_pinned_before_they_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept(monkeypatch, tmp_path)
    train = Train(weights="yolov7-tiny")
    with pytest.raises(ConfigError, match=r"sha256: missing .*`yolov7 fetch-weights yolov7-tiny --form training`"):
        start_weights(train)
    assert not list(path.parent.iterdir()), "nothing was asked for"
    pinned = train.model_copy(update={"weights_sha256": "0" * 64})
    assert start_weights(pinned, fetch=False) == "0" * 64
    with pytest.raises(ModelError, match=r"there is no such file; put yolov7-tiny\.pt at"):
        start_weights(pinned)
    with pytest.raises(ModelError, match="no weights were published"):
        start_weights(Train(weights="gelan-t", weights_sha256="0" * 64), fetch=False)


def test_the_identity_holds_the_digest_of_the_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept(monkeypatch, tmp_path, b"published")
    digest = sha256_file(path)
    with pytest.raises(ConfigError, match=f"missing next to `weights: yolov7-tiny`.*write `weights_sha256: {digest}`"):
        start_weights(Train(weights="yolov7-tiny"))
    train = Train(weights="yolov7-tiny", weights_sha256=digest)
    assert start_weights(train) == start_weights(train, fetch=False) == digest
    assert run_identity("v", train, {"sha256": "d"}, start_weights(train))["weights"] == digest
    with pytest.raises(ConfigError, match=rf"expects {'1' * 64}, but the published yolov7-tiny\.pt at .* has {digest}"):
        start_weights(train.model_copy(update={"weights_sha256": "1" * 64}))
    path.write_bytes(b"other....")
    with pytest.raises(ModelError, match=f"had sha256 {digest} at its first use"):
        start_weights(train)


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(monkeypatch, tmp_path)
    Path("yolov7-tiny").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"write `weights_sha256: {sha256_file('yolov7-tiny')}`"):
        start_weights(Train(weights="yolov7-tiny"))


def test_a_training_starts_from_published_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept(monkeypatch, tmp_path)
    tensors = published_state("yolov7-tiny", form="deploy")
    mirrored = tmp_path / "mirror" / RELEASED["yolov7-tiny"].path("training")
    mirrored.parent.mkdir(parents=True)
    torch.save({"model": tensors}, mirrored)
    train = train_parameters({"weights": "yolov7-tiny", "weights_sha256": sha256_file(mirrored), "anchors": "keep"})
    assert start_weights(train) == train.weights_sha256 and path.is_file()
    state = initial_model("yolov7-tiny", train, data(tmp_path / "data", 12, 60)).state_dict()
    assert torch.equal(state["backbone.stem1.conv.weight"], tensors["model.0.conv.weight"].float())
