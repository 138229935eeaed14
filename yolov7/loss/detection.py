"""The loss of an anchor-based detector, with or without an auxiliary head.

Source: reference sheet: training, sections 3 (gains), 7 (lead-guided assignment) and 8 (loss).

Legend: B images, L levels, K maps (L of the lead head, then L of the auxiliary head if it takes part), A anchors per
level, h w cells, C classes, T targets, P matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yolov7.assign import Assigner, Geometry, Matches, Targets
from yolov7.errors import ModelError
from yolov7.loss.box import matched_ciou
from yolov7.loss.cross_entropy import CrossEntropy
from yolov7.loss.predictions import read_predictions


@dataclass(frozen=True)
class LossResult:
    """Loss of a batch."""

    total: Tensor
    """Scalar to back-propagate: batch size times the sum of the three parts."""
    box: Tensor
    """Gain times box loss, detached."""
    objectness: Tensor
    """Gain times objectness loss, detached."""
    classification: Tensor
    """Gain times class loss, detached."""


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Weights of the three parts."""

    box: float
    objectness: float
    classification: float

    def scaled(self, *, levels: int, classes: int, image_size: int) -> Gains:
        """With levels, class count and image size, as published (reference sheet: training, section 3)."""
        return Gains(
            box=self.box * 3 / levels,
            objectness=self.objectness * (image_size / 640) ** 2 * 3 / levels,
            classification=self.classification * classes / 80 * 3 / levels,
        )


@dataclass(frozen=True, kw_only=True)
class MapLoss:
    """How the predictions of one map are weighed and decoded."""

    weight: float
    """1 for the lead head, less for the auxiliary one."""
    balance: float
    """Weight of the level's objectness."""
    spread: float
    """Reach of the box decoder, see :mod:`yolov7.assign.decoding`."""


class Criterion:
    """Assignment and loss of a detector.

    `maps` describes the K maps of training, lead levels first. The assigner answers for all of them, or for the lead
    head alone; the auxiliary head then gets the same matches, or its own if there is an `auxiliary_assigner`.
    """

    def __init__(
        self,
        *,
        geometry: Geometry,
        maps: Sequence[MapLoss],
        assigner: Assigner,
        gains: Gains,
        objectness: CrossEntropy,
        classification: CrossEntropy,
        label_smoothing: float = 0.0,
        auxiliary_assigner: Assigner | None = None,
    ):
        self.geometry = geometry
        self.maps = tuple(maps)
        self.assigner = assigner
        self.auxiliary_assigner = auxiliary_assigner
        self.gains = gains
        self.objectness = objectness
        self.classification = classification
        self.label_smoothing = label_smoothing

    def __call__(self, raw: Sequence[Tensor], targets: Tensor) -> LossResult:
        """Loss of a batch.

        `raw`: maps (B, A, h, w, 5 + C) of the lead levels, then of the auxiliary levels, which may be left out (as in
        validation). `targets` (T, 6): image index, class, x1, y1, x2, y2 in pixels of the batch, in any order.

        Maps of half precision are read in float32. A target without finite, positive sides takes no part. Raises
        :class:`ModelError` if the maps are not those of the network, DataError for an unknown image or class.
        """
        self._check(raw)
        known = Targets.of(targets, raw[0].device)
        matches = self._matches(raw, known)
        rows, objectness = read_predictions(raw, matches)
        spread = tuple(item.spread for item in self.maps[: len(raw)])
        boxes, _, classes = rows.split((4, 1, rows.shape[1] - 5), dim=1)
        agreement = matched_ciou(boxes, matches, known.boxes, self.geometry, spread)  # (P,)
        share = self._share(matches, agreement)
        parts = torch.stack(
            (
                ((1 - agreement) * share).sum() * self.gains.box,
                self._objectness(objectness, raw, matches, agreement) * self.gains.objectness,
                self._classification(classes, known, matches, share) * self.gains.classification,
            )
        )
        return LossResult(parts.sum() * raw[0].shape[0], *parts.detach().unbind())

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """The positives of the lead head, for looking at them.

        For each level (6, n) int64: level, image, anchor, row, column, row of `targets`.
        """
        self._check(raw)
        levels = len(self.geometry.strides)
        matches = self.assigner(raw[:levels], Targets.of(targets, raw[0].device))
        return list(matches.first(levels).by_map())

    def _check(self, raw: Sequence[Tensor]) -> None:
        levels, anchors = self.geometry.anchors.shape[:2]
        if len(raw) not in (levels, len(self.maps)):
            wanted = " or ".join(map(str, dict.fromkeys((levels, len(self.maps)))))
            head = "with" if len(self.maps) > levels else "without"
            raise ModelError(f"{len(raw)} raw maps given; {levels} levels {head} an auxiliary head make {wanted}")
        for maps in raw:
            if maps.ndim != 5 or maps.shape[1] != anchors or maps.shape[4] < 6:
                raise ModelError(f"a raw map (B, {anchors}, h, w, 5 + C) is expected, got {tuple(maps.shape)}")

    def _matches(self, raw: Sequence[Tensor], targets: Targets) -> Matches:
        levels = len(self.geometry.strides)
        matches = self.assigner(raw[:levels], targets)
        if len(raw) > levels and self.auxiliary_assigner is not None:
            return matches.then(self.auxiliary_assigner(raw[levels:], targets))
        return matches.then(matches) if len(raw) > len(matches.counts) else matches.first(len(raw))

    def _share(self, matches: Matches, like: Tensor) -> Tensor:
        """(P,) weights that turn one sum over the matches into the weighted sum of the maps' means."""
        shares = [item.weight / max(n, 1) for item, n in zip(self.maps, matches.counts, strict=False)]
        return like.new_tensor(shares)[matches.cells[0]]

    def _objectness(self, logits: Tensor, raw: Sequence[Tensor], matches: Matches, agreement: Tensor) -> Tensor:
        """Means over all predictions of each map, weighted by the balance; the soft target is the CIoU."""
        wanted = _objectness_targets(raw, matches, agreement.detach().clamp(min=0), logits)
        sizes = [_predictions(maps) for maps in raw]
        weights = [item.weight * item.balance / size for item, size in zip(self.maps, sizes, strict=False)]
        means = torch.stack([part.sum() for part in self.objectness(logits, wanted).split(sizes)])
        return (means * means.new_tensor(weights)).sum()

    def _classification(self, logits: Tensor, targets: Targets, matches: Matches, share: Tensor) -> Tensor:
        """Mean over matches and classes of each map; with one class there is nothing to tell apart."""
        if logits.shape[1] == 1:
            return share.new_zeros(())
        wanted = torch.full_like(logits, self.label_smoothing / 2)
        labels = targets.index[matches.cells[5], 1:]  # (P, 1)
        wanted.scatter_(1, labels, 1 - self.label_smoothing / 2)
        return (self.classification(logits, wanted).mean(1) * share).sum()


def _predictions(maps: Tensor) -> int:
    return maps.numel() // maps.shape[4]


@torch.no_grad()
def _objectness_targets(raw: Sequence[Tensor], matches: Matches, soft: Tensor, like: Tensor) -> Tensor:
    """Objectness to learn, in the order of `like`: `soft` (P,) at the matches, 0 elsewhere.

    Where several targets share a prediction the last match wins, as in the published losses. All of them write the
    winner's value, so the outcome does not depend on the order in which a device writes.
    """
    start, steps = 0, []
    for maps in raw:
        _, anchors, height, width = maps.shape[:4]
        steps.append((start, anchors * height * width, height * width, width, 1))
        start += _predictions(maps)
    base, step = torch.tensor(steps, device=like.device)[matches.cells[0]].T.split((1, 4))
    place = (matches.cells[1:5] * step).sum(0) + base.view(-1)  # (P,)
    ranked, order = torch.sort(place, stable=True)
    last = torch.searchsorted(ranked, ranked, right=True) - 1
    return torch.zeros_like(like).scatter_(0, ranked, soft[order[last]])
