"""Learning rate, momentum and accumulation as a pure function of the position in the run.

Source: training sheet, section 2. Being pure, it needs no saved state for an exact resume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from yolov7.config import Optimizer


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Settings of the optimiser at one iteration."""

    learning_rate: float
    """Of normalisation weights, implicit vectors and kernels."""
    bias_learning_rate: float
    """Of the biases, which warm up from above."""
    momentum: float
    accumulate: int
    """Batches whose gradients are summed before a step."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The plan of a run of `epochs` passes of `batches_per_epoch` batches of `batch_size` images."""

    optimizer: Optimizer
    epochs: int
    batches_per_epoch: int
    batch_size: int

    @property
    def learning_rate(self) -> float:
        """The learning rate after warm-up, for this batch size."""
        options = self.optimizer
        images = options.published_gpus * options.rate_batch
        return options.learning_rate * self.batch_size / images if images else options.learning_rate

    @property
    def accumulate(self) -> int:
        """Batches per optimiser step after warm-up, so that a step sees about `nominal_batch` images."""
        return max(round(self.optimizer.nominal_batch / self.batch_size), 1)

    @property
    def weight_decay(self) -> float:
        """Decay of a step, in proportion to the images it sees."""
        return self.optimizer.weight_decay * self.batch_size * self.accumulate / self.optimizer.nominal_batch

    @property
    def warmup(self) -> int:
        """Iterations of the warm-up.

        As published, at least `warmup_iterations`; but never more than half of the run, which the published rule
        would exceed on a small data set, so that it never left the warm-up.
        """
        wanted = max(round(self.optimizer.warmup_epochs * self.batches_per_epoch), self.optimizer.warmup_iterations)
        return min(wanted, self.epochs * self.batches_per_epoch // 2)

    def factor(self, epoch: int) -> float:
        """Factor of the learning rate in `epoch` (0-based)."""
        final = self.optimizer.final_factor
        if self.optimizer.schedule == "linear":
            length = max(self.epochs - 1, 1) if self.optimizer.linear_reaches_end else self.epochs
            return (1.0 - epoch / length) * (1.0 - final) + final
        return (1.0 - math.cos(math.pi * epoch / self.epochs)) / 2.0 * (final - 1.0) + 1.0

    def steps_after(self, iteration: int) -> bool:
        """True if the optimiser steps after this iteration."""
        if not self.optimizer.count_from_last_step:
            return iteration % self.at(iteration).accumulate == 0
        if iteration <= self.warmup:
            return iteration in self._warmup_steps
        last = max(self._warmup_steps, default=-1)
        return (iteration - last) % self.accumulate == 0

    @cached_property
    def _warmup_steps(self) -> frozenset[int]:
        """The iterations of the warm-up after which the optimiser steps, counting from its last step."""
        steps, last = [], -1
        for iteration in range(self.warmup + 1):
            if iteration - last >= self.at(iteration).accumulate:
                steps.append(last := iteration)
        return frozenset(steps)

    def window(self, iteration: int) -> range:
        """The iterations whose gradients a step after this one uses: all since the step before."""
        first = iteration
        while first and not self.steps_after(first - 1):
            first -= 1
        return range(first, iteration + 1)

    def at(self, iteration: int) -> StepSettings:
        """Settings at `iteration`, counted in batches from the start of the run."""
        options = self.optimizer
        rate = self.learning_rate * self.factor(iteration // self.batches_per_epoch)
        if self.warmup == 0 or iteration > self.warmup:
            return StepSettings(
                learning_rate=rate, bias_learning_rate=rate, momentum=options.momentum, accumulate=self.accumulate
            )
        share = iteration / self.warmup
        goal = options.nominal_batch / self.batch_size
        return StepSettings(
            learning_rate=share * rate,
            bias_learning_rate=_between(options.warmup_bias_learning_rate, rate, share),
            momentum=_between(options.warmup_momentum, options.momentum, share),
            accumulate=max(round(_between(1.0, goal, share)), 1),
        )


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share
