"""The conv unit, of which every block is made, and its deploy form."""

# ruff: noqa: D102 - `forward` computes what the class says

from __future__ import annotations

from torch import Tensor, nn

from yolov7.model import reparameterize as fold
from yolov7.model.blocks.layers import activation, batch_norm


class FusedConv(nn.Module):
    """The deploy form of every conv unit: one kernel, one bias, the activation."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module):
        super().__init__()
        self.conv = conv
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.conv(x))
        return y


class ConvUnit(nn.Module):
    """Convolution with "same" padding, batch norm, activation.

    `bias`: whether the convolution has one; None: only without `norm`.
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
    ):
        super().__init__()
        bias = not norm if bias is None else bias
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.bn: nn.Module = batch_norm(out_channels) if norm else nn.Identity()
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y

    def reparameterize(self) -> FusedConv:
        """One convolution with bias that computes the same."""
        if self.conv.weight.is_meta:
            return FusedConv(fold.laid_out(self.conv), self.act)
        kernel, bias = fold.kernel_and_bias(self.conv)
        if not isinstance(self.bn, nn.Identity):
            kernel, bias = fold.fold_affine_after(kernel, bias, *fold.batch_norm_affine(self.bn))
        return FusedConv(fold.biased_conv(self.conv, kernel, bias), self.act)
