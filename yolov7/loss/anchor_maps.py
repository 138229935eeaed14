"""The parts of the raw maps that the anchor loss reads: the rows of the matches, and every objectness.

The maps are read through one differentiable operation, so that each gradient is built once and in the memory layout of
its map, instead of once for each slice and then added up: at 640 px it has over two million numbers an image.

Legend: B images, A anchors, h w cells, C classes, K maps, P matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolov7.assign import Matches
from yolov7.device import constant


def read_predictions(raw: Sequence[Tensor], matches: Matches) -> tuple[Tensor, Tensor]:
    """From K maps (B, A, h, w, 5 + C) the raw rows (P, 5 + C) of the matches and every raw objectness, differentiable.

    The objectness is (B, A, sum of h*w), map after map. Both are float32, float64 where the maps are.
    """
    rows, objectness = _Read.apply(matches, *raw)
    return rows, objectness


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matches: Matches, *raw: Tensor) -> tuple[Tensor, Tensor]:
        ctx.matches = matches
        ctx.save_for_backward(*raw)
        rows = torch.cat([maps[at] for maps, at in zip(raw, matches.places(), strict=True)])
        objectness = torch.cat([maps[..., 4].flatten(2) for maps in raw], 2)
        dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
        return rows.to(dtype), objectness.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows: Tensor, objectness: Tensor) -> tuple[Tensor | None, ...]:
        raw, matches = ctx.saved_tensors, ctx.matches
        parts = objectness.split([maps.shape[2] * maps.shape[3] for maps in raw], dim=2)
        gradients = []
        for maps, part, row, at in zip(raw, parts, rows.split(matches.counts), matches.places(), strict=True):
            gradient = torch.zeros_like(maps)  # keeps the strides of the map, so nothing is copied upstream
            gradient[..., 4] = part.unflatten(2, maps.shape[2:4])
            gradient.index_put_(at, row.to(maps.dtype), accumulate=True)
            gradients.append(gradient)
        return None, *gradients


# The same few sizes come in every step: rebuilding these would cost a copy to the device for each.
@lru_cache(maxsize=64)
def objectness_layout(
    device: torch.device, images: float, anchors: int, sizes: tuple[tuple[int, int], ...], weights: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Layout of objectness (B, A, sum of h*w).

    Steps (5, K) int64: position of a map's first cell, then the offsets to the next image, anchor, row and column.
    Weights (sum of h*w,) that turn one sum into the weighted sum of the maps' means.
    """
    lengths = [height * width for height, width in sizes]
    total = sum(lengths)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    steps = [(start, anchors * total, total, width, 1) for start, (_, width) in zip(starts, sizes, strict=True)]
    shares = [weight / (images * anchors * length) for weight, length in zip(weights, lengths, strict=True)]
    with torch.inference_mode(False):  # training may use tensors that validation built
        lines = list(zip(*steps, strict=True))
        weight = [share for n, share in zip(lengths, shares, strict=True) for _ in range(n)]
        return constant(lines, np.int64, device), constant(weight, np.float32, device)


@torch.no_grad()
def objectness_targets(matches: Matches, steps: Tensor, agreement: Tensor, like: Tensor) -> Tensor:
    """Objectness to learn, in the shape of `like`: the CIoU `agreement` (P,) at the matches, 0 elsewhere.

    Where several targets share a prediction the last match wins, as in the published losses. All of them write the
    winner's value, so the outcome does not depend on the order in which a device writes.
    """
    step = steps[:, matches.lines[0]]  # (5, P)
    place = step[0] + (step[1:] * matches.cells[1:5]).sum(0)  # (P,)
    ranked, order = torch.sort(place, stable=True)
    last = torch.searchsorted(ranked, ranked, right=True) - 1
    return torch.zeros_like(like).put_(ranked, agreement.clamp(min=0)[order[last]])
