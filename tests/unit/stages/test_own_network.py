"""A network of the user's own, with a kind of block that the library does not know, through the stages."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
from small_detector import SIDE
from small_training import training_data

import stages.evaluate
import stages.export
import stages.train
import stages.training.chain
import stages.training.run
from stages.project.params import Params
from stages.project.workspace import model_dir, reports
from yolov7.errors import ModelError
from yolov7.model import load_checkpoint

MODULE = """
from collections.abc import Sequence
from dataclasses import dataclass, replace

from small_detector import small_network
from torch import nn
from yolov7.model.spec import Block, Map, Stage

@dataclass(frozen=True)
class Smooth(Block):
    side: int = 3

    def output(self, maps: Sequence[Map]) -> Map:
        return self.single(maps)

    def build(self, channels, act, *, merged):
        return nn.AvgPool2d(self.side, 1, self.side // 2)

def network():
    small = small_network()
    stem, *rest = small.backbone
    return replace(small, name="mine", backbone=(stem, Stage("smooth", Smooth()), *rest))
"""

TRAIN = {
    "preset": "small",
    "cache": "none",
    "image_size": SIDE,
    "batch_size": 2,
    "epochs": 1,
    "evaluate_every": 1,
    "anchors": "keep",
    "optimizer": {"warmup_iterations": 2, "warmup_epochs": 0},
}
DOCUMENT = {"sha256": "d" * 64, "splits": {"test": {"sha256": "t" * 64}}, "test_is_val": False}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A workspace with data, whose MLflow is away, and parameters that name the network."""
    index = training_data(tmp_path / "data")
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("YOLOV7_DEVICE", "cpu")
    for stage in (stages.training.run, stages.export, stages.evaluate):
        monkeypatch.setattr(stage, "open_index", lambda split: index)
    for stage in (stages.training.chain, stages.export, stages.evaluate):
        monkeypatch.setattr(stage, "dataset_document", lambda **_: DOCUMENT)
    return Params.model_validate(
        {
            "variants": ("mine",),
            "train": TRAIN,
            "per_variant": {"mine": {"network": "my_networks:network"}},
            "export": {"formats": (), "verify_images": 4},
            "evaluate": {"pictures": 0, "resamples": 20},
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_block_of_ones_own_is_trained_exported_and_evaluated(project: Params) -> None:
    stages.train.main(project, argparse.Namespace(variant="mine", fresh=False))
    best = model_dir("mine") / "train/best.safetensors"
    with pytest.raises(ModelError, match="Smooth"):
        load_checkpoint(best)
    stages.export.main(project, argparse.Namespace(variant="mine"))
    verified = json.loads((model_dir("mine") / "export/verify.json").read_text())
    assert verified["passed"] and verified["forms"]["deploy"]["passed"]
    stages.evaluate.main(project, argparse.Namespace(variant="mine", model=None, output=None))
    assert 0 <= json.loads((reports("mine") / "metrics.json").read_text())["AP"] <= 1
    exported = model_dir("mine") / "export/model.safetensors"
    assert load_checkpoint(exported, network=project.network_for("mine"))[1].form == "deploy"


def test_a_network_of_the_library_is_named_by_its_variant(project: Params) -> None:
    assert project.network_for("yolov7-tiny") is None
    assert project.network_for("mine").name == "mine"  # type: ignore[union-attr]
