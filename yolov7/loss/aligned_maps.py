"""The parts of the raw maps that the aligned loss reads: the rows of the matches, and all classes as negatives.

The maps are read through one differentiable operation: each gradient is built once, in the memory layout of its map.
The gradients of slices, one for each that is read, would be as large as the maps, and be added up.

Legend: B images, h w cells, C classes, K maps, P matches, R box channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolov7.assign import Matches
from yolov7.loss.class_losses import ClassLoss


def read_maps(raw: Sequence[Tensor], matches: Matches, channels: int, loss: ClassLoss) -> tuple[Tensor, Tensor]:
    """From K maps (B, R + C, h, w) the rows (P, R + C) of the matches and, for each map, the loss of all its
    classes as negatives, summed: (K,). Differentiable, and float32, float64 where the maps are.

    `channels`: R.
    """
    rows, negatives = _Read.apply(matches, channels, loss, *raw)
    return rows, negatives


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matches: Matches, channels: int, loss: ClassLoss, *raw: Tensor) -> tuple[Tensor, Tensor]:
        places = [(image, row, column) for image, _, row, column in matches.places()]
        ctx.places, ctx.counts, ctx.channels, ctx.loss = places, matches.counts, channels, loss
        ctx.save_for_backward(*raw)
        rows = torch.cat([maps.movedim(1, 3)[at] for maps, at in zip(raw, places, strict=True)])
        sums = [loss.negative(_full(maps[:, channels:])).sum() for maps in raw]
        return _full(rows), torch.stack(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows: Tensor, negatives: Tensor) -> tuple[Tensor | None, ...]:
        gradients = []
        parts = rows.split(ctx.counts)
        for maps, at, row, share in zip(ctx.saved_tensors, ctx.places, parts, negatives, strict=True):
            gradient = torch.empty_like(maps)  # keeps the strides of the map, so nothing is copied upstream
            gradient[:, : ctx.channels].zero_()
            logits = maps[:, ctx.channels :]
            if maps.dtype == share.dtype:
                ctx.loss.negative_slope(logits, out=gradient[:, ctx.channels :]).mul_(share)
            else:
                gradient[:, ctx.channels :] = ctx.loss.negative_slope(_full(logits)).mul_(share)
            gradient.movedim(1, 3).index_put_(at, row.to(maps.dtype), accumulate=True)
            gradients.append(gradient)
        return None, None, None, *gradients


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
