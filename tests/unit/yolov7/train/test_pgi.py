"""Auxiliary branches by name: trained, resumed, kept in the checkpoint, and gone from what is deployed."""

from __future__ import annotations

import json

import pytest
import torch
from small_detector import SIDE, metadata_of
from small_gelan import small_gelan
from small_training import parameters, same_outcome, training_data

from yolov7 import cli
from yolov7.model import create_model, load_checkpoint
from yolov7.model.cost import count_parameters
from yolov7.model.pgi import part_of
from yolov7.train.initial import initial_model
from yolov7.train.loop import Trainer
from yolov7.train.state import StateFolder


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("pgi"))


def run(index, folder, part: str, stop_after: int | None = None):
    params = parameters(
        network="small_gelan:small_gelan",
        preset="yolov9",
        pgi=part,
        epochs=2,
        evaluate_every=2,
        augment={"close_mosaic_epochs": 1},
    )
    model = initial_model("mine", params, index)
    calls = iter(range(100))
    trainer = Trainer(
        model,
        train_index=index,
        val_index=index,
        params=params,
        states=StateFolder(folder, {"pgi": params.pgi}),
        metadata=metadata_of(model),
        stop=lambda: next(calls) == stop_after,
    )
    return trainer.fit()


def test_a_branch_is_resumed_to_the_same_bits(index, tmp_path):
    assert not run(index, tmp_path / "pieces", "lhg-icn", stop_after=3).finished
    assert same_outcome(run(index, tmp_path / "pieces", "lhg-icn"), run(index, tmp_path / "whole", "lhg-icn"))


def test_a_branch_is_trained_and_its_checkpoint_knows_it_and_what_is_deployed_is_the_plain_network(
    index, tmp_path, capsys
):
    part = "pan"
    whole = run(index, tmp_path, part)
    model, metadata = load_checkpoint(whole.last)
    assert model.has_auxiliary and part_of(model.spec) == part and metadata.form == "training"
    fresh = initial_model("mine", parameters(network="small_gelan:small_gelan", preset="yolov9", pgi=part), index)
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, fresh.get_parameter(n))]
    assert {n.split(".")[0] for n in moved} == {
        "backbone",
        "neck",
        "head",
        *(("auxiliary",) if fresh.auxiliary else ()),
    }
    assert any(n.startswith("head.auxiliary.") for n in moved)

    deploy = model.reparameterize()
    plain = create_model(small_gelan("none"), 3, device="meta").reparameterize()
    assert {n: t.shape for n, t in deploy.state_dict().items()} == {n: t.shape for n, t in plain.state_dict().items()}
    images = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(deploy(images), model(images), rtol=1e-4, atol=1e-4)

    assert cli.main(["info", "--model", str(whole.last), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["variant"], row["pgi"], row["published"]) == ("mine", part, None)
    assert row["parameters_training"] == count_parameters(model) > row["parameters_deploy"] == count_parameters(deploy)
