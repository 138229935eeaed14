"""Self-distillation: a student also learns a teacher's predictions (reference sheet: yolov6-training, 7.5).

The teacher's maps reach the criterion behind the student's: :class:`Taught` is the module that training calls. Works
for every head of :class:`~yolov7.model.heads.aligned.AlignedHead`; weights and figures are YOLOv6's.

Legend: B images, L levels, R box channels of a lead map, C classes, K bins, F channels of a feature map, P matches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from yolov7.assign import Matches
from yolov7.config import AlignedLoss, Distillation, LossParameters
from yolov7.errors import ConfigError
from yolov7.loss.criterion import Criterion, LossResult, TeacherCriterion, Totals
from yolov7.loss.divergence import channel_divergence, class_divergence, distribution_divergence
from yolov7.model import Detector
from yolov7.model.heads.aligned import AlignedHead
from yolov7.model.spec import Network

CLASSIFICATION, DFL, FEATURES = "distill_classification", "distill_dfl", "distill_features"


class Labelled(Criterion, Protocol):
    """The loss of the labels that distillation is added to."""

    options: AlignedLoss
    strides: tuple[int, ...]
    totals: Totals | None

    def with_matches(self, raw: Sequence[Tensor], targets: Tensor) -> tuple[LossResult, Matches]:
        """The loss of a batch and the matches that it is made of, those of the lead head first."""
        ...


@dataclass(frozen=True, eq=False)
class DistillationCriterion(TeacherCriterion):
    """`labels`, and what `teacher` predicts for the same images.

    Of several processes each adds its share: the divergences of its own cells, and its part of the means over the
    matches and images of all.
    """

    labels: Labelled
    teacher: Detector
    options: Distillation
    channels: int
    """R of the student's lead maps."""
    bins: int
    """K of the distributions that are compared; 0: none are."""
    distributions: int
    """Place of the first of L student maps whose first 4 * K channels are the distributions."""
    gpus: int = 1
    """What training multiplies the loss by for means that each GPU of a published run took by itself
    (`train.optimizer.published_gpus`). The class term is a sum, which the published GPUs together had once."""
    factor: float = 1.0
    """Share of the weights that the epoch leaves."""

    @property
    def parts(self) -> tuple[str, ...]:
        """See :class:`Criterion`."""
        return (*self.labels.parts, *self._weights())

    def _weights(self) -> dict[str, float]:
        """Weight of each term in use, gain included, before the cosine factor."""
        gains, options = self.labels.options, self.options
        weights = {CLASSIFICATION: gains.classification * options.classification / self.gpus}
        if self.bins:
            weights[DFL] = gains.dfl * (1.0 if options.dfl is None else options.dfl)
        weights[FEATURES] = options.features
        return {name: weight for name, weight in weights.items() if weight > 0}

    def at(self, epoch: int, epochs: int) -> DistillationCriterion:
        """See :class:`Criterion`."""
        factor = cosine_factor(epoch, epochs, self.options.last_factor)
        return replace(self, labels=cast(Labelled, self.labels.at(epoch, epochs)), factor=factor)

    def wrap(self, model: nn.Module) -> nn.Module:
        """See :class:`Criterion`: the student with its teacher."""
        assert isinstance(model, Detector)
        return Taught(model, self.teacher, features=self.options.features > 0)

    def __call__(self, raw: Sequence[Tensor], targets: Tensor, images: Tensor | None = None) -> LossResult:
        """Loss of a batch; `raw` as :class:`Taught` returns it. Finite for a batch without targets."""
        own, leads, ours, theirs = self._split(raw)
        result, matches = self.labels.with_matches(own, targets)
        matches = matches.first(len(leads))
        batch, found, scored = self._counts(len(leads[0]), matches)
        terms: dict[str, Callable[[], Tensor]] = {
            CLASSIFICATION: lambda: self._classes(own, leads),
            DFL: lambda: self._distances(own, leads, matches) * (scored / max(found, 1.0)),
            FEATURES: lambda: sum(map(channel_divergence, ours, theirs), ours[0].new_zeros(())) / batch,
        }
        added = {name: weight * self.factor * terms[name]().float() for name, weight in self._weights().items()}
        more = torch.stack(tuple(added.values())).sum() if added else result.total.new_zeros(())
        total = result.total + (more * batch if self.labels.options.times_images else more)
        return LossResult(total, {**result.parts, **{name: value.detach() for name, value in added.items()}})

    def _split(self, raw: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
        """The student's maps, the teacher's lead maps, and the feature maps of both, if any."""
        levels = len(self.labels.strides)
        features = levels if self.options.features > 0 else 0
        end = len(raw) - levels - 2 * features
        leads, ours, theirs = raw[end : end + levels], raw[end + levels :][:features], raw[end + levels + features :]
        return raw[:end], leads, ours, theirs

    def _counts(self, images: int, matches: Matches) -> tuple[float, float, Tensor]:
        """Over all processes: images, matches, and the sum of the target scores over its bounded value: mostly 1."""
        assert matches.weight is not None
        batch, found, score = float(images), float(len(matches)), matches.weight.sum()
        if self.labels.totals is not None:
            own = torch.tensor([batch, found, score.item()], dtype=torch.float64)
            batch, found, total = self.labels.totals(own).tolist()
            score = torch.full_like(score, total)
        least = self.labels.options.least_score_sum
        bounded = score.clamp(min=1.0 if least is None else least)
        return batch, found, torch.where(score > 0, score / bounded, 0.0)

    def _classes(self, own: Sequence[Tensor], leads: Sequence[Tensor]) -> Tensor:
        """The sum over all cells, as published not divided by anything: it grows with the batch and its images."""
        channels = self.channels
        sums = [
            class_divergence(
                maps, channels, lead[:, lead.shape[1] - (maps.shape[1] - channels) :], self.options.temperature
            )
            for maps, lead in zip(own, leads, strict=False)
        ]
        return torch.stack(sums).sum()

    def _distances(self, own: Sequence[Tensor], leads: Sequence[Tensor], matches: Matches) -> Tensor:
        """The sum over the matches of this process."""
        ours = self._rows(own[self.distributions :], matches)
        return distribution_divergence(ours, self._rows(leads, matches), self.options.temperature).sum()

    def _rows(self, maps: Sequence[Tensor], matches: Matches) -> Tensor:
        """(P, 4, K) logits of the distributions at the matches."""
        places = zip(maps, matches.places(), strict=False)
        found = [level[:, : 4 * self.bins].movedim(1, 3)[image, y, x] for level, (image, _, y, x) in places]
        return torch.cat(found).unflatten(1, (4, self.bins))


class Taught(nn.Module):
    """A student beside its teacher: images (B, 3, H, W) -> the student's raw maps, then the teacher's lead maps; with
    `features` also the maps (B, F, h, w) that the lead predictions are made of, the student's and the teacher's.

    The teacher keeps its mode, and has no gradient.
    """

    def __init__(self, student: Detector, teacher: Detector, *, features: bool):
        super().__init__()
        self.student, self.teacher, self.features = student, teacher, features
        self.names = [_head(model.spec).lead for model in (student, teacher)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        raw, ours = self.student.raw_and_features(images)
        with torch.no_grad():
            leads, theirs = self.teacher.leads_and_features(images)
        if not self.features:
            return [*raw, *leads]
        student, teacher = self.names
        return [*raw, *leads, *(ours[name] for name in student), *(theirs[name] for name in teacher)]

    def train(self, mode: bool = True) -> Taught:
        """Set the mode of the student alone."""
        self.training = mode
        self.student.train(mode)
        return self


def cosine_factor(epoch: int, epochs: int, last: float) -> float:
    """The share of the weights in an epoch, from 0: from 1 along a half cosine, which ends at `last` after the run."""
    return (1 - math.cos(math.pi * epoch / epochs)) / 2 * (last - 1) + 1


def loss_of_student(loss: LossParameters, options: Distillation) -> LossParameters:
    """The parameters of the labels' loss in a training with a teacher, as `distilled` takes their criterion.

    Where they leave the least divisor open, `options` has it.
    """
    least = options.least_score_sum
    if not isinstance(loss, AlignedLoss) or loss.least_score_sum is not None or least is None:
        return loss
    return loss.model_copy(update={"least_score_sum": least})


def distilled(
    labels: Criterion, student: Network, teacher: Detector, options: Distillation, *, gpus: int = 1
) -> DistillationCriterion:
    """The criterion of a `student`, made of that of the labels, which also learns from `teacher`; see the class.

    Raises :class:`ConfigError` as :func:`require_fit` does.
    """
    require_fit(student, teacher.spec, options)
    head = _head(student)
    group, bins = head.distribution_maps
    return DistillationCriterion(
        labels=cast(Labelled, labels),
        teacher=teacher,
        options=options,
        channels=head.box_channels,
        bins=bins if options.dfl is None or options.dfl > 0 else 0,
        distributions=group * len(head.lead),
        gpus=gpus,
    )


def require_fit(student: Network, teacher: Network, options: Distillation) -> None:
    """Raise :class:`ConfigError` where the maps of two networks cannot be compared; names what to change."""
    ours, theirs = _head(student), _head(teacher)
    if getattr(ours, "anchor_aided", False):
        raise ConfigError(
            f"train.head.anchor_aided: {student.name}: the anchor-aided branch cannot be combined with distillation; "
            "set it to false"
        )
    for network in (student, teacher):
        if getattr(_head(network), "objectness", False):
            raise ConfigError(
                f"train.head.objectness: {network.name}: objectness cannot be combined with distillation; set it to "
                "false"
            )
    levels, others = (
        tuple(network.maps()[name].stride for name in _head(network).lead) for network in (student, teacher)
    )
    if levels != others:
        raise ConfigError(
            f"the teacher, a {teacher.name}, has levels of strides {others}, {student.name} of {levels}: they must be "
            "equal"
        )
    _, bins = ours.distribution_maps
    if not bins and options.dfl:
        raise ConfigError(
            f"train.distillation.dfl: {options.dfl:g}, but {student.name} predicts distances and no distributions; "
            "set it to 0, or give the head bins"
        )
    if bins and theirs.bins != bins and options.dfl != 0:
        kind = f"distributions of {theirs.bins} bins" if theirs.bins else "distances and no distributions"
        raise ConfigError(
            f"the teacher, a {teacher.name}, predicts {kind}, {student.name} distributions of {bins} bins: take "
            "another teacher, or set train.distillation.dfl to 0"
        )
    if options.features > 0:
        _require_equal_widths(student, teacher)


def _require_equal_widths(student: Network, teacher: Network) -> None:
    ours, theirs = (
        tuple(network.maps()[name].channels for name in _head(network).lead) for network in (student, teacher)
    )
    if ours != theirs:
        raise ConfigError(
            f"train.distillation.features: the neck of the teacher, a {teacher.name}, has widths {theirs}, that of "
            f"{student.name} {ours}: set it to 0, or take a teacher of the same widths"
        )


def _head(network: Network) -> AlignedHead:
    if not isinstance(network.head, AlignedHead):
        raise ConfigError(f"train.distill_from: {network.name} has a head with anchors; distillation needs one without")
    return network.head
