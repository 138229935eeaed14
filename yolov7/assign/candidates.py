"""Candidate cells of the targets: anchors of a fitting shape, in the centre's cell and its nearest neighbours.

Source: reference sheet: training, section 6. All levels, anchors and regions in one pass, on the device of the maps.

Legend: S regions, L levels, K = S * L maps, O = 5 places (own cell, left, up, right, down), A anchors per level,
T targets, B images, N candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.assign.geometry import Geometry, Grid
from yolov7.assign.matches import Matches, Targets
from yolov7.errors import DataError

FINE = 0.5  # a neighbour takes part if the centre lies in the half of the cell next to it: up to 3 cells
COARSE = 1.0  # every neighbour inside the grid takes part: up to 5 cells
PLACES = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))  # subtracted from the centre, in units of g


@dataclass(frozen=True)
class Candidates(Matches):
    """Candidates of every region, as matches of the target that made them.

    In each map the own cells of the centres come first, then left, upper, right and lower neighbours; inside these the
    order is by anchor, then by target.
    """

    per_image: Tensor
    """(S, B) int64 number of candidates."""
    most: int
    """Largest entry of `per_image`."""


@torch.no_grad()
def find_candidates(
    raw: Sequence[Tensor], targets: Targets, geometry: Geometry, *, threshold: float, regions: tuple[float, ...]
) -> Candidates:
    """Candidates on maps `raw` (B, A, h, w, 5 + C). Two synchronisations, whatever the batch.

    `threshold`: an anchor takes part for a target if no side is longer or shorter by this factor. `regions`: the bias g
    of each region asked for. Raises :class:`DataError` for a target whose image or class does not exist.
    """
    grid = geometry.grid(raw)
    biases, shifts = _biases(grid.last.device, regions, len(raw))
    centres = targets.centre / grid.strides  # (L, T, 2) in cells
    fits = _fitting(targets, geometry.anchors.to(centres.device))  # (L, 1, A, T)
    open_places = _open_places(centres, grid.sizes, biases)  # (S, L, O, 1, T)
    taken = ((fits < threshold) & open_places).flatten(0, 1)  # (K, O, A, T)

    known = (targets.index >= 0) & (targets.index < grid.limits)  # (T, 2)
    home = targets.index.clamp(min=0).minimum(grid.limits - 1).select(1, 0)  # (T,)
    found = taken.sum((1, 2))  # (K, T)
    per_image = found.new_zeros(len(regions), grid.images)  # (S, B)
    per_image.index_add_(1, home, found.view(len(regions), -1, len(targets)).sum(1))
    facts = torch.cat((found.sum(1), per_image.max().view(1), known.all().view(1)))
    *counts, most, all_known = facts.tolist()
    if not all_known:
        raise DataError(_complaint(targets, known, grid))

    maps, place, anchor, target = taken.nonzero().unbind(1)
    level = maps % len(raw) if len(regions) > 1 else maps
    corner = centres[level, target] - shifts[maps, place]  # (N, 2) x, y
    corner = corner.long().clamp_(min=0).minimum(grid.last[level])
    column, row = corner.unbind(1)
    cells = torch.stack((maps, home[target], anchor, row, column, target))
    return Candidates(cells, tuple(counts), per_image, most)


def _fitting(targets: Targets, anchors: Tensor) -> Tensor:
    """(L, 1, A, T): by which factor the worse side of a target differs from the anchor (L, A, 2).

    NaN, which is below no threshold, for targets that take no part.
    """
    size = targets.size.where(targets.usable[:, None], torch.nan)
    ratio = size / anchors[:, None, :, None]  # (L, 1, A, T, 2)
    return torch.maximum(ratio, 1 / ratio).amax(-1)


def _open_places(centres: Tensor, sizes: Tensor, biases: Tensor) -> Tensor:
    """(S, L, O, 1, T) bool: places that take part for centres (L, T, 2) in grids of sizes (L, 1, 2)."""
    ends = torch.cat((centres, sizes - centres), -1)  # (L, T, 4): distance from the low ends and from the high ends
    beside = (ends % 1 < biases) & (ends > 1)  # (S, L, T, 4): left, up, right, down
    return F.pad(beside, (1, 0), value=True)[..., None].permute(0, 1, 3, 4, 2)


# Built once: a new tensor in every step would cost a copy to the device.
@lru_cache(maxsize=64)
def _biases(device: torch.device, regions: tuple[float, ...], levels: int) -> tuple[Tensor, Tensor]:
    """The bias g of each region (S, 1, 1, 1), and what each place subtracts from the centre in each map (K, O, 2)."""
    with torch.inference_mode(False):  # so that training may use what validation built
        biases = torch.tensor(regions, device=device)[:, None, None, None]
        shifts = torch.tensor(PLACES, device=device) * biases[:, 0]  # (S, O, 2)
        return biases, shifts.repeat_interleave(levels, 0)


def _complaint(targets: Targets, known: Tensor, grid: Grid) -> str:
    row = int((~known.all(1)).nonzero()[0, 0])
    (image, label), (images, classes) = targets.index[row].tolist(), grid.limits.tolist()
    if not 0 <= image < images:
        return f"target {row} names image {image} of a batch of {images}"
    return f"target {row} has class {label}, the network knows 0 to {classes - 1}"
