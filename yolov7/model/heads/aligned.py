"""Anchor-free head with task-aligned training: the part that YOLOv9 and YOLOv6 share, and the decoding of its maps.

A cell predicts the distances from its centre to the four sides of a box, in strides, and a logit per class. A distance
is one number, or the expectation of a distribution over whole numbers (generalised focal loss paper, section 3.2).
Source: reference sheets: yolov9, section 1, and yolov9-training, section 5.

Dimension letters: B batch, h w cells of a level, N = sum of h*w, C classes, K bins of a distance (0: the number
itself), R = 4 * max(K, 1) box channels, F = 4 + C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from yolov7.config import AlignedLoss, LossParameters
from yolov7.errors import ModelError
from yolov7.model.spec import Form, Head, Map
from yolov7.predictions import Scoring

DECODING = "sides = centre -/+ distance x stride, pixels; distance = sum of k x softmax over the K bins"
"""Formula of :func:`decode` in the contract of files with raw maps; runtimes recognise such a file by it."""


class Branch(Protocol):
    """Module of one level: (B, channels, h, w) -> raw map (B, R + C, h, w)."""

    reads: str
    """Name of the map it takes."""

    def __call__(self, x: Tensor) -> Tensor:
        """See the class."""
        ...

    def set_prior(self, stride: int) -> None:
        """Set the biases of a fresh network."""
        ...

    def outputs(self) -> list[nn.Module]:
        """The modules whose convolutions are the last of their path."""
        ...


@dataclass(frozen=True, kw_only=True)
class AlignedHead(Head):
    """Base of the anchor-free heads: a level of predictions per map. A subclass builds the branches."""

    parameters: ClassVar[type[LossParameters]] = AlignedLoss

    lead: tuple[str, ...]
    """Maps of the levels, small stride to large."""
    auxiliary: tuple[str, ...] = ()
    """Maps of the levels that only training has, of the same strides."""
    bins: int = 16
    """K: a distance is a distribution over 0 to K - 1 strides; 0: one number."""

    def deployed(self) -> AlignedHead:
        """The head with its lead levels alone."""
        return replace(self, auxiliary=())

    def reads(self, form: Form) -> tuple[str, ...]:
        """Names of the maps it takes: in deploy form those of the lead levels."""
        return tuple(dict.fromkeys((*self.lead, *self.auxiliary) if form == "training" else self.lead))

    def build(self, maps: Mapping[str, Map], act: str, num_classes: int) -> AlignedHeadModule:
        """The training form. Raises :class:`ModelError` for auxiliary levels whose grids differ from the lead ones."""
        strides = tuple(maps[name].stride for name in self.lead)
        others = tuple(maps[name].stride for name in self.auxiliary)
        if others and others != strides:
            raise ModelError(
                f"the auxiliary levels have strides {others}, the lead levels {strides}: each auxiliary level needs "
                "the grid of its lead level"
            )
        if list(strides) != sorted(set(strides)):
            raise ModelError(f"the levels have strides {strides}; small to large is expected")
        if self.bins < 0 or self.bins == 1:
            raise ModelError(f"bins: 0, or at least 2, got {self.bins}")
        lead = self.branches(self.lead, maps, act, num_classes)
        auxiliary = self.branches(self.auxiliary, maps, act, num_classes) if self.auxiliary else []
        return self.assembled(lead, auxiliary, strides, num_classes)

    def assembled(
        self, lead: list[nn.Module], auxiliary: list[nn.Module], strides: tuple[int, ...], num_classes: int
    ) -> AlignedHeadModule:
        """The head's module, of these branches."""
        return AlignedHeadModule(lead, auxiliary, self.bins, strides, num_classes)

    def branches(self, names: Sequence[str], maps: Mapping[str, Map], act: str, num_classes: int) -> list[nn.Module]:
        """A :class:`Branch` for each of the maps."""
        raise ModelError(f"{type(self).__name__} does not define `branches`")

    @property
    def box_channels(self) -> int:
        """R, channels before the class logits."""
        return 4 * max(self.bins, 1)

    @property
    def distribution_maps(self) -> tuple[int, int]:
        """The raw maps that begin with distributions, by how many groups of a map for each level come before them, and
        K; (0, 0) without any.
        """
        return 0, self.bins


class AlignedHeadModule(nn.Module):
    """The branches of all levels, and the numbers that the bins stand for."""

    def __init__(
        self,
        lead: Sequence[nn.Module],
        auxiliary: Sequence[nn.Module],
        bins: int,
        strides: tuple[int, ...],
        num_classes: int,
    ):
        super().__init__()
        self.strides = strides
        self.num_classes = num_classes
        self.bins = bins
        self.lead = nn.ModuleList(lead)
        self.auxiliary = nn.ModuleList(auxiliary)
        self.lead_bins = Bins(bins) if bins else None
        self.auxiliary_bins = Bins(bins) if bins and auxiliary else None
        for branches in (self.lead, self.auxiliary):
            for branch, stride in zip(branches, strides, strict=False):
                branch.set_prior(stride)  # type: ignore[operator]

    @property
    def auxiliary_levels(self) -> int:
        """Number of auxiliary levels; 0 in deploy form."""
        return len(self.auxiliary)

    def leads(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps (B, R + C, h, w) of the lead levels, small stride to large."""
        return [branch(maps[branch.reads]) for branch in self.lead]  # type: ignore[index]

    def outputs(self) -> list[nn.Module]:
        """See :class:`yolov7.model.spec.HeadModule`."""
        return [module for branch in self.lead for module in branch.outputs()]  # type: ignore[operator]

    def raw(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps of the lead levels, then of the auxiliary levels if there are any."""
        return self.leads(maps) + [branch(maps[branch.reads]) for branch in self.auxiliary]  # type: ignore[index]

    def decode(self, raw: Sequence[Tensor]) -> Tensor:
        """See :func:`decode`."""
        return decode(raw, self.strides, None if self.lead_bins is None else self.lead_bins.values)

    @property
    def order(self) -> str:
        """Order of the decoded predictions, for contracts."""
        return "level (small stride first), row, column"

    def scoring(self) -> Scoring:
        """The class probability."""
        return "class probability"

    def predictions(self, height: int, width: int) -> int:
        """Number of predictions for an image of this size in pixels: one per cell of each level."""
        return sum((height // stride) * (width // stride) for stride in self.strides)

    def decoding_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the expectations, which the published networks compute as convolutions."""
        heads = 1 if self.auxiliary_bins is None else 2
        return 4 * self.bins * self.predictions(height, width) * heads

    def raw_contract(self) -> dict[str, Any]:
        """Description of the maps of `leads`, for a file that puts them out before softmax and sigmoid."""
        return {
            "shape": ["batch", 4 * max(self.bins, 1) + self.num_classes, "rows", "columns"],
            "order": "level (small stride first)",
            "values": "box channels (left, top, right, bottom; the bins of each), then class logits",
            "strides": list(self.strides),
            "bins": self.bins,
            "decoding": DECODING,
        }

    def reparameterize(self) -> AlignedHeadModule:
        """Drop the auxiliary levels; the branches that stay convert themselves."""
        self.auxiliary = nn.ModuleList()
        self.auxiliary_bins = None
        return self


class Bins(nn.Module):
    """The numbers 0, 1, ..., K - 1 that the bins stand for.

    They never change, but are parameters of the published networks, whose counts include them: (1, K, 1, 1).
    """

    def __init__(self, bins: int):
        super().__init__()
        self.values = nn.Parameter(torch.arange(float(bins)).reshape(1, bins, 1, 1), requires_grad=False)


def decode(raw: Sequence[Tensor], strides: Sequence[int], bins: Tensor | None) -> Tensor:
    """Predictions (B, N, F) from the raw maps (B, R + C, h, w) of the lead levels; order level, row, column.

    F is x1, y1, x2, y2 in input pixels, then class probabilities. `bins` are the numbers that the bins stand for
    (K values); None: the box channels are distances. Half precision is decoded in float32.
    """
    levels = []
    for maps, stride in zip(raw, strides, strict=True):
        h, w = maps.shape[2:4]
        values = maps.to(maps.dtype if maps.dtype == torch.float64 else torch.float32).flatten(2)  # (B, R + C, h*w)
        box_channels = 4 if bins is None else 4 * bins.numel()
        sides = distances(values[:, :box_channels], bins) * stride  # (B, 4, h*w)
        centres = cell_centres(h, w, stride, like=values).T  # (2, h*w)
        scores = values[:, box_channels:].sigmoid()
        level = torch.cat((centres - sides[:, :2], centres + sides[:, 2:], scores), 1)  # (B, F, h*w)
        levels.append(level)
    return torch.cat(levels, 2).transpose(1, 2)  # (B, N, F)


def distances(box: Tensor, bins: Tensor | None) -> Tensor:
    """Distances (B, 4, N) to left, top, right and bottom side in strides, from box channels (B, R, N).

    With bins it is the expectation of the softmax over the bins of a side.
    """
    if bins is None:
        return box
    probabilities = box.unflatten(1, (4, bins.numel())).softmax(2)  # (B, 4, K, N)
    return (probabilities * bins.to(box.dtype).reshape(1, 1, -1, 1)).sum(2)


def cell_centres(h: int, w: int, stride: float, *, like: Tensor) -> Tensor:
    """Centres x, y of the cells of a level, (h*w, 2) in the unit of `stride`, row by row."""
    x = (torch.arange(w, device=like.device, dtype=like.dtype) + 0.5) * stride
    y = (torch.arange(h, device=like.device, dtype=like.dtype) + 0.5) * stride
    return torch.stack((x.expand(h, w), y.unsqueeze(1).expand(h, w)), -1).flatten(0, 1)
