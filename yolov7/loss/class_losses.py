"""Class losses of an aligned head, by name. Element-wise on logits, with the target score of each match.

With p = sigmoid(logit), t the target score of a match (its own class), BCE(p, t) the cross-entropy:

* `bce`: BCE(p, t); as a negative BCE(p, 0).
* `varifocal`: t * BCE(p, t); as a negative 0.75 * p^2 * BCE(p, 0), whose gradient flows through p^2 too (reference
  sheet: yolov6-training, section 7.1). A match of score 0 costs nothing. The release takes logarithms of float32
  probabilities, clamped at -100: these are the same numbers where float32 resolves 1 - p.
* `quality-focal`: |t - p|^2 * BCE(p, t) (generalised focal loss paper, section 3.1).
* `focal`: alpha_t * (1 - p_t)^2 * BCE(p, t), alpha 0.25 (focal loss paper, section 3), with p_t and alpha_t between
  those of the two classes where 0 < t < 1.
* `poly`: that, plus epsilon * alpha_t * (1 - p_t)^3 (PolyLoss paper, "Poly-1"). Epsilon is tuned to the task, and what
  the YOLOv6 paper took for its table 8 is not published. Ours, -1, takes the first polynomial term away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.config import AlignedLoss
from yolov7.loss.cross_entropy import FLOOR, FOCAL_ALPHA, CrossEntropy

GAMMA = 2.0  # exponent of all papers
VARIFOCAL_NEGATIVES = 0.75
POLY_EPSILON = -1.0


class ClassLoss(Protocol):
    """Element-wise; logits, targets and losses have one shape."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses of matched classes with these target scores in [0, 1]."""
        ...

    def negative(self, logits: Tensor) -> Tensor:
        """Losses of classes that nothing matched."""
        ...

    def negative_slope(self, logits: Tensor, out: Tensor | None = None) -> Tensor:
        """The derivative of :meth:`negative`; into `out` if that is given."""
        ...


def _power(base: Tensor, gamma: float) -> Tensor:
    """base^gamma for numbers not below 0, with a finite gradient at 0."""
    return (base.clamp(min=FLOOR) if gamma < 1 else base) ** gamma


@dataclass(frozen=True)
class _Modulated:
    """Negatives weigh `weight` * p^`gamma`."""

    gamma: float = GAMMA
    weight: float = 1.0

    def negative(self, logits: Tensor) -> Tensor:
        """See :class:`ClassLoss`."""
        return self.weight * _power(torch.sigmoid(logits), self.gamma) * F.softplus(logits)

    def negative_slope(self, logits: Tensor, out: Tensor | None = None) -> Tensor:
        """See :class:`ClassLoss`."""
        # With p = sigmoid: softplus' = p, (p^gamma)' = gamma * p^gamma * (1 - p).
        p = torch.sigmoid(logits, out=out)
        inner = F.softplus(logits).mul_(1 - p).mul_(self.gamma).add_(p)
        return p.pow_(self.gamma).mul_(inner).mul_(self.weight)


@dataclass(frozen=True)
class Varifocal(_Modulated):
    """See the module."""

    weight: float = VARIFOCAL_NEGATIVES

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See :class:`ClassLoss`."""
        return targets * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@dataclass(frozen=True)
class QualityFocal(_Modulated):
    """See the module."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See :class:`ClassLoss`."""
        missing = (targets - torch.sigmoid(logits)).abs()
        return _power(missing, self.gamma) * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@dataclass(frozen=True)
class PolyFocal:
    """See the module."""

    gamma: float = GAMMA
    epsilon: float = POLY_EPSILON

    @property
    def focal(self) -> CrossEntropy:
        """The focal loss that it changes."""
        return CrossEntropy(focal_gamma=self.gamma)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See :class:`ClassLoss`."""
        missing = targets * torch.sigmoid(-logits) + (1 - targets) * torch.sigmoid(logits)
        alpha = targets * FOCAL_ALPHA + (1 - targets) * (1 - FOCAL_ALPHA)
        return self.focal(logits, targets) + self.epsilon * alpha * missing ** (self.gamma + 1)

    def negative(self, logits: Tensor) -> Tensor:
        """See :class:`ClassLoss`."""
        moved = self.epsilon * (1 - FOCAL_ALPHA) * torch.sigmoid(logits) ** (self.gamma + 1)
        return self.focal.negative(logits) + moved

    def negative_slope(self, logits: Tensor, out: Tensor | None = None) -> Tensor:
        """See :class:`ClassLoss`."""
        p = torch.sigmoid(logits)
        power = self.gamma + 1
        moved = self.epsilon * (1 - FOCAL_ALPHA) * power * p**power * (1 - p)
        return self.focal.negative_slope(logits, out=out).add_(moved)


CLASS_LOSSES: Mapping[str, Callable[[AlignedLoss], ClassLoss]] = {
    "bce": lambda options: CrossEntropy(options.classification_positive_weight, options.focal_gamma),
    "varifocal": lambda options: Varifocal(options.focal_gamma or GAMMA),
    "quality-focal": lambda options: QualityFocal(options.focal_gamma or GAMMA),
    "focal": lambda options: CrossEntropy(options.classification_positive_weight, options.focal_gamma or GAMMA),
    "poly": lambda options: PolyFocal(options.focal_gamma or GAMMA),
}
"""Builders by `classification_loss`."""
