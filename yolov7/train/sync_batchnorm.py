"""Batch normalisation over the images of all processes.

PyTorch's own works on accelerators only; the one written here works on CPUs, where the tests prove that processes
train as one does. With either, the processes see the statistics that one process sees with the whole batch.

Legend: B images, C channels, P processes.
"""

# ruff: noqa: D102 - `forward` computes what the class says

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from yolov7.device import has_native_sync_batchnorm
from yolov7.train.distributed import Processes


def synchronize_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm of `model`, keeping its parameters and buffers; returns the model."""
    if has_native_sync_batchnorm(device):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, SynchronizedBatchNorm(child))
    return model


def average_statistics(model: nn.Module, processes: Processes) -> None:
    """Average the running statistics of norms that are not synchronised: each process followed its own images only.

    Frozen norms stay as they are.
    """
    if processes.world_size == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]
    if buffers:
        processes.average_(buffers)


class SynchronizedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of the images of all processes. (B, C, H, W)."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.track_running_stats = norm.track_running_stats
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance = _Normalize.apply(x, self.weight, self.bias, self.eps)
        if not self.track_running_stats:
            return y
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        return y


class _Normalize(torch.autograd.Function):
    """x (B, C, H, W), weight (C,), bias (C,) -> y, mean (C,), unbiased variance (C,), in float32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        values = x.float()
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        count = mean.new_full((1,), values.numel() // len(mean))
        own = torch.cat((mean, variance, count))  # (2C + 1,)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own)
        means, variances, counts = torch.stack(everyone).split((len(mean), len(mean), 1), dim=1)  # (P, C), (P, 1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        # The variance inside the processes, and that between them.
        variance = ((variances + (means - mean) ** 2) * counts).sum(0) / total
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, scale, total)
        shape = (1, -1, 1, 1)
        factor = scale * weight
        y = values * factor.view(shape) + (bias - mean * factor).view(shape)
        unbiased = variance * (total / (total - 1).clamp(min=1))
        ctx.mark_non_differentiable(mean, unbiased)
        return y.to(x.dtype), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, total = ctx.saved_tensors
        shape = (1, -1, 1, 1)
        incoming = gradient.float()
        normal = (x.float() - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = incoming.sum((0, 2, 3)), (incoming * normal).sum((0, 2, 3))
        # Every image moved the common mean and variance, so what comes back through them is shared by all.
        shared = torch.cat((of_bias, of_weight))
        dist.all_reduce(shared)
        through_mean, through_variance = (shared / total).split(len(mean))
        inner = incoming - through_mean.view(shape) - normal * through_variance.view(shape)
        # Those of the parameters stay this process's own: they are added up with all other gradients.
        return (inner * (scale * weight).view(shape)).to(x.dtype), of_weight, of_bias, None
