"""Exponential moving average of the weights (training sheet, section 2)."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

from yolov7.config import Ema

M = TypeVar("M", bound=nn.Module)


class AveragedModel(Generic[M]):
    """A float32 copy of a model that follows it: `ema = d * ema + (1 - d) * model` for parameters and BN statistics.

    Not `torch.optim.swa_utils.AveragedModel`: its first update copies the model instead of averaging, and it sorts all
    tensors by device and type again in every step.
    `d = decay * (1 - exp(-updates / ramp))`, so that the first averages are not those of random weights.
    With `enabled: false` the copy simply equals the model (the ablation).
    """

    def __init__(self, model: M, options: Ema):
        self.options = options
        self.updates = 0
        self.model: M = copy.deepcopy(model).eval().requires_grad_(False)
        ours, theirs = self.model.state_dict(), model.state_dict()
        floating = [name for name, tensor in ours.items() if tensor.is_floating_point()]
        self._floating = ([ours[name] for name in floating], [theirs[name] for name in floating])
        counters = [name for name in ours if name not in set(floating)]
        self._counters = ([ours[name] for name in counters], [theirs[name] for name in counters])

    def decay(self) -> float:
        """Decay of the coming update."""
        if not self.options.enabled:
            return 0.0
        return self.options.decay * (1.0 - math.exp(-(self.updates + 1) / self.options.ramp))

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model; called after every optimiser step."""
        decay = self.decay()
        self.updates += 1
        averaged, current = self._floating
        # lerp(a, b, 1 - d) is d*a + (1 - d)*b in one pass.
        torch._foreach_lerp_(averaged, current, 1.0 - decay)
        for ours, theirs in zip(*self._counters, strict=True):
            ours.copy_(theirs)

    @torch.no_grad()
    def heal(self) -> bool:
        """Replace values of the model that are not finite by those of the average; whether there were any.

        A forward pass that overflows leaves NaN in the running statistics of a batch norm for good: training does not
        notice, because it reads the statistics of the batch, but every later evaluation would find nothing.
        """
        averaged, current = self._floating
        broken = [pair for pair in zip(averaged, current, strict=True) if not bool(torch.isfinite(pair[1]).all())]
        for ours, theirs in broken:
            theirs.copy_(torch.where(torch.isfinite(theirs), theirs, ours))
        return bool(broken)
