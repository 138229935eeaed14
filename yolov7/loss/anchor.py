"""The loss of an anchor-based detector, with or without an auxiliary head.

Source: reference sheet: training, sections 3 (gains), 7 (lead-guided assignment) and 8 (loss).

Legend: B images, L levels, K maps (L of the lead head, then L of the auxiliary head if it takes part), A anchors per
level, h w cells, C classes, T targets, P matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from yolov7.assign import Assigner, Geometry, Matches, Targets
from yolov7.assign.geometry import constant
from yolov7.errors import ModelError
from yolov7.loss.anchor_box import matched_ciou
from yolov7.loss.anchor_maps import read_predictions
from yolov7.loss.cross_entropy import CrossEntropy

Totals = Callable[[tuple[int, ...]], tuple[int, ...]]
"""Counts of this process -> their sums over all processes of a training."""


@dataclass(frozen=True)
class LossResult:
    """Loss of a batch; of a process among several its share, and the shares add up to the loss of the whole batch."""

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

    The loss is made of means, and a mean over a batch that lies on several processes is not the mean of their means:
    one may have 3 matches on a level and another 300. So the numbers that the sums are divided by, the matches of each
    map and the images, are first added up by `totals`. What remains is a sum over matches, cells and images, and the
    sum of the processes' losses and gradients is that of one process with the whole batch. None: there is one process.
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
        totals: Totals | None = None,
        class_weights: Tensor | None = None,
    ):
        self.geometry = geometry
        self.maps = tuple(maps)
        self.assigner = assigner
        self.auxiliary_assigner = auxiliary_assigner
        self.gains = gains
        self.objectness = objectness
        self.classification = classification
        self.label_smoothing = label_smoothing
        self.totals = totals
        self.class_weights = class_weights

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
        images, counts = raw[0].shape[0], matches.counts
        if self.totals is not None:
            everywhere = self.totals((images, *counts))
            images, counts = everywhere[0], everywhere[1:]
        rows, objectness = read_predictions(raw, matches)
        spread = tuple(item.spread for item in self.maps[: len(raw)])
        boxes, _, classes = rows.split((4, 1, rows.shape[1] - 5), dim=1)
        strides = self.geometry.grid(raw[: len(self.geometry.strides)]).strides
        agreement = matched_ciou(boxes, matches, known.boxes, self.geometry, strides, spread)  # (P,)
        by_match = torch.stack((1 - agreement, self._classification(classes, known, matches)))  # (2, P)
        parts = (by_match * self._share(matches, counts, agreement)).sum(1)
        objectness = self._objectness(objectness, raw, images, matches, agreement)
        total = (parts.sum() + objectness) * images
        box, classification = parts.detach()
        return LossResult(total, box, objectness.detach(), classification)

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

    def _share(self, matches: Matches, counts: Sequence[int], like: Tensor) -> Tensor:
        """(2, P) weights that turn sums over the matches into gain times the weighted sum of the maps' means.

        `counts` (K,) is what the means are over.
        """
        shares = [item.weight / max(n, 1) for item, n in zip(self.maps, counts, strict=False)]
        gains = (self.gains.box, self.gains.classification)
        table = constant([[gain * share for share in shares] for gain in gains], np.float32, like.device)
        return table.to(like.dtype)[:, matches.lines[0]]

    def _objectness(
        self, logits: Tensor, raw: Sequence[Tensor], images: int, matches: Matches, agreement: Tensor
    ) -> Tensor:
        """Gain times the weighted sum of the means over each map's predictions; the soft target is the CIoU.

        The means are over `images` images, of which `raw` may hold but a part.
        """
        sizes = tuple((maps.shape[2], maps.shape[3]) for maps in raw)
        weights = tuple(self.gains.objectness * item.weight * item.balance for item in self.maps[: len(raw)])
        steps, weight = _layout(logits.device, images, logits.shape[1], sizes, weights)
        wanted = _objectness_targets(matches, steps, agreement, logits)
        return self.objectness(logits, wanted, weight.to(logits.dtype)).sum()

    def _classification(self, logits: Tensor, targets: Targets, matches: Matches) -> Tensor:
        """(P,) mean over the classes; with one class there is nothing to tell apart."""
        if logits.shape[1] == 1:
            return torch.zeros_like(logits[:, 0])
        wanted = torch.full_like(logits, self.label_smoothing / 2)
        wanted.scatter_(1, targets.label[matches.lines[5]], 1 - self.label_smoothing / 2)
        loss = self.classification(logits, wanted).mean(1)
        if self.class_weights is None:
            return loss
        return loss * self.class_weights.to(loss)[targets.label[matches.lines[5], 0]]


# The same few sizes come in every step: building these anew would cost a copy to the device for each.
@lru_cache(maxsize=64)
def _layout(
    device: torch.device, images: int, anchors: int, sizes: tuple[tuple[int, int], ...], weights: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """How objectness (B, A, sum of h*w) is laid out.

    Steps (5, K) int64: place of a map's first cell, and what one image, anchor, row and column further adds to it.
    Weights (sum of h*w,) that turn one sum into the weighted sum of the maps' means.
    """
    lengths = [height * width for height, width in sizes]
    total = sum(lengths)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    steps = [(start, anchors * total, total, width, 1) for start, (_, width) in zip(starts, sizes, strict=True)]
    shares = [weight / (images * anchors * length) for weight, length in zip(weights, lengths, strict=True)]
    with torch.inference_mode(False):  # so that training may use what validation built
        lines = list(zip(*steps, strict=True))
        weight = [share for n, share in zip(lengths, shares, strict=True) for _ in range(n)]
        return constant(lines, np.int64, device), constant(weight, np.float32, device)


@torch.no_grad()
def _objectness_targets(matches: Matches, steps: Tensor, agreement: Tensor, like: Tensor) -> Tensor:
    """Objectness to learn, in the shape of `like`: the CIoU `agreement` (P,) at the matches, 0 elsewhere.

    Where several targets share a prediction the last match wins, as in the published losses. All of them write the
    winner's value, so the outcome does not depend on the order in which a device writes.
    """
    step = steps[:, matches.lines[0]]  # (5, P)
    place = step[0] + (step[1:] * matches.cells[1:5]).sum(0)  # (P,)
    ranked, order = torch.sort(place, stable=True)
    last = torch.searchsorted(ranked, ranked, right=True) - 1
    return torch.zeros_like(like).put_(ranked, agreement.clamp(min=0)[order[last]])
