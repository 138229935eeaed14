"""Activations, norms, and implicit vectors: the small parts of every conv unit."""

# ruff: noqa: D102 - `forward` is what the class says it computes; a spec's methods are those of `spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model import reparameterize as fold

BN_EPS = 1e-3
BN_MOMENTUM = 0.03  # new = 0.97 * old + 0.03 * batch

Implicit = Literal["add", "multiply"]


def activation(name: str) -> nn.Module:
    """The activation called `name`; it overwrites its input, which no layer here needs again."""
    if name == "silu":
        return nn.SiLU(inplace=True)
    if name == "leaky-relu":
        return nn.LeakyReLU(0.1, inplace=True)
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "none":
        return nn.Identity()
    raise ModelError(f"unknown activation {name!r} (known: silu, leaky-relu, relu, none)")


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation with the constants of the family."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def _vector(channels: int, mean: float) -> nn.Parameter:
    values = torch.empty(1, channels, 1, 1)
    if not values.is_meta:  # drawing on the meta device would draw nothing, and load the compiler for it (seconds)
        nn.init.normal_(values, mean=mean, std=0.02)
    return nn.Parameter(values)


class ImplicitAdd(nn.Module):
    """Implicit knowledge (paper, section 3.2): one learnt number a channel, added. (1, C, 1, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.implicit = _vector(channels, mean=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.implicit

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,) float64 on the CPU."""
        shift = fold.float64(self.implicit).flatten()
        return torch.ones_like(shift), shift


class ImplicitMultiply(nn.Module):
    """Implicit knowledge (paper, section 3.2): one learnt number a channel, multiplied. (1, C, 1, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.implicit = _vector(channels, mean=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.implicit

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,) float64 on the CPU."""
        scale = fold.float64(self.implicit).flatten()
        return scale, torch.zeros_like(scale)


def implicit(kinds: Sequence[Implicit], channels: int) -> nn.Sequential:
    """The implicit vectors named, for maps of this width."""
    known: dict[str, type[nn.Module]] = {"add": ImplicitAdd, "multiply": ImplicitMultiply}
    for kind in kinds:
        if kind not in known:
            raise ModelError(f"unknown implicit vector {kind!r} (known: add, multiply)")
    return nn.Sequential(*(known[kind](channels) for kind in kinds))
