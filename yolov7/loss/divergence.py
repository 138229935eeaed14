"""Kullback-Leibler divergences of a student's predictions from a teacher's (reference sheet: yolov6-training, 7.5).

Legend: B images, C classes, h w cells, P matches, K bins, F channels of a feature map, R box channels, T temperature.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolov7.device import widest_float


def class_divergence(maps: Tensor, channels: int, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergences of all cells of a level, summed: a scalar, in float64 where the device has it.

    `maps` (B, R + C, h, w) of the student, `channels`: R; `teacher` (B, C, h, w) class logits. The distributions are
    the softmax over the classes of score / T, not of the logits, as published. With one class it is 0.
    """
    total: Tensor = _ClassDivergence.apply(maps, channels, teacher, temperature)
    return total


class _ClassDivergence(torch.autograd.Function):
    """Keeps one map for the backward pass: the gradient itself.

    A term is about 1e-8, so float32 loses it beside the logarithms of the probabilities: summed as published, a
    student that equals its teacher has -0.01 for 8,400 cells. With teacher probabilities q, differences of scores
    d = (t - s) / T and c = d - sum(q d), the divergence is log(1 + sum(q (exp(-c) - 1 + c))), where nothing cancels.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, channels: int, teacher: Tensor, temperature: float) -> Tensor:
        scores = _full(maps[:, channels:]).sigmoid()
        wanted = _full(teacher).sigmoid().to(scores.dtype)
        q = (wanted / temperature).softmax(1)
        c = wanted.sub_(scores).div_(temperature)
        c.sub_((q * c).sum(1, keepdim=True))
        change = torch.expm1(-c)  # student over teacher probability - 1, but for a factor
        gap = (q * (change + c)).sum(1, keepdim=True)
        # T^2 times (student probability - q) / T, times the slope of the score.
        slope = q.mul_(change.sub_(gap)).div_(1 + gap).mul_(scores).mul_(1 - scores).mul_(temperature)
        ctx.save_for_backward(maps, slope)
        ctx.channels = channels
        return torch.log1p(gap).sum(dtype=widest_float(maps.device)) * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        maps, slope = ctx.saved_tensors
        gradient = torch.empty_like(maps)
        gradient[:, : ctx.channels].zero_()
        gradient[:, ctx.channels :] = slope * upstream.to(slope.dtype)
        return gradient, None, None, None


def distribution_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the divergences of the distributions of the distances, the mean over the four sides: (P,).

    `student` and `teacher` (P, 4, K) logits.
    """
    ours, theirs = (_full(logits).div(temperature).log_softmax(2) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(2).mean(1) * temperature**2


def channel_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The divergences of the channels of a feature map over its positions, the mean over channels, summed over images.

    `student` and `teacher` (B, F, h, w); a scalar.
    """
    ours, theirs = (_full(maps).flatten(2).log_softmax(2) for maps in (student, teacher))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) / student.shape[1]


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
