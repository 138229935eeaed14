"""The loss of an anchor-based detector, with or without an auxiliary head.

Source: reference sheet: training, sections 3 (gains), 7 (lead-guided assignment) and 8 (loss).

Legend: B images, L levels, K maps (L of the lead head, then L of the auxiliary head if it is trained), A anchors per
level, h w cells, C classes, T targets, P matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from yolov7.assign import (
    COARSE,
    CONSTRAINED,
    FINE,
    UNCONSTRAINED,
    Geometry,
    MapAssigner,
    Matches,
    OtaAssigner,
    PlainAssigner,
    Targets,
)
from yolov7.config import AnchorLoss
from yolov7.device import constant
from yolov7.errors import ModelError
from yolov7.loss.anchor_box import matched_ciou
from yolov7.loss.anchor_maps import objectness_layout, objectness_targets, read_predictions
from yolov7.loss.criterion import Criterion, LevelPicture, LossResult, Totals
from yolov7.loss.cross_entropy import CrossEntropy

# Weight of each level's objectness, small stride first (reference sheet: training, section 8).
BALANCE_OF_3 = (4.0, 1.0, 0.4)
BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)
# IoUs that make the dynamic k: without and with an auxiliary head (section 7).
TOP, TOP_AUXILIARY = 10, 20


class AnchorModel(Protocol):
    """The facts about a model that its criterion depends on."""

    @property
    def anchors(self) -> Tensor:
        """(L, A, 2) width and height in pixels."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell side of each level, small to large."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def has_auxiliary(self) -> bool:
        """True if raw maps of auxiliary levels follow those of the lead levels."""


class AnchorLossResult(LossResult):
    """Parts `box`, `objectness` and `classification`, also as attributes."""

    @property
    def box(self) -> Tensor:
        """Gain times box loss, detached."""
        return self.parts["box"]

    @property
    def objectness(self) -> Tensor:
        """Gain times objectness loss, detached."""
        return self.parts["objectness"]

    @property
    def classification(self) -> Tensor:
        """Gain times class loss, detached."""
        return self.parts["classification"]


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
    """Weight and decoding of the predictions of one map."""

    weight: float
    """1 for the lead head, less for the auxiliary one."""
    balance: float
    """Weight of the level's objectness."""
    spread: float
    """Reach of the box decoder, see :mod:`yolov7.assign.decoding`."""


class AnchorCriterion(Criterion):
    """Assignment and loss of a detector with an anchor head.

    `maps` describes the K maps of training, lead levels first. The assigner answers for all of them, or for the lead
    head alone; the auxiliary head then gets the same matches, or its own if there is an `auxiliary_assigner`.

    The loss is made of means, and a mean over a batch that lies on several processes is not the mean of their means:
    one may have 3 matches on a level and another 300. So the denominators, the matches of each map and the images, are
    first summed over the processes by `totals`. What remains is a sum over matches, cells and images, and the sum of
    the processes' losses and gradients is that of one process with the whole batch. None: there is one process.
    """

    parts = ("box", "objectness", "classification")

    def __init__(
        self,
        *,
        geometry: Geometry,
        maps: Sequence[MapLoss],
        assigner: MapAssigner,
        gains: Gains,
        objectness: CrossEntropy,
        classification: CrossEntropy,
        label_smoothing: float = 0.0,
        auxiliary_assigner: MapAssigner | None = None,
        totals: Totals | None = None,
        class_weights: Tensor | None = None,
        threshold: float | None = None,
    ):
        """`threshold`: of the assigners, for :meth:`misfit`."""
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
        self.threshold = threshold

    def __call__(self, raw: Sequence[Tensor], targets: Tensor, images: Tensor | None = None) -> AnchorLossResult:
        """Loss of a batch.

        `raw`: maps (B, A, h, w, 5 + C) of the lead levels, then of the auxiliary levels, which may be left out (as in
        validation). `targets` (T, 6): image index, class, x1, y1, x2, y2 in pixels of the batch, in any order.

        Maps of half precision are read in float32. A target without finite, positive sides is ignored. Raises
        :class:`ModelError` if the maps are not those of the network, DataError for an unknown image or class.
        """
        self._check(raw)
        known = Targets.of(targets, raw[0].device)
        matches = self._matches(raw, known)
        batch, counts = self._denominators(raw[0].shape[0], matches)
        rows, objectness = read_predictions(raw, matches)
        spread = tuple(item.spread for item in self.maps[: len(raw)])
        boxes, _, classes = rows.split((4, 1, rows.shape[1] - 5), dim=1)
        strides = self.geometry.grid(raw[: len(self.geometry.strides)]).strides
        agreement = matched_ciou(boxes, matches, known.boxes, self.geometry, strides, spread)  # (P,)
        by_match = torch.stack((1 - agreement, self._classification(classes, known, matches)))  # (2, P)
        parts = (by_match * self._share(matches, counts, agreement)).sum(1)
        objectness = self._objectness(objectness, raw, batch, matches, agreement)
        total = (parts.sum() + objectness) * batch
        box, classification = parts.detach()
        named = zip(self.parts, (box, objectness.detach(), classification), strict=True)
        return AnchorLossResult(total, dict(named))

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """See :class:`Criterion`; the slot is the anchor."""
        self._check(raw)
        levels = len(self.geometry.strides)
        matches = self.assigner(raw[:levels], Targets.of(targets, raw[0].device))
        return list(matches.first(levels).by_map())

    def misfit(self, sizes: Tensor) -> Tensor:
        """See :class:`Criterion`: the worse side ratio with the best anchor, over the threshold."""
        if self.threshold is None:
            return super().misfit(sizes)
        anchors = self.geometry.anchors.to(sizes).view(-1, 2)
        best = sizes.new_full((len(sizes),), torch.inf)
        for anchor in anchors:  # a few anchors, many objects: no (n, anchors, 2) table
            ratio = sizes / anchor
            best = torch.minimum(best, torch.maximum(ratio, ratio.reciprocal()).amax(1))
        return best / self.threshold

    def levels(self) -> tuple[LevelPicture, ...]:
        """See :class:`Criterion`; a slot for each anchor."""
        pictures = []
        for anchors, stride in zip(self.geometry.anchors.tolist(), self.geometry.strides, strict=True):
            sizes = ", ".join(f"{width:.0f} x {height:.0f}" for width, height in anchors)
            pictures.append(LevelPicture(stride, slots=len(anchors), caption=f"anchors {sizes}"))
        return tuple(pictures)

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

    def _denominators(self, images: int, matches: Matches) -> tuple[float, Sequence[float]]:
        """Images, and matches of each map, over all processes."""
        if self.totals is None:
            return images, matches.counts
        figures = torch.tensor((images, *matches.counts), dtype=torch.float64)
        everywhere, *counts = self.totals(figures).tolist()
        return everywhere, counts

    def _share(self, matches: Matches, counts: Sequence[float], like: Tensor) -> Tensor:
        """(2, P) weights that turn sums over the matches into gain times the weighted sum of the maps' means.

        `counts` (K,) are the denominators of the means.
        """
        shares = [item.weight / max(n, 1) for item, n in zip(self.maps, counts, strict=False)]
        gains = (self.gains.box, self.gains.classification)
        table = constant([[gain * share for share in shares] for gain in gains], np.float32, like.device)
        return table.to(like.dtype)[:, matches.lines[0]]

    def _objectness(
        self, logits: Tensor, raw: Sequence[Tensor], images: float, matches: Matches, agreement: Tensor
    ) -> Tensor:
        """Gain times the weighted sum of the means over each map's predictions; the soft target is the CIoU.

        The means are over `images` images, of which `raw` may hold only a share.
        """
        sizes = tuple((maps.shape[2], maps.shape[3]) for maps in raw)
        weights = tuple(self.gains.objectness * item.weight * item.balance for item in self.maps[: len(raw)])
        steps, weight = objectness_layout(logits.device, images, logits.shape[1], sizes, weights)
        wanted = objectness_targets(matches, steps, agreement, logits)
        return self.objectness(logits, wanted, weight.to(logits.dtype)).sum()

    def _classification(self, logits: Tensor, targets: Targets, matches: Matches) -> Tensor:
        """(P,) mean over the classes; 0 with one class, where there is nothing to learn."""
        if logits.shape[1] == 1:
            return torch.zeros_like(logits[:, 0])
        wanted = torch.full_like(logits, self.label_smoothing / 2)
        wanted.scatter_(1, targets.label[matches.lines[5]], 1 - self.label_smoothing / 2)
        loss = self.classification(logits, wanted).mean(1)
        if self.class_weights is None:
            return loss
        return loss * self.class_weights.to(loss)[targets.label[matches.lines[5], 0]]


def anchor_criterion(
    model: AnchorModel,
    parameters: AnchorLoss | None = None,
    *,
    image_size: int,
    totals: Totals | None = None,
    class_weights: Sequence[float] | None = None,
) -> AnchorCriterion:
    """The criterion of an anchor head; see :func:`yolov7.loss.create_criterion`. None: the defaults of the group.

    With an auxiliary head: `coarse-to-fine` assigns both heads by the lead predictions, the auxiliary one in wider
    regions; `lead-guided` gives both the same matches; `independent` assigns each by its own predictions. Without
    `auxiliary_constraint` the auxiliary boxes reach over the whole wider region (see :mod:`yolov7.assign.decoding`).
    """
    options = parameters or AnchorLoss()
    geometry = Geometry(model.anchors.detach(), tuple(model.strides))
    levels = len(geometry.strides)
    gains = Gains(box=options.box, objectness=options.objectness, classification=options.classification)
    if options.scale_gains:
        gains = gains.scaled(levels=levels, classes=model.num_classes, image_size=image_size)
    maps = _map_losses(levels, model.has_auxiliary, options)
    assigner, auxiliary_assigner = _assigners(geometry, model.has_auxiliary, options)
    return AnchorCriterion(
        geometry=geometry,
        maps=maps,
        assigner=assigner,
        gains=gains,
        objectness=CrossEntropy(options.objectness_positive_weight, options.focal_gamma),
        classification=CrossEntropy(options.classification_positive_weight, options.focal_gamma),
        label_smoothing=options.label_smoothing,
        auxiliary_assigner=auxiliary_assigner,
        totals=totals,
        class_weights=_checked_weights(class_weights, model),
        threshold=options.anchor_threshold,
    )


def _map_losses(levels: int, auxiliary: bool, options: AnchorLoss) -> list[MapLoss]:
    """Lead levels, then auxiliary ones."""
    if levels > len(BALANCE):
        raise ModelError(f"the loss knows the balance of up to {len(BALANCE)} levels, the network has {levels}")
    balance = BALANCE_OF_3 if levels == 3 else BALANCE[:levels]
    maps = [MapLoss(weight=1.0, balance=value, spread=CONSTRAINED) for value in balance]
    if auxiliary:
        weight, spread = options.auxiliary_weight, _auxiliary_spread(options)
        maps += [MapLoss(weight=weight, balance=value, spread=spread) for value in balance]
    return maps


def _assigners(geometry: Geometry, auxiliary: bool, options: AnchorLoss) -> tuple[MapAssigner, MapAssigner | None]:
    """For the lead head, or for both heads at once; and for the auxiliary head, if it is assigned by itself."""

    def create(spread: float, regions: tuple[float, ...]) -> MapAssigner:
        if options.assigner == "plain":
            return PlainAssigner(geometry, options.anchor_threshold, regions)
        top = TOP_AUXILIARY if auxiliary else TOP
        return OtaAssigner(geometry, options.anchor_threshold, top, regions, spread)

    both = auxiliary and options.auxiliary == "coarse-to-fine"
    alone = auxiliary and options.auxiliary == "independent"
    lead = create(CONSTRAINED, (FINE, COARSE) if both else (FINE,))
    return lead, create(_auxiliary_spread(options), (FINE,)) if alone else None


def _auxiliary_spread(options: AnchorLoss) -> float:
    return CONSTRAINED if options.auxiliary_constraint else UNCONSTRAINED


def _checked_weights(weights: Sequence[float] | None, model: AnchorModel) -> Tensor | None:
    if weights is None:
        return None
    if len(weights) != model.num_classes:
        raise ModelError(f"{len(weights)} class weights given for {model.num_classes} classes")
    return model.anchors.detach().new_tensor(list(weights))
