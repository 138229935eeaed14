"""The loss of an anchor-free head with task-aligned assignment or ATSS, with or without an auxiliary head.

Source: reference sheets: yolov9-training, sections 5 to 7, and yolov6-training, sections 6 and 7.

Assignment and loss of two heads dispatch 460 operations and wait for the device 6 times, for a batch of any size
that is one chunk. 132 of them are three CIoUs (all pairs, contested cells, positives), each of which needs the result
of the one before; 54 are the nine that each of the six maps costs. Stacking the maps would save some of these, for a
copy of all of them: on a CPU that costs more than the operations. YOLOv6's, with one head, dispatch 379 to 383, in the
epochs of ATSS 428 (tests/unit/yolov7/loss/test_aligned_cost.py).

Legend: H heads, B images, L levels, N cells of an image, C classes, K bins of a distance, R = 4 * max(K, 1) box
channels, T targets, P matches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from yolov7.assign import AlignedAssigner, Assigner, AtssAssigner, Cells, Matches, Predicted, Targets, cells_of
from yolov7.config import AlignedLoss
from yolov7.device import cached_constant
from yolov7.errors import ModelError
from yolov7.loss.aligned_maps import read_maps
from yolov7.loss.box_losses import box_overlap
from yolov7.loss.class_losses import CLASS_LOSSES
from yolov7.loss.criterion import Criterion, LevelPicture, LossResult, Totals

REACH = 0.01  # strides that a distance stays below the last bin


class AlignedCriterion(Criterion):
    """Assignment and loss of a detector with an aligned head.

    Each head's sums are divided by the sum of its target scores (`least_score_sum`). Where a batch lies on several
    processes that sum, and the number of images, are first added up by `totals`: the sum of the processes' losses and
    gradients is that of one process with the whole batch. None: there is one process.
    """

    parts: tuple[str, ...] = ("box", "dfl", "classification")

    def __init__(
        self,
        options: AlignedLoss,
        *,
        strides: tuple[int, ...],
        num_classes: int,
        bins: int,
        auxiliary: bool = False,
        totals: Totals | None = None,
        class_weights: Tensor | None = None,
    ):
        self.options = options
        self.strides = strides
        self.num_classes = num_classes
        self.bins = bins
        self.channels = 4 * max(bins, 1)
        self.columns: tuple[int, ...] = (self.channels, num_classes)  # R, then others if there are any, and C
        self.auxiliary = auxiliary
        self.totals = totals
        self.class_weights = class_weights
        self.assigner = self._assigner(options.assigner)
        self.class_loss = CLASS_LOSSES[options.classification_loss](options)
        self.overlap = box_overlap(options)

    def at(self, epoch: int, epochs: int) -> Self:
        """See :class:`Criterion`: the first `atss_epochs` assign by ATSS."""
        made = copy.copy(self)
        made.assigner = self._assigner("atss" if epoch < self.options.atss_epochs else self.options.assigner)
        return made

    def __call__(self, raw: Sequence[Tensor], targets: Tensor, images: Tensor | None = None) -> LossResult:
        """Loss of a batch.

        `raw`: maps (B, R + C, h, w) of the lead levels, then of the auxiliary levels, which may be left out (as in
        validation). `targets` (T, 6): image index, class, x1, y1, x2, y2 in pixels of the batch, in any order.

        Maps of half precision are read in float32. A target without finite, positive sides, or without the centre of a
        cell inside, is ignored. Raises :class:`ModelError` if the maps are not those of the network, DataError for an
        unknown image or class.
        """
        return self.with_matches(raw, targets)[0]

    def with_matches(self, raw: Sequence[Tensor], targets: Tensor) -> tuple[LossResult, Matches]:
        """The loss, as by a call, and the matches of all heads, for criteria that add terms at the positives."""
        heads, known = self._check(raw), Targets.of(targets, raw[0].device)
        matches = self._matches(raw, known, heads)
        assert matches.weight is not None
        rows, negatives = read_maps(raw, matches, sum(self.columns[:-1]), self.class_loss)  # (P, R + C), (H * L,)
        box_rows, *_, logits = rows.split(self.columns, 1)
        maps, _, _, row, column, target = matches.lines
        head = torch.div(maps, len(self.strides), rounding_mode="floor")
        scores = matches.weight.to(rows.dtype)  # (P,)
        batch, share = self._shares(len(raw[0]), heads, head, scores)

        share_of = share[head]  # (P,)
        weight = scores * share_of
        cells = self._cells(raw)
        boxes, dfl = self._boxes(box_rows, cells, cells.numbers(maps, row, column), known.boxes[target])
        change = self._change(logits, known.label[target], scores)
        # Sums, because autocast would take inner products in half precision.
        box = self.options.box * (weight * boxes).sum()
        distribution = self.options.dfl * (weight * dfl).sum()
        classes = (negatives.unflatten(0, (heads, -1)).sum(1) * share).sum() + (change * share_of).sum()
        classification = self.options.classification * classes
        total = (box + distribution + classification) * (batch if self.options.times_images else 1.0)
        named = {"box": box, "dfl": distribution, "classification": classification}
        return LossResult(total, {name: part.detach() for name, part in named.items()}), matches

    def assign(self, raw: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """See :class:`Criterion`; the slot is 0."""
        self._check(raw)
        known = Targets.of(targets, raw[0].device)
        return list(self._matches(raw[: len(self.strides)], known, 1).by_map())

    def misfit(self, sizes: Tensor) -> Tensor:
        """See :class:`Criterion`: from 1 on, an object has no cell's centre inside in more than half of the places."""
        inside = (sizes / self.strides[0]).clamp(max=1).prod(1)
        return 0.5 / inside

    def largest_side(self) -> float:
        """See :class:`Criterion`: twice what the bins of the largest stride reach."""
        return 2 * (self.bins - 1 - REACH) * self.strides[-1] if self.bins else math.inf

    def levels(self) -> tuple[LevelPicture, ...]:
        """See :class:`Criterion`."""
        return tuple(LevelPicture(stride) for stride in self.strides)

    def _assigner(self, name: str) -> Assigner[Predicted]:
        options = self.options
        if name == "atss":
            return AtssAssigner()
        return AlignedAssigner(options.top_k, options.alpha, options.beta, options.overlap)

    def _check(self, raw: Sequence[Tensor]) -> int:
        """H, the number of heads in these maps."""
        levels = len(self.strides)
        wanted = (levels, 2 * levels) if self.auxiliary else (levels,)
        if len(raw) not in wanted:
            raise ModelError(f"{len(raw)} raw maps given; {' or '.join(map(str, wanted))} are expected")
        channels = sum(self.columns)
        for maps, lead in zip(raw, (*raw[:levels], *raw[:levels]), strict=False):
            if maps.ndim != 4 or maps.shape[1] != channels:
                raise ModelError(f"a raw map (B, {channels}, h, w) is expected, got {tuple(maps.shape)}")
            if maps.shape != lead.shape:
                raise ModelError(
                    f"an auxiliary map has the shape {tuple(maps.shape)}, its lead map {tuple(lead.shape)}: their "
                    "grids must be equal"
                )
        return len(raw) // levels

    def _cells(self, raw: Sequence[Tensor]) -> Cells:
        """The cells of these maps."""
        sizes = tuple((maps.shape[2], maps.shape[3]) for maps in raw)
        return cells_of(sizes, self.strides * (len(raw) // len(self.strides)), raw[0].device)

    @torch.no_grad()
    def _matches(self, raw: Sequence[Tensor], targets: Targets, heads: int) -> Matches:
        """Matches of all heads. Lead-guided, the auxiliary head gets those of the lead head."""
        if heads > 1 and self.options.auxiliary == "lead-guided":
            matches = self._matches(raw[: len(self.strides)], targets, 1)
            return matches.then(matches)
        flat = (maps.flatten(2).split(self.columns, 1) for maps in raw)
        box, *objects, logits = zip(*flat, strict=True)
        cells = self._cells(raw)
        boxes = self._decoded(torch.cat(box, 2).float(), cells)
        return self.assigner(Predicted(boxes, logits, cells, heads, *objects), targets)

    def _decoded(self, box: Tensor, cells: Cells) -> Tensor:
        """Boxes (B, N, 4) in pixels, without gradient; overwrites the box channels (B, R, N)."""
        return torch.addcmul(cells.corners, self._sides(box).transpose(1, 2), cells.reach)

    def _sides(self, box: Tensor) -> Tensor:
        """Distances (B, 4, N) to the sides in strides, without gradient; overwrites the box channels (B, R, N).

        In place, because a softmax over a middle dimension is 3 times slower on a CPU; sums and not a product of
        matrices, which TF32 would round.
        """
        if not self.bins:
            return box
        powers = box.unflatten(1, (4, self.bins))
        powers.sub_(powers.amax(2, keepdim=True)).exp_()
        whole = powers.sum(2)  # (B, 4, N)
        return powers.mul_(_bins(self.bins, box.device)[:, None]).sum(2) / whole

    def _shares(self, images: int, heads: int, head: Tensor, scores: Tensor) -> tuple[float, Tensor]:
        """Images over all processes, and the factor (H,) of each head's sums: its weight over its score sum."""
        sums = scores.new_zeros(heads).index_add_(0, head, scores)
        batch: float = images
        if self.totals is not None:
            figures = self.totals(torch.cat((sums.double().cpu(), torch.tensor([float(images)], dtype=torch.float64))))
            sums, batch = figures[:-1].to(sums), float(figures[-1])
        weights = cached_constant((1.0,) + (self.options.auxiliary_weight,) * (heads - 1), np.float32, scores.device)
        least = self.options.least_score_sum
        if least is None:
            least = 0.0 if heads > 1 and self.options.auxiliary == "lead-guided" else 1.0
        return batch, weights / (sums.clamp(min=least) if least else torch.where(sums > 0, sums, 1.0))

    def _boxes(self, raw: Tensor, cells: Cells, cell: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """1 - overlap and distribution loss (P,) of the box channels (P, R) of these cells, in strides."""
        reach = cells.reach[cell]  # (P, 4), -/+ the stride
        stride = reach[:, 3:]
        centre, wanted, outwards = cells.corners[cell] / stride, targets / stride, reach / stride
        if not self.bins:
            overlap = 1 - self.overlap(torch.addcmul(centre, raw, outwards), wanted)
            return overlap, torch.zeros_like(overlap)
        logits = raw.unflatten(1, (4, self.bins))
        sides = (logits.softmax(2) * _bins(self.bins, raw.device)).sum(2)
        overlap = 1 - self.overlap(torch.addcmul(centre, sides, outwards), wanted)
        return overlap, distribution_loss(logits, (wanted - centre) * outwards)

    def _change(self, rows: Tensor, label: Tensor, scores: Tensor) -> Tensor:
        """(P,) what the targets of the matched class logits (P, C) add to the cross-entropy of negatives.

        `label` (P, 1), `scores` (P,). The target is 0 for all other classes and cells.
        """
        scores, smoothing = scores[:, None], self.options.label_smoothing
        weights = None if self.class_weights is None else self.class_weights.to(scores)[label]  # (P, 1)
        at, wanted = rows.gather(1, label), scores
        if smoothing:
            at = rows
            wanted = (smoothing / 2 * scores).expand_as(rows).scatter(1, label, (1 - smoothing / 2) * scores)
        given = self.class_loss(at, wanted)
        if weights is None:
            return (given - self.class_loss.negative(at)).sum(1)
        change = (weights * (given - self.class_loss.negative(at))).sum(1)
        return change + ((weights - 1) * self.class_loss.negative(rows)).sum(1)


def _bins(count: int, device: torch.device) -> Tensor:
    """(K,) the numbers that the bins stand for."""
    return cached_constant(tuple(range(count)), np.float32, device)


def distribution_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (generalised focal loss paper, section 3.2): the mean over the sides, (P,).

    `logits` (P, 4, K), `distances` (P, 4) in strides. A distance is a mixture of the two bins beside it; it is clamped
    to what the bins reach.
    """
    bins = logits.shape[2]
    reach = distances.clamp(0, bins - 1 - REACH)[..., None]
    share = (1 - (reach - _bins(bins, logits.device)).abs()).clamp(min=0)  # 0 but for the two bins beside it
    return -(share * logits.log_softmax(2)).sum(2).mean(1)
