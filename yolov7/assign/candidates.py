"""Candidate cells of the targets: anchors of a fitting shape, in the centre's cell and its nearest neighbours.

Source: reference sheet: training, section 6. All levels, anchors and regions in one pass, on the device of the maps.

Legend: S regions, L levels, K = S * L maps, O = 5 places (own cell, left, up, right, down), A anchors per level,
T targets, B images, N candidates. Names end in the shape of their tensor: `found_KT` is (K, T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.assign.geometry import Geometry, Grid
from yolov7.assign.matches import Matches, Targets
from yolov7.device import constant
from yolov7.errors import DataError

FINE = 0.5  # a neighbour is a candidate if the centre lies in the half of the cell next to it: up to 3 cells
COARSE = 1.0  # every neighbour inside the grid is a candidate: up to 5 cells
PLACES = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))  # subtracted from the centre, in units of g


@dataclass(frozen=True)
class Candidates(Matches):
    """Candidates of every region, as matches of the target that made them.

    In each map the own cells of the centres come first, then left, upper, right and lower neighbours; inside these the
    order is by anchor, then by target.
    """

    group: Tensor
    """(S * T,) int64: number of the region times (B + 1) plus image of the target; image B if it is ignored."""
    per_group: Tensor
    """(S * (B + 1),) int64 number of candidates; none in the last group of each region."""
    most: int
    """Largest entry of `per_group`."""


@torch.no_grad()
def find_candidates(
    raw: Sequence[Tensor], targets: Targets, geometry: Geometry, *, threshold: float, regions: tuple[float, ...]
) -> Candidates:
    """Candidates on maps `raw` (B, A, h, w, 5 + C). Two synchronisations, whatever the batch.

    `threshold`: an anchor fits a target if no side is longer or shorter by this factor. `regions`: the bias g
    of each region asked for. Raises :class:`DataError` for a target whose image or class does not exist.
    """
    grid = geometry.grid(raw)
    L, S = len(raw), len(regions)
    shifts_KO2 = _shifts(grid.last.device, regions, L)
    centres_L2T = targets.twice_centre / grid.twice_strides  # in cells
    fits_L1AT = _misfit(targets, geometry.anchors.to(centres_L2T.device)) < threshold
    open_KOAT = [_open_places(centres_L2T, grid.sizes, bias) & fits_L1AT for bias in regions]
    taken_KOAT = open_KOAT[0] if S == 1 else torch.cat(open_KOAT)

    inside_T2 = targets.index.clamp(grid.zero, grid.limits)
    known_T2 = inside_T2 == targets.index
    home_T = inside_T2[:, 0].masked_fill(targets.unusable, grid.images)
    group = home_T
    found_KT = taken_KOAT.sum((1, 2))
    if S == 1:
        per_target = found_KT.sum(0)
    else:
        group = torch.cat([home_T + region * (grid.images + 1) for region in range(S)])
        per_target = found_KT.view(S, L, len(targets)).sum(1).view(-1)  # (S * T,)
    per_group = torch.zeros(S * (grid.images + 1), dtype=torch.int64, device=home_T.device)
    per_group.index_add_(0, group, per_target)
    *counts, most, images_known, labels_known = torch.cat(
        (found_KT.sum(1), per_group.amax(0, keepdim=True), known_T2.all(0))
    ).tolist()
    if not (images_known and labels_known):
        raise DataError(_complaint(targets, known_T2, grid))

    maps, place, anchor, target = taken_KOAT.nonzero().unbind(1)  # (N,) each
    level = maps % L if S > 1 else maps
    corner_N2 = centres_L2T[level, :, target] - shifts_KO2[maps, place]  # x, y
    corner_N2 = corner_N2.long().clamp_(grid.zero, grid.last[level])
    column, row = corner_N2.unbind(1)
    cells = torch.stack((maps, home_T[target], anchor, row, column, target))
    return Candidates(cells, tuple(counts), group, per_group, most)


def _misfit(targets: Targets, anchors: Tensor) -> Tensor:
    """(L, 1, A, T): factor by which the worse side of a target differs from the anchor (L, A, 2).

    NaN or infinite, which is below no threshold, for targets that are ignored.
    """
    ratio = targets.size / anchors.reshape(*anchors.shape[:1], 1, -1, 2, 1)
    return torch.maximum(ratio, ratio.reciprocal()).amax(3)


def _open_places(centres: Tensor, sizes: Tensor, bias: float) -> Tensor:
    """(L, O, 1, T) bool: places that are candidates for centres (L, 2, T) in grids of sizes (L, 2, 1)."""
    ends = torch.cat((centres, sizes - centres), 1)  # (L, 4, T): distance from the low ends and from the high ends
    beside = (ends % 1 < bias) & (ends > 1)  # left, up, right, down
    return F.pad(beside, (0, 0, 1, 0), value=True)[:, :, None]


# Built once: a new tensor in every step would cost a copy to the device.
@lru_cache(maxsize=64)
def _shifts(device: torch.device, regions: tuple[float, ...], levels: int) -> Tensor:
    """Offsets (K, O, 2) that the places subtract from a centre."""
    with torch.inference_mode(False):  # training may use tensors that validation built
        shifts = [[(bias * x, bias * y) for x, y in PLACES] for bias in regions for _ in range(levels)]
        return constant(shifts, np.float32, device)


def _complaint(targets: Targets, known: Tensor, grid: Grid) -> str:
    row = int((~known).nonzero()[0, 0])
    image, label = targets.index[row].tolist()
    if not 0 <= image < grid.images:
        return f"target {row} names image {image} of a batch of {grid.images}"
    return f"target {row} has class {label}, the network knows 0 to {grid.classes - 1}"
