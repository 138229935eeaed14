"""Masks on the gradients of single parameters, applied between the backward pass and the step (RepOptimizer).

The weight decay is the optimiser's own and not masked; momentum is that of masked gradients (reference sheet:
yolov6-training, section 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from yolov7.config import Train
from yolov7.model import Detector
from yolov7.model.rep_optimizer import Scales, kernels_of, read_scales


class GradientMasks:
    """Pairs of a parameter and the factors of its gradient."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]] = ()):
        # In the memory order of the parameters, as the gradients are.
        self._pairs = [(parameter, torch.empty_like(parameter).copy_(mask)) for parameter, mask in pairs]

    @torch.no_grad()
    def apply(self) -> None:
        """Multiply the gradients that are there."""
        present = [(parameter.grad, mask) for parameter, mask in self._pairs if parameter.grad is not None]
        if present:
            torch._foreach_mul_([gradient for gradient, _ in present], [mask for _, mask in present])


def gradient_masks(model: Detector, params: Train) -> GradientMasks:
    """The masks of a target training of RepOptimizer, from the scales it names; none for any other training.

    Raises :class:`ModelError` for scales of another network, or a file that is not the one `scales_sha256` names.
    """
    if params.rep_optimizer != "target":
        return GradientMasks()
    scales = read_scales(params.scales, sha256=params.scales_sha256, network=params.network)
    return masks_of(kernels_of(model, scales), scales)


def masks_of(kernels: Mapping[str, Tensor], scales: Scales) -> GradientMasks:
    """The masks of these kernels, both by the name of the block."""
    return GradientMasks([(kernel, scales[name].mask(kernel.detach())) for name, kernel in kernels.items()])
