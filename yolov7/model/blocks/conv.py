"""Convolution, batch norm, activation."""

# ruff: noqa: D102 - `forward` is what the class says it computes; a spec's methods are those of `spec.Block`

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from yolov7.model import reparameterize as fold
from yolov7.model.blocks.layers import Implicit, ImplicitAdd, ImplicitMultiply, activation, batch_norm, implicit
from yolov7.model.spec import Block, Map, Scaling, widened


class FusedConv(nn.Module):
    """The deploy form of every convolution: one kernel, one bias, the activation."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.conv(x))
        return y


class ConvUnit(nn.Module):
    """Convolution, batch norm, activation; implicit vectors before the convolution or after the norm, if asked for.

    Without `norm` the convolution has a bias and stands alone (the output convolutions of the head).

    A vector before a padded convolution is applied to the padding too. So it folds into the bias exactly; for the
    1x1 convolutions of the published heads there is no padding, and nothing differs.
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
        before: Sequence[Implicit] = (),
        after: Sequence[Implicit] = (),
    ):
        super().__init__()
        self.border = kernel // 2 if before else 0
        padding = 0 if before else kernel // 2
        self.before = implicit(before, in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=not norm)
        self.bn: nn.Module = batch_norm(out_channels) if norm else nn.Identity()
        self.after = implicit(after, out_channels)
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


@dataclass(frozen=True)
class Conv(Block):
    """C(k, s, o). `before` and `after` name implicit vectors around the convolution, in the order they act."""

    out: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    before: tuple[Implicit, ...] = ()
    after: tuple[Implicit, ...] = ()

    def output(self, maps: Sequence[Map]) -> Map:
        return Map(self.out, self.single(maps).stride * self.stride)

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        return ConvUnit(
            channels[0],
            self.out,
            self.kernel,
            self.stride,
            groups=self.groups,
            act=act,
            before=self.before,
            after=self.after,
        )

    def scaled(self, scaling: Scaling) -> Conv:
        return replace(self, out=widened(self.out, scaling.transition))
