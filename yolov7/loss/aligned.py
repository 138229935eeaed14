"""The loss of an anchor-free head with task-aligned assignment, with or without an auxiliary head.

Source: reference sheet: yolov9-training, sections 5 to 7.

Legend: H heads, B images, L levels, N cells of an image, C classes, K bins of a distance, R = 4 * max(K, 1) box
channels, T targets, P matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from yolov7.assign import AlignedAssigner, Assigner, Cells, Matches, Predicted, Targets, cells_of
from yolov7.boxes import ciou
from yolov7.config import AlignedLoss
from yolov7.errors import ModelError
from yolov7.loss.criterion import Criterion, LevelPicture, LossResult, Totals
from yolov7.loss.cross_entropy import CrossEntropy
from yolov7.model.heads.aligned import distances
from yolov7.model.spec import Network

REACH = 0.01  # strides that a distance stays below the last bin


class AlignedModel(Protocol):
    """The facts about a model that its criterion depends on."""

    @property
    def spec(self) -> Network:
        """The network as data."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell side of each level, small to large."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def has_auxiliary(self) -> bool:
        """True if raw maps of auxiliary levels follow those of the lead levels."""


class AlignedCriterion(Criterion):
    """Assignment and loss of a detector with an aligned head.

    Each head's sums are divided by the sum of its target scores (`least_score_sum`). Where a batch lies on several
    processes that sum, and the number of images, are first added up by `totals`: the sum of the processes' losses and
    gradients is that of one process with the whole batch. None: there is one process.
    """

    parts = ("box", "dfl", "classification")

    def __init__(
        self,
        options: AlignedLoss,
        *,
        strides: tuple[int, ...],
        num_classes: int,
        bins: int,
        auxiliary: bool,
        totals: Totals | None = None,
        class_weights: Tensor | None = None,
    ):
        self.options = options
        self.strides = strides
        self.num_classes = num_classes
        self.bins = bins
        self.channels = 4 * max(bins, 1)
        self.auxiliary = auxiliary
        self.totals = totals
        self.class_weights = class_weights
        self.assigner: Assigner[Predicted] = AlignedAssigner(options.top_k, options.alpha, options.beta)
        self.cross_entropy = CrossEntropy(options.classification_positive_weight, options.focal_gamma)

    def __call__(self, raw: Sequence[Tensor], targets: Tensor, images: Tensor | None = None) -> LossResult:
        """Loss of a batch.

        `raw`: maps (B, R + C, h, w) of the lead levels, then of the auxiliary levels, which may be left out (as in
        validation). `targets` (T, 6): image index, class, x1, y1, x2, y2 in pixels of the batch, in any order.

        Maps of half precision are read in float32. A target without finite, positive sides, or without the centre of a
        cell inside, is ignored. Raises :class:`ModelError` if the maps are not those of the network, DataError for an
        unknown image or class.
        """
        heads, batch = self._check(raw), len(raw[0])
        values, cells = self._stacked(raw, heads)
        known = Targets.of(targets, values.device)
        matches = self._matches(values, cells, known, heads)
        assert matches.weight is not None
        head = torch.div(matches.lines[0], len(self.strides), rounding_mode="floor")
        batch_everywhere, share = self._shares(batch, heads, head, matches.weight)

        level, image, _, row, column, target = matches.lines
        level = level % len(self.strides)
        cell = cells.first[level] + row * cells.shape[level, 0] + column
        found = values[head * batch + image, :, cell]  # (P, R + C)
        weight = matches.weight * share[head]  # (P,)
        boxes, dfl = self._boxes(found[:, : self.channels], cells, cell, known.boxes[target])
        box = self.options.box * (weight * boxes).sum()
        distribution = self.options.dfl * (weight * dfl).sum()
        classification = self.options.classification * self._classification(
            values[:, self.channels :], found[:, self.channels :], known.label[target], matches.weight, share, head
        )
        total = (box + distribution + classification) * batch_everywhere
        named = zip(self.parts, (box.detach(), distribution.detach(), classification.detach()), strict=True)
        return LossResult(total, dict(named))

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """See :class:`Criterion`; the slot is 0."""
        self._check(raw)
        values, cells = self._stacked(raw[: len(self.strides)], 1)
        return list(self._matches(values, cells, Targets.of(targets, values.device), 1).by_map())

    def misfit(self, sizes: Tensor) -> Tensor:
        """See :class:`Criterion`: from 1 on, an object has no cell's centre inside in more than half of the places."""
        inside = (sizes / self.strides[0]).clamp(max=1).prod(1)
        return 0.5 / inside

    def levels(self) -> tuple[LevelPicture, ...]:
        """See :class:`Criterion`."""
        return tuple(LevelPicture(stride) for stride in self.strides)

    def _check(self, raw: Sequence[Tensor]) -> int:
        """H, the number of heads in these maps."""
        levels = len(self.strides)
        wanted = (levels, 2 * levels) if self.auxiliary else (levels,)
        if len(raw) not in wanted:
            raise ModelError(f"{len(raw)} raw maps given; {' or '.join(map(str, wanted))} are expected")
        channels = self.channels + self.num_classes
        for maps, lead in zip(raw, (*raw[:levels], *raw[:levels]), strict=False):
            if maps.ndim != 4 or maps.shape[1] != channels:
                raise ModelError(f"a raw map (B, {channels}, h, w) is expected, got {tuple(maps.shape)}")
            if maps.shape != lead.shape:
                raise ModelError(
                    f"an auxiliary map has the shape {tuple(maps.shape)}, its lead map {tuple(lead.shape)}: their "
                    "grids must be equal"
                )
        return len(raw) // levels

    def _stacked(self, raw: Sequence[Tensor], heads: int) -> tuple[Tensor, Cells]:
        """All maps as one (H * B, R + C, N) in float32, heads one after the other."""
        levels = len(self.strides)
        flat = [maps.flatten(2) for maps in raw]
        both = [torch.cat(flat[level::levels]) if heads > 1 else flat[level] for level in range(levels)]
        values = torch.cat(both, 2)
        sizes = tuple((maps.shape[2], maps.shape[3]) for maps in raw[:levels])
        return values.to(torch.float64 if values.dtype == torch.float64 else torch.float32), cells_of(
            sizes, self.strides, values.device
        )

    @torch.no_grad()
    def _matches(self, values: Tensor, cells: Cells, targets: Targets, heads: int) -> Matches:
        """Matches of all heads. Lead-guided, the auxiliary head gets those of the lead head."""
        guided = heads > 1 and self.options.auxiliary == "lead-guided"
        read = values.detach()[: len(values) // heads] if guided else values.detach()
        sides = distances(read[:, : self.channels].float(), self._bins(read)) * cells.stride.T  # (H*B, 4, N)
        centres = cells.centres.T
        boxes = torch.cat((centres - sides[:, :2], centres + sides[:, 2:]), 1).transpose(1, 2)
        logits = read[:, self.channels :].float().transpose(1, 2)
        predicted = Predicted(boxes.contiguous(), logits, cells, 1 if guided else heads)
        matches = self.assigner(predicted, targets)
        return matches.then(matches) if guided else matches

    def _bins(self, like: Tensor) -> Tensor | None:
        return torch.arange(self.bins, device=like.device, dtype=like.dtype) if self.bins else None

    def _shares(self, images: int, heads: int, head: Tensor, scores: Tensor) -> tuple[float, Tensor]:
        """Images over all processes, and the factor (H,) of each head's sums: its weight over its score sum."""
        sums = torch.zeros(heads, device=scores.device).index_add_(0, head, scores)
        batch: float = images
        if self.totals is not None:
            figures = self.totals(torch.cat((sums.double().cpu(), torch.tensor([float(images)], dtype=torch.float64))))
            sums, batch = figures[:-1].to(sums), float(figures[-1])
        weights = torch.ones_like(sums)
        weights[1:] = self.options.auxiliary_weight
        if heads > 1 and self.options.auxiliary == "lead-guided" and self.options.least_score_sum is None:
            return batch, weights / torch.where(sums > 0, sums, 1.0)
        return batch, weights / sums.clamp(min=self.options.least_score_sum or 1.0)

    def _boxes(self, raw: Tensor, cells: Cells, cell: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """1 - CIoU and distribution loss (P,) of the box channels (P, R) of these cells, in strides."""
        stride = cells.stride[cell]  # (P, 1)
        centre = cells.centres[cell] / stride
        wanted = targets / stride
        sides = distances(raw[:, :, None], self._bins(raw))[:, :, 0]  # (P, 4)
        boxes = torch.cat((centre - sides[:, :2], centre + sides[:, 2:]), 1)
        overlap = 1 - ciou(boxes, wanted)
        if not self.bins:
            return overlap, torch.zeros_like(overlap)
        reach = torch.cat((centre - wanted[:, :2], wanted[:, 2:] - centre), 1)
        return overlap, distribution_loss(raw.unflatten(1, (4, self.bins)), reach)

    def _classification(
        self, logits: Tensor, rows: Tensor, label: Tensor, scores: Tensor, share: Tensor, head: Tensor
    ) -> Tensor:
        """Cross-entropy over all cells and classes, each head by its share.

        The target is 0 but at the matches: first all cells as negatives, logits (H * B, C, N), then the difference that
        the targets of the matched `rows` (P, C) make.
        """
        negatives = self._negatives(logits).unflatten(0, (len(share), -1)).sum((1, 2, 3))  # (H,)
        if self.options.label_smoothing or self.class_weights is not None:
            at = rows
            smoothing = self.options.label_smoothing
            others = (smoothing / 2 * scores[:, None]).expand_as(rows)
            wanted = others.scatter(1, label, (1 - smoothing / 2) * scores[:, None])
        else:
            at, wanted = rows.gather(1, label), scores[:, None]
        given = self.cross_entropy(at, wanted)
        if self.class_weights is not None:
            given = given * self.class_weights.to(given)[label]
        change = (given - self._negatives(at)).sum(1)  # (P,)
        return (negatives * share).sum() + (change * share[head]).sum()

    def _negatives(self, logits: Tensor) -> Tensor:
        """The cross-entropy of logits with the target 0."""
        if self.options.focal_gamma:
            return self.cross_entropy(logits, torch.zeros_like(logits))
        return F.softplus(logits)


def distribution_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (generalised focal loss paper, section 3.2): the mean over the sides, (P,).

    `logits` (P, 4, K), `distances` (P, 4) in strides. A distance is a mixture of the two bins beside it; it is clamped
    to what the bins reach.
    """
    reach = distances.clamp(0, logits.shape[2] - 1 - REACH)
    low = reach.floor()
    high_share = reach - low
    log_probability = logits.log_softmax(2)
    low_index = low.long()[..., None]
    below = log_probability.gather(2, low_index)[..., 0]
    above = log_probability.gather(2, low_index + 1)[..., 0]
    return -((1 - high_share) * below + high_share * above).mean(1)


def aligned_criterion(
    model: AlignedModel,
    parameters: AlignedLoss | None = None,
    *,
    image_size: int,
    totals: Totals | None = None,
    class_weights: Sequence[float] | None = None,
) -> AlignedCriterion:
    """The criterion of an aligned head; see :func:`yolov7.loss.create_criterion`. None: the defaults of the group."""
    weights = None
    if class_weights is not None:
        if len(class_weights) != model.num_classes:
            raise ModelError(f"{len(class_weights)} class weights given for {model.num_classes} classes")
        weights = torch.tensor(list(class_weights), dtype=torch.float32)
    return AlignedCriterion(
        parameters or AlignedLoss(),
        strides=model.strides,
        num_classes=model.num_classes,
        bins=model.spec.head.bins,  # type: ignore[attr-defined]
        auxiliary=model.has_auxiliary,
        totals=totals,
        class_weights=weights,
    )
