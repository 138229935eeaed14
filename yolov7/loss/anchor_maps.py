"""The parts of the raw maps that a loss reads: the rows of the matches, and every objectness.

The maps are read through one differentiable operation, so that each gradient is built once and in the memory layout of
its map, instead of once for each slice and then added up: at 640 px it has over two million numbers an image.

Legend: B images, A anchors, h w cells, C classes, K maps, P matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolov7.assign import Matches


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
