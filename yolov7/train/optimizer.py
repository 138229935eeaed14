"""The optimiser and its three parameter groups (training sheet, section 2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolov7.config import Optimizer
from yolov7.errors import ConfigError
from yolov7.train.schedule import StepSettings


@dataclass(frozen=True)
class ParameterGroups:
    """Names of the trainable parameters by how they are treated."""

    no_decay: tuple[str, ...]
    """Normalisation weights and all implicit vectors: no weight decay."""
    decay: tuple[str, ...]
    """Convolution kernels: weight decay."""
    bias: tuple[str, ...]
    """Biases: no decay, and a learning rate of their own during warm-up."""


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """Sort every trainable parameter into exactly one group.

    Parameters that are neither weight nor bias (implicit vectors, learnable scalars) are not decayed.
    """
    no_decay, decay, bias = [], [], []
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            full = f"{module_name}.{name}" if module_name else name
            if name == "bias":
                bias.append(full)
            elif name == "weight" and not isinstance(module, _BatchNorm):
                decay.append(full)
            else:
                no_decay.append(full)
    return ParameterGroups(tuple(no_decay), tuple(decay), tuple(bias))


def create_optimizer(
    model: nn.Module, options: Optimizer, *, weight_decay: float, fused_sgd: bool = False
) -> torch.optim.Optimizer:
    """Optimiser with the groups no_decay, decay, bias, in this order. `weight_decay` is that of a step."""
    groups = parameter_groups(model)
    named = dict(model.named_parameters())
    sets = [
        {"params": [named[name] for name in groups.no_decay], "weight_decay": 0.0},
        {"params": [named[name] for name in groups.decay], "weight_decay": weight_decay},
        {"params": [named[name] for name in groups.bias], "weight_decay": 0.0},
    ]
    if not any(group["params"] for group in sets):
        raise ConfigError("train.freeze: every parameter of the network is frozen, nothing is left to train")
    rate = options.learning_rate
    if options.name == "sgd":
        how = {"fused": True} if fused_sgd else {"foreach": True}
        return _eager(torch.optim.SGD)(sets, lr=rate, momentum=options.momentum, nesterov=options.momentum > 0, **how)
    kind = _eager(torch.optim.Adam if options.name == "adam" else torch.optim.AdamW)
    # `fused` does the same arithmetic in one pass over memory; on CPU it halves the time of a step.
    return kind(sets, lr=rate, betas=(options.momentum, 0.999), fused=True)


def _eager(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """`kind` without its guards against being traced.

    torch.optim wraps these methods for steps inside a compiled function, which a training here has not, and the first
    call of a wrapper loads all of torch._dynamo: 1.3 s of processor time at every start. Each wrapper names what it
    wraps; where a build of torch has none, the method is as it was. Without gradients, as the wrapper of `step` does.
    """
    guarded = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in guarded}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def apply_settings(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """Set learning rates and momentum for the coming step."""
    rates = (settings.learning_rate, settings.learning_rate, settings.bias_learning_rate)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "betas" in group:
            group["betas"] = (settings.momentum, group["betas"][1])
        else:
            group["momentum"] = settings.momentum


def freeze(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Freeze the parameters under each dotted name (`backbone`, `neck`, ...); returns the frozen modules.

    The caller keeps the returned modules in eval mode, so that their BN statistics stay as they are.
    Raises :class:`ConfigError` for a name that matches nothing.
    """
    frozen = []
    for name in names:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            parts = ", ".join(child for child, _ in model.named_children())
            raise ConfigError(f"train.freeze: the network has no part {name!r} (its parts: {parts})") from None
        module.requires_grad_(False)
        frozen.append(module)
    return frozen
