"""Stages that only training has: they serve the auxiliary levels of the head, and deployment knows nothing of them."""

from dataclasses import replace

import pytest
import torch

from yolov7.errors import ModelError
from yolov7.model import ModelMetadata, create_model, list_variants, load_checkpoint, save_checkpoint
from yolov7.model.block_specs import Concat, Conv, RepConv, StridedConv
from yolov7.model.heads.anchor import AnchorHead, Level
from yolov7.model.spec import IMAGE, Network, Stage
from yolov7.model.spec_json import network_from_json, network_to_json
from yolov7.model.variants import find_variant


def two_backbones(**changes) -> Network:
    """An auxiliary backbone reads the image again, and a map of the first; the auxiliary levels read it."""
    network = Network(
        name="two-backbones",
        backbone=(Stage("stem", StridedConv(8)), Stage("P2", StridedConv(12)), Stage("P3", StridedConv(16))),
        neck=(Stage("top", RepConv(16)),),
        auxiliary=(
            Stage("again", StridedConv(8), of=(IMAGE,)),
            Stage("Q2", StridedConv(12)),
            Stage("both", Concat(), of=("Q2", "P2")),
            Stage("Q3", StridedConv(16)),
        ),
        head=AnchorHead(
            anchors=(((4, 4), (8, 8)), ((16, 16), (24, 24))),
            lead=(Level("H2", Conv(8), of="P2"), Level("H3", Conv(8), of="top")),
            auxiliary=(Level("A2", Conv(8), of="both"), Level("A3", Conv(8), of="Q3")),
        ),
    )
    return replace(network, **changes)


@pytest.fixture
def model():
    made = create_model(two_backbones(), 3, seed=1)
    with torch.no_grad():  # statistics of real activations
        for _ in range(2):
            made.train()(torch.rand(2, 3, 32, 32))
    return made.eval()


def test_training_reads_them_and_the_deploy_form_has_none(model):
    images = torch.rand(2, 3, 32, 40)
    raw = model.raw(images)
    assert model.has_auxiliary and len(raw) == 4
    model.train()
    sum(item.square().mean() for item in model.raw(images)).backward()
    assert all(parameter.grad is not None for parameter in model.auxiliary.parameters())
    model.eval()
    raw = model.raw(images)
    deploy = model.reparameterize()
    assert not deploy.has_auxiliary and deploy.auxiliary is None
    assert not any("auxiliary" in name for name in deploy.state_dict())
    assert any(name.startswith("auxiliary.again.") for name in model.state_dict())  # a new network
    with torch.inference_mode():
        found = deploy.raw(images)
        for lead, expected in zip(found, raw[:2], strict=True):
            assert (lead - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
        assert torch.allclose(deploy(images), model(images), rtol=1e-4, atol=1e-3)
        assert torch.equal(deploy.reparameterize()(images), deploy(images))


def test_eval_mode_of_the_training_form_does_not_run_them(model):
    calls = []
    model.auxiliary.again.register_forward_hook(lambda *_: calls.append("run"))
    images = torch.rand(1, 3, 32, 32)
    assert list(model.features(images)) == ["P2", "top"]
    model(images)
    assert calls == []
    model.raw(images)
    assert calls == ["run"]


def test_they_change_nothing_in_the_trunk():
    # The same seed gives the same trunk and the same blocks, even where an auxiliary stage merges its maps.
    plain = create_model(two_backbones(auxiliary=(), head=replace(two_backbones().head, auxiliary=())), 3, seed=1)
    merging = (*two_backbones().auxiliary, Stage("merged", Concat(), of=("Q3", "top")))
    full = create_model(two_backbones(auxiliary=merging), 3, seed=1)
    assert full.neck.top.identity is not None
    theirs = full.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in plain.state_dict().items())
    shapes = {name: tensor.shape for name, tensor in plain.reparameterize().state_dict().items()}
    assert {name: tensor.shape for name, tensor in full.reparameterize().state_dict().items()} == shapes


@pytest.mark.parametrize("form", ["training", "deploy"])
def test_files_hold_the_form(tmp_path, model, form):
    chosen = model if form == "training" else model.reparameterize()
    save_checkpoint(tmp_path / "m", chosen, ModelMetadata.of(chosen, class_names=("a", "b", "c")))
    loaded, _ = load_checkpoint(tmp_path / "m")
    assert loaded.spec == model.spec and list(loaded.state_dict()) == list(chosen.state_dict())
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images), chosen(images))


def test_nothing_deployed_may_read_them():
    late = two_backbones()
    with pytest.raises(ModelError, match="'top' reads 'Q3', which no earlier stage makes"):
        create_model(replace(late, neck=(Stage("top", RepConv(16), of=("Q3",)),)), 3)
    lead = (replace(late.head.lead[0], of="both"), late.head.lead[1])
    with pytest.raises(ModelError, match="reads 'both' in deploy form, which only training has"):
        create_model(replace(late, head=replace(late.head, lead=lead)), 3)


def test_the_field_is_in_the_json_only_where_it_is_used():
    assert "auxiliary" in network_to_json(two_backbones())
    assert network_from_json(network_to_json(two_backbones())) == two_backbones()
    assert "auxiliary" not in network_to_json(find_variant("yolov7"))


def test_stages_that_nothing_deployed_reads_are_dropped(tmp_path):
    dead = two_backbones(neck=(Stage("top", RepConv(16)), Stage("dead", Conv(4), of=("P3",))))
    model = create_model(dead, 3, seed=0).eval()
    deploy = model.reparameterize()
    assert hasattr(model.neck, "dead") and not hasattr(deploy.neck, "dead")
    assert list(deploy.features(torch.rand(1, 3, 32, 32))) == ["P2", "top"]


@pytest.mark.parametrize("variant", list_variants())
def test_the_published_networks_drop_their_auxiliary_stages_alone(variant):
    network = find_variant(variant)
    trunk = tuple(wire for wire in network.wires() if wire.part != "auxiliary")
    assert network.wires_of("deploy") == trunk and network.wires_of("training") == network.wires()
    assert bool(network.auxiliary) is variant.startswith("yolov9")
    model = create_model(network, 2, device="meta")
    assert (model.auxiliary is None) is not bool(network.auxiliary) and model.has_auxiliary == bool(
        network.head.auxiliary
    )
