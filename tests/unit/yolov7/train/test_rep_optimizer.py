"""Trainings with RepOptimizer: masked gradients, exact resume of both halves, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_detector import metadata_of
from small_rep import BLOCKS
from small_training import parameters, same_outcome, trainer, training_data

from yolov7.config import train_parameters
from yolov7.errors import ConfigError, ModelError
from yolov7.files import sha256_file
from yolov7.model import load_checkpoint, save_checkpoint
from yolov7.model.rep_optimizer import read_scales, scales_of
from yolov7.train.gradient_masks import gradient_masks
from yolov7.train.initial import initial_model

SGD = {"name": "sgd", "learning_rate": 0.01, "nominal_batch": 4, "warmup_iterations": 2, "warmup_epochs": 0}
NETWORK = {"network": "small_rep:small_rep_network", "optimizer": SGD}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("data"))


def training(index, folder, **over):
    params = parameters(**NETWORK, **over)
    return trainer(index, folder, params, initial_model("small-rep", params, index))


@pytest.fixture(scope="module")
def searched(index, tmp_path_factory):
    """The parameters of a target that follows a hyper-search."""
    last = training(index, tmp_path_factory.mktemp("search"), rep_optimizer="hyper-search").fit().last
    return {"rep_optimizer": "target", "scales": str(last), "scales_sha256": sha256_file(last)}


def test_a_hyper_search_moves_its_scales_and_decays_them(index, tmp_path, searched):
    scales = read_scales(searched["scales"])
    assert list(scales) == BLOCKS
    assert all(bool((block.dense != 1).any()) and bool((block.pointwise != 1).any()) for block in scales.values())
    run = training(index, tmp_path, rep_optimizer="hyper-search")
    decayed = {id(parameter) for parameter in run.learner.optimizer.param_groups[1]["params"]}
    held = dict(run.model.named_parameters())
    assert len([name for name in held if "_scale." in name]) == 12
    assert all(id(held[name]) in decayed for name in held if "_scale." in name)
    assert torch.equal(scales_of(run.model)[BLOCKS[0]].dense, torch.ones(8))


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_gradients_are_masked_before_they_are_clipped(index, tmp_path, searched, clip):
    run = training(index, tmp_path, **searched)
    learner, scales = run.learner, read_scales(searched["scales"])
    learner.params = parameters(optimizer={**SGD, "gradient_clip": clip})
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    wanted = {}
    for name, parameter in learner.model.named_parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
        block = scales.get(name.removesuffix(".conv.weight"))
        wanted[name] = parameter.grad * (1.0 if block is None else block.mask(parameter.detach()))
    norm = float(torch.stack([tensor.norm() for tensor in wanted.values()]).norm())
    factor = clip / (norm + 1e-6) if clip else 1.0
    for group in learner.optimizer.param_groups:
        group["weight_decay"], group["nesterov"] = 0.0, False
    settings = replace(run.schedule.at(0), learning_rate=1.0, bias_learning_rate=1.0, momentum=0.0)
    assert norm > 0.1 and learner.update(settings)
    for name, parameter in learner.model.named_parameters():
        assert torch.allclose(before[name] - parameter, factor * wanted[name], atol=1e-6), name


@pytest.mark.parametrize("half", ["search", "target"])
def test_a_stopped_training_ends_with_the_bits_of_an_undisturbed_one(index, tmp_path, searched, half):
    values = searched if half == "target" else {"rep_optimizer": "hyper-search"}
    straight = training(index, tmp_path / "straight", **values).fit()
    for batches in (2, 3):
        run = training(index, tmp_path / "stopped", **values)
        goal = batches + (run.states.last() is not None)
        run.stop = lambda run=run, goal=goal: run.position.iteration >= goal + 1
        assert not run.fit().finished
    assert same_outcome(straight, training(index, tmp_path / "stopped", **values).fit())


def test_start_weights_replace_the_initial_kernels(index, tmp_path, searched):
    drawn = initial_model("small-rep", parameters(**NETWORK, **searched), index)
    path = tmp_path / "start.safetensors"
    with torch.no_grad():
        drawn.backbone.stem.conv.weight.fill_(0.25)
    save_checkpoint(path, drawn, metadata_of(drawn))
    started = initial_model("small-rep", parameters(**NETWORK, **searched, weights=str(path)), index)
    assert all(
        torch.equal(a, b) for a, b in zip(started.state_dict().values(), drawn.state_dict().values(), strict=True)
    )


def test_the_deployed_target_computes_what_was_trained(index, tmp_path, searched):
    best, _ = load_checkpoint(training(index, tmp_path, **searched, epochs=1).fit().best)
    deployed = best.reparameterize()
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.allclose(best(images), deployed(images), atol=1e-3)
    assert sum(p.numel() for p in deployed.parameters()) < sum(p.numel() for p in best.parameters())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rep_optimizer": "target"}, "rep_optimizer: target needs `scales`"),
        ({"rep_optimizer": "chain", "scales": "x"}, "scales: only `rep_optimizer: target` reads them"),
        ({"rep_optimizer": "chain", "scales_sha256": "0" * 64}, "scales_sha256: it is the digest of `scales`, which"),
        ({"rep_optimizer": "hyper-search", "first_epochs": 2}, "first_epochs: there is one training"),
        (
            {"rep_optimizer": "hyper-search", "preset": "small"},
            "rep_optimizer: adamw undoes its masks on the gradients",
        ),
        ({"rep_optimizer": "chain", "optimizer": {"name": "adam"}}, "rep_optimizer: adam undoes its masks"),
        ({"rep_optimizer": "chain", "head": {"anchor_aided": True}}, "set `head: {anchor_aided: false}`"),
        ({"rep_optimizer": "chain", "weights": "a.pt"}, "chain draws the kernels from its scales"),
        (
            {"rep_optimizer": "target", "scales": "x", "optimizer": {"rate_batch": 32}},
            "rep_optimizer: target does not scale the learning rate",
        ),
        ({"rep_optimizer": "search"}, "train.rep_optimizer: Input should be"),
    ],
)
def test_what_cannot_be_combined_is_refused_in_one_line(values, words):
    with pytest.raises(ConfigError) as failure:
        train_parameters(values, where="train")
    assert words in str(failure.value) and "\n" not in str(failure.value)


def test_scales_that_do_not_fit_stop_the_training_before_its_first_batch(index, tmp_path, searched):
    with pytest.raises(ModelError, match="its sha256 is"):
        training(index, tmp_path, **{**searched, "scales_sha256": "0" * 64})
    wide = parameters(**{**NETWORK, "network": "small_rep_wide:network"}, **searched)
    with pytest.raises(ModelError, match=r"not the scales of a small-rep: block backbone\.stem"):
        initial_model("small-rep", wide, index)
    other = parameters(network="small_detector:small_network", optimizer=SGD, rep_optimizer="hyper-search")
    with pytest.raises(ModelError, match="RepOptimizer replaces RepVGG blocks, and this network has none"):
        initial_model("small", other, index)


def test_other_trainings_have_no_masks(index):
    params = parameters(**NETWORK)
    model = initial_model("small-rep", params, index)
    gradient = torch.ones_like(model.backbone.stem.dense.conv.weight)
    model.backbone.stem.dense.conv.weight.grad = gradient.clone()
    gradient_masks(model, params).apply()
    assert torch.equal(model.backbone.stem.dense.conv.weight.grad, gradient)
