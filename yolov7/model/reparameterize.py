"""From the trained form to the deployed one (reference sheet: reparameterization, section 1).

:func:`convert` walks a network and lets every module that knows a deploy form replace itself; nothing depends on layer
numbers, class counts or variants. The other functions are the algebra: kernels and biases travel in float64 on the CPU,
since not every accelerator has that type (MPS), and are rounded once, when :func:`biased_conv` stores them in the dtype
and on the device of the convolution they came from.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolov7.errors import ModelError

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Reparameterizable(Protocol):
    """A module with another form for inference. `reparameterize` may return itself, changed."""

    def reparameterize(self) -> nn.Module:
        """The deploy form."""
        ...


def convert(module: nn.Module) -> nn.Module:
    """Replace `module` and everything in it by deploy forms, in place; returns the replacement of `module`."""
    if isinstance(module, Reparameterizable):
        module = module.reparameterize()
    for name, child in list(module.named_children()):
        replacement = convert(child)
        if replacement is not child:
            module._modules[name] = replacement
    return module


def float64(tensor: Tensor) -> Tensor:
    """The values in float64 on the CPU, apart from the graph."""
    return tensor.detach().cpu().double()


def kernel_and_bias(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """(kernel (O, I/groups, k, k), bias (O,)) in float64; a missing bias is zero."""
    kernel = float64(conv.weight)
    bias = kernel.new_zeros(kernel.shape[0]) if conv.bias is None else float64(conv.bias)
    return kernel, bias


def batch_norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm in inference as (scale, shift), each (C,) float64. Synchronised norms are accepted."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise ModelError(f"{type(norm).__name__} keeps no running statistics, so it cannot be folded")
    mean, variance = float64(norm.running_mean), float64(norm.running_var)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * float64(norm.weight)
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + float64(norm.bias)
    return scale, shift


def fold_affine_after(kernel: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """`scale * (W x + b) + shift` as one convolution; scale and shift are (O,)."""
    return kernel * scale[:, None, None, None], bias * scale + shift


def fold_affine_before(
    kernel: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, *, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """`W (scale * x + shift) + b` as one convolution; scale and shift are (I,), and hold in the padding too."""
    outputs, inputs = kernel.shape[0], kernel.shape[1]
    # Output channel o reads the input channels of its own group: one row of (groups, I/groups) for O/groups outputs.
    rows = torch.arange(groups, device=kernel.device).repeat_interleave(outputs // groups)
    scales = scale.reshape(groups, inputs)[rows]  # (O, I/groups)
    shifts = shift.reshape(groups, inputs)[rows]
    bias = bias + (kernel.sum((2, 3)) * shifts).sum(1)
    return kernel * scales[:, :, None, None], bias


def identity_kernel(like: Tensor, groups: int = 1) -> Tensor:
    """The kernel of a convolution that returns its input: one at the centre, from channel o to channel o."""
    outputs, inputs, height, width = like.shape
    if outputs != inputs * groups:
        raise ModelError(f"an identity needs as many outputs as inputs, got {outputs} and {inputs * groups}")
    kernel = torch.zeros_like(like)
    rows = torch.arange(outputs, device=like.device)
    kernel[rows, rows % inputs, height // 2, width // 2] = 1.0
    return kernel


def biased_conv(source: nn.Conv2d, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution shaped like `source`, with this kernel and bias in the dtype and on the device of `source`."""
    conv = laid_out(source)
    dtype, device, layout = source.weight.dtype, source.weight.device, _layout_of(source.weight)
    # First the type, then the device, which may not have float64.
    conv.weight = nn.Parameter(kernel.to(dtype).contiguous(memory_format=layout).to(device), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype).to(device), requires_grad=False)
    return conv


def laid_out(source: nn.Conv2d) -> nn.Conv2d:
    """A convolution with bias and "same" padding shaped like `source`, on the meta device: no storage, no values.

    The deploy form of a convolution on the meta device, where arithmetic would only load the compiler (seconds).
    """
    size, stride = (source.kernel_size[0], source.kernel_size[1]), (source.stride[0], source.stride[1])
    conv = nn.Conv2d(
        source.in_channels,
        source.out_channels,
        size,
        stride,
        size[0] // 2,
        groups=source.groups,
        device="meta",
        dtype=source.weight.dtype,
    )
    return conv.requires_grad_(False)


def _layout_of(weight: Tensor) -> torch.memory_format:
    channels_last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
