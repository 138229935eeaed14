"""Binary cross-entropy on logits, with a weight of positives and the focal option.

Source: reference sheet: training, section 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_ALPHA = 0.25  # share of the positives; the negatives get the rest
FLOOR = 1e-12  # keeps the gradient of a fractional power finite


@dataclass(frozen=True)
class CrossEntropy:
    """Element-wise: logits and targets in [0, 1] of one shape -> losses of that shape, times `weight` if given."""

    positive_weight: float = 1.0
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
        """See the class."""
        positive = None if self.positive_weight == 1 else logits.new_tensor(self.positive_weight)
        loss = F.binary_cross_entropy_with_logits(logits, targets, weight, pos_weight=positive, reduction="none")
        if not self.focal_gamma:
            return loss
        # 1 - p_t, computed as such: no digits are lost where p_t is near 1.
        missing = targets * torch.sigmoid(-logits) + (1 - targets) * torch.sigmoid(logits)
        alpha = targets * FOCAL_ALPHA + (1 - targets) * (1 - FOCAL_ALPHA)
        return loss * alpha * missing.clamp(min=FLOOR) ** self.focal_gamma

    def negative(self, logits: Tensor) -> Tensor:
        """The same with the target 0 everywhere."""
        loss = F.softplus(logits)
        if not self.focal_gamma:
            return loss
        return loss * (1 - FOCAL_ALPHA) * torch.sigmoid(logits).clamp(min=FLOOR) ** self.focal_gamma

    def negative_slope(self, logits: Tensor, out: Tensor | None = None) -> Tensor:
        """The derivative of :meth:`negative`; into `out` if that is given."""
        p = torch.sigmoid(logits, out=out)
        if not self.focal_gamma:
            return p
        # With p = sigmoid: softplus' = p, (p^gamma)' = gamma * p^gamma * (1 - p), 0 below the floor.
        moved = self.focal_gamma * F.softplus(logits) * (1 - p) * (p > FLOOR)
        return p.copy_((1 - FOCAL_ALPHA) * p.clamp(min=FLOOR) ** self.focal_gamma * (p + moved))
