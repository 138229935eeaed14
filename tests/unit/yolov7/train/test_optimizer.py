"""Our optimisers are torch's, without the wrappers that load its compiler."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from yolov7.config import Optimizer
from yolov7.train.optimizer import create_optimizer


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 3))


def plain(kind: str, groups: list[dict], options: Optimizer) -> torch.optim.Optimizer:
    """torch's own, with the same settings."""
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum, nesterov=True, foreach=True)
    of = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    return of(groups, lr=options.learning_rate, betas=(options.momentum, 0.999), fused=True)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_steps_and_states_are_bit_for_bit_those_of_torch(kind):
    ours, theirs = network(), network()
    options = Optimizer(name=kind)
    first = create_optimizer(ours, options, weight_decay=0.01)
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    named = dict(theirs.named_parameters())
    groups = [
        {"params": [named[names[id(one)]] for one in group["params"]], "weight_decay": group["weight_decay"]}
        for group in first.param_groups
    ]
    second = plain(kind, groups, options)
    for number in range(6):
        if number == 3:  # as when a training is resumed
            first, state = create_optimizer(ours, options, weight_decay=0.01), copy.deepcopy(first.state_dict())
            first.load_state_dict(state)
        images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(number))
        for model, optimizer in ((ours, first), (theirs, second)):
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert isinstance(first, type(second))
    mine, its = first.state_dict(), second.state_dict()
    assert mine["param_groups"] == its["param_groups"] and mine["state"].keys() == its["state"].keys()
    for key, values in mine["state"].items():
        assert all(
            torch.equal(torch.as_tensor(values[name]), torch.as_tensor(its["state"][key][name])) for name in values
        )
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_a_step_leaves_gradients_on():
    model = network()
    optimizer = create_optimizer(model, Optimizer(), weight_decay=0.01)
    model(torch.ones(1, 3, 12, 12)).sum().backward()
    optimizer.step()
    assert torch.is_grad_enabled() and all(parameter.requires_grad for parameter in model.parameters())
