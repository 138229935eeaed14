"""Implicit knowledge (YOLOv7 paper, section 3.2): learnt vectors around a convolution, folded into it for inference."""

# ruff: noqa: D102 - `forward` computes what the class says

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from yolov7.errors import ModelError
from yolov7.model import reparameterize as fold
from yolov7.model.blocks.layers import activation, batch_norm
from yolov7.model.blocks.unit import FusedConv

Implicit = Literal["add", "multiply"]


def _vector(channels: int, mean: float) -> nn.Parameter:
    values = torch.empty(1, channels, 1, 1)
    if not values.is_meta:  # drawing on the meta device would draw nothing, and load the compiler for it (seconds)
        nn.init.normal_(values, mean=mean, std=0.02)
    return nn.Parameter(values)


class ImplicitAdd(nn.Module):
    """One learnt number per channel, added. (1, C, 1, 1)."""

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
    """One learnt number per channel, multiplied. (1, C, 1, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.implicit = _vector(channels, mean=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.implicit

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (C,) float64 on the CPU."""
        scale = fold.float64(self.implicit).flatten()
        return scale, torch.zeros_like(scale)


def _vectors(kinds: Sequence[Implicit], channels: int) -> nn.Sequential:
    known: dict[str, type[nn.Module]] = {"add": ImplicitAdd, "multiply": ImplicitMultiply}
    for kind in kinds:
        if kind not in known:
            raise ModelError(f"unknown implicit vector {kind!r} (known: add, multiply)")
    return nn.Sequential(*(known[kind](channels) for kind in kinds))


class ImplicitConvUnit(nn.Module):
    """A conv unit with implicit vectors before the convolution and after the norm, in the order they act.

    A vector before a padded convolution is applied to the padding too, so it folds into the bias exactly. The 1x1
    convolutions of the published heads have no padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str = "silu",
        norm: bool = True,
        bias: bool | None = None,
        before: Sequence[Implicit] = (),
        after: Sequence[Implicit] = (),
    ):
        super().__init__()
        self.border = kernel // 2 if before else 0
        padding = 0 if before else kernel // 2
        bias = not norm if bias is None else bias
        # In the order of the forward pass: the seeded weights and the order of the parameters depend on it.
        self.before = _vectors(before, in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)
        self.bn: nn.Module = batch_norm(out_channels) if norm else nn.Identity()
        self.after = _vectors(after, out_channels)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        if self.border:
            x = F.pad(x, [self.border] * 4)
        y: Tensor = self.act(self.after(self.bn(self.conv(self.before(x)))))
        return y

    def reparameterize(self) -> FusedConv:
        """One convolution with bias that computes the same."""
        if self.conv.weight.is_meta:
            return FusedConv(fold.laid_out(self.conv), self.act)
        kernel, bias = fold.kernel_and_bias(self.conv)
        for vector in reversed(self.before):
            assert isinstance(vector, ImplicitAdd | ImplicitMultiply)
            kernel, bias = fold.fold_affine_before(kernel, bias, *vector.affine(), groups=self.conv.groups)
        if not isinstance(self.bn, nn.Identity):
            kernel, bias = fold.fold_affine_after(kernel, bias, *fold.batch_norm_affine(self.bn))
        for vector in self.after:
            assert isinstance(vector, ImplicitAdd | ImplicitMultiply)
            kernel, bias = fold.fold_affine_after(kernel, bias, *vector.affine())
        return FusedConv(fold.biased_conv(self.conv, kernel, bias), self.act)
