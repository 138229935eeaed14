"""Activations and norms of the conv units."""

from __future__ import annotations

from torch import Tensor, nn

from yolov7.errors import ModelError

BN_EPS = 1e-3
BN_MOMENTUM = 0.03  # new = 0.97 * old + 0.03 * batch


def activation(name: str) -> nn.Module:
    """The activation called `name`. It overwrites its input, which no layer here reads again.

    Raises :class:`ModelError` for an unknown name.
    """
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
    """Batch normalisation with the constants that all published networks share."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def every(x: Tensor, stride: int) -> Tensor:
    """The pixels that a 1x1 convolution of this stride reads.

    A 1x1 on them computes the same, and can be trained: the gradient of oneDNN's own strided 1x1 (PyTorch 2.13, CPU, in
    channels-last order) reads outside its memory unless the channels are a multiple of 16, and ends the process.
    """
    return x if stride == 1 else x[:, :, ::stride, ::stride]
