"""The building blocks of the networks (reference sheet: architecture, section 2).

Every `forward` maps (B, C, H, W) to (B, C', H', W'). A block that has another form for inference offers
`reparameterize()`, which returns it (see `yolov7.model.reparameterize`). Layers are defined in the order of the sheet.
"""

# ruff: noqa: D102 - `forward` is what the class says it computes

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def _implicit(kinds: Sequence[Implicit], channels: int) -> nn.Sequential:
    known: dict[str, type[nn.Module]] = {"add": ImplicitAdd, "multiply": ImplicitMultiply}
    for kind in kinds:
        if kind not in known:
            raise ModelError(f"unknown implicit vector {kind!r} (known: add, multiply)")
    return nn.Sequential(*(known[kind](channels) for kind in kinds))


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
        self.before = _implicit(before, in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=not norm)
        self.bn: nn.Module = batch_norm(out_channels) if norm else nn.Identity()
        self.after = _implicit(after, out_channels)
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


class RepConv(nn.Module):
    """3x3 and 1x1 convolution, each with its batch norm, and an identity with batch norm where shapes allow; summed.

    `identity=False` is RepConvN, the form the paper's planned re-parameterisation puts where the output feeds a
    residual or a concatenation (paper, section 4.1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str = "silu",
        identity: bool = True,
    ):
        super().__init__()
        keeps_shape = in_channels == out_channels and stride == 1
        self.identity = batch_norm(in_channels) if identity and keeps_shape else None
        self.dense = ConvUnit(in_channels, out_channels, 3, stride, groups=groups, act="none")
        self.pointwise = ConvUnit(in_channels, out_channels, 1, stride, groups=groups, act="none")
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            y = y + self.identity(x)
        out: Tensor = self.act(y)
        return out

    def reparameterize(self) -> FusedConv:
        """One 3x3 convolution with bias that computes the same."""
        conv = self.dense.conv
        if conv.weight.is_meta:
            return FusedConv(fold.laid_out(conv), self.act)
        kernel, bias = fold.fold_affine_after(*fold.kernel_and_bias(conv), *fold.batch_norm_affine(self.dense.bn))
        small, small_bias = fold.fold_affine_after(
            *fold.kernel_and_bias(self.pointwise.conv), *fold.batch_norm_affine(self.pointwise.bn)
        )
        kernel, bias = kernel + F.pad(small, [1, 1, 1, 1]), bias + small_bias
        if self.identity is not None:
            scale, shift = fold.batch_norm_affine(self.identity)
            kernel = kernel + fold.identity_kernel(kernel, conv.groups) * scale[:, None, None, None]
            bias = bias + shift
        return FusedConv(fold.biased_conv(conv, kernel, bias), self.act)


class SpaceToDepth(nn.Module):
    """ReOrg, the stem of the P6 networks: (B, C, 2h, 2w) -> (B, 4C, h, w), groups by (row, column) offset
    (0, 0), (1, 0), (0, 1), (1, 1).
    """

    def forward(self, x: Tensor) -> Tensor:
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return torch.cat(parts, 1)


class Elan(nn.Module):
    """Efficient layer aggregation: two 1x1 branches, a chain of 3x3 on the second, taps concatenated, a last 1x1.

    `tapped` are the positions in the chain (from 0) that are concatenated: [last tap, ..., first tap, b, a].
    `rep` are the positions that are RepConv; where such a layer is tapped it feeds the concatenation, so the builder
    leaves its identity branch out (planned re-parameterisation, paper section 4.1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        width: int,
        depth: int,
        tapped: frozenset[int],
        *,
        rep: frozenset[int] = frozenset(),
        act: str = "silu",
    ):
        super().__init__()
        self.tapped = tapped
        self.a = ConvUnit(in_channels, hidden, act=act)
        self.b = ConvUnit(in_channels, hidden, act=act)
        self.chain = nn.ModuleList()
        for position in range(depth):
            before = hidden if position == 0 else width
            if position in rep:
                self.chain.append(RepConv(before, width, act=act, identity=position not in tapped))
            else:
                self.chain.append(ConvUnit(before, width, 3, act=act))
        self.out = ConvUnit(2 * hidden + len(tapped) * width, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        a, y = self.a(x), self.b(x)
        taps = [a, y]
        for position, conv in enumerate(self.chain):
            y = conv(y)
            if position in self.tapped:
                taps.append(y)
        out: Tensor = self.out(torch.cat(taps[::-1], 1))
        return out


class StridedConv(nn.Module):
    """Down-sampling by C(3,2,o); further maps of the same size are appended to the output."""

    def __init__(self, in_channels: int, out_channels: int, *, act: str = "silu"):
        super().__init__()
        self.down = ConvUnit(in_channels, out_channels, 3, 2, act=act)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        y: Tensor = self.down(x)
        return torch.cat((y, *lateral), 1) if lateral else y


class MpConv(nn.Module):
    """Down-sampling of YOLOv7 and X: max-pool + 1x1 beside 1x1 + strided 3x3; [strided, pooled, *lateral]."""

    def __init__(self, in_channels: int, branch: int, *, act: str = "silu"):
        super().__init__()
        self.pool = nn.MaxPool2d(2, 2)
        self.pooled = ConvUnit(in_channels, branch, act=act)
        self.reduce = ConvUnit(in_channels, branch, act=act)
        self.strided = ConvUnit(branch, branch, 3, 2, act=act)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        return torch.cat((self.strided(self.reduce(x)), self.pooled(self.pool(x)), *lateral), 1)


class DownC(nn.Module):
    """Down-sampling of E6, D6 and E6E: 1x1 + strided 3x3 beside max-pool + 1x1; [strided, pooled, *lateral]."""

    def __init__(self, in_channels: int, out_channels: int, *, act: str = "silu"):
        super().__init__()
        self.cv1 = ConvUnit(in_channels, in_channels, act=act)
        self.cv2 = ConvUnit(in_channels, out_channels // 2, 3, 2, act=act)
        self.cv3 = ConvUnit(in_channels, out_channels // 2, act=act)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: Tensor, *lateral: Tensor) -> Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.pool(x)), *lateral), 1)


class PoolPyramid(nn.Module):
    """Max-pools of growing odd sides, stride 1, "same" padding: x -> [pool of each size].

    A wide pool is a narrow one of the pool before it (padding is minus infinity, so this is exact) and costs less.
    """

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        steps = [after - before + 1 for before, after in zip((1, *sizes), sizes, strict=False)]
        self.pools = nn.ModuleList(nn.MaxPool2d(step, stride=1, padding=step // 2) for step in steps)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for pool in self.pools:
            x = pool(x)
            maps.append(x)
        return maps


class SppCspc(nn.Module):
    """Spatial pyramid pooling in a cross-stage-partial frame; hidden width = output width."""

    def __init__(self, in_channels: int, out_channels: int, pools: Sequence[int] = (5, 9, 13), *, act: str = "silu"):
        super().__init__()
        c = out_channels
        self.cv1 = ConvUnit(in_channels, c, act=act)
        self.cv2 = ConvUnit(in_channels, c, act=act)
        self.cv3 = ConvUnit(c, c, 3, act=act)
        self.cv4 = ConvUnit(c, c, act=act)
        self.cv5 = ConvUnit((1 + len(pools)) * c, c, act=act)
        self.cv6 = ConvUnit(c, c, 3, act=act)
        self.cv7 = ConvUnit(2 * c, c, act=act)
        self.pools = PoolPyramid(pools)

    def forward(self, x: Tensor) -> Tensor:
        u = self.cv4(self.cv3(self.cv1(x)))
        v = self.cv6(self.cv5(torch.cat((u, *self.pools(u)), 1)))
        out: Tensor = self.cv7(torch.cat((v, self.cv2(x)), 1))
        return out


class TinySpp(nn.Module):
    """The small pyramid pooling of yolov7-tiny: [pool13 b, pool9 b, pool5 b, b] -> d; [d, a] -> out."""

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int, pools: Sequence[int] = (5, 9, 13), *, act: str = "silu"
    ):
        super().__init__()
        self.a = ConvUnit(in_channels, hidden, act=act)
        self.b = ConvUnit(in_channels, hidden, act=act)
        self.pools = PoolPyramid(pools)
        self.d = ConvUnit((1 + len(pools)) * hidden, hidden, act=act)
        self.out = ConvUnit(2 * hidden, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        d = self.d(torch.cat((*self.pools(b)[::-1], b), 1))
        out: Tensor = self.out(torch.cat((d, a), 1))
        return out


class UpConcat(nn.Module):
    """Top-down step: [1x1 of the backbone's map, up-sampled 1x1 of the map above], each `each` wide."""

    def __init__(self, top_channels: int, route_channels: int, each: int, *, act: str = "silu"):
        super().__init__()
        self.top = ConvUnit(top_channels, each, act=act)
        self.route = ConvUnit(route_channels, each, act=act)

    def forward(self, top: Tensor, route: Tensor) -> Tensor:
        above = F.interpolate(self.top(top), scale_factor=2.0, mode="nearest")
        return torch.cat((self.route(route), above), 1)


class Concat(nn.Module):
    """Maps of one size, one after the other."""

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat(maps, 1)


class Sum(nn.Module):
    """Maps of one shape, added: the shortcut of a residual, or the merge of a twin ELAN."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        total = first
        for other in others:
            total = other + total
        return total
