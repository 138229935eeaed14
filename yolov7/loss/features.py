"""Distillation by features alone, for heads whose predictions :mod:`yolov7.loss.distillation` does not compare.

The maps that the head reads are those of the neck in every family, so the channel-wise term of quantisation-aware
training (reference sheet: yolov6-training, sections 7.5 and 11) needs nothing else.

Legend: B images, F channels of a feature map, h w its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from yolov7.config import AlignedLoss, AnchorLoss, Train
from yolov7.errors import ConfigError
from yolov7.loss.criterion import Criterion, LossResult, TeacherCriterion, Totals
from yolov7.loss.distillation import FEATURES, cosine_factor
from yolov7.loss.divergence import channel_divergence
from yolov7.model import Detector
from yolov7.model.heads.aligned import AlignedHead
from yolov7.model.spec import Network


@dataclass(frozen=True, eq=False)
class FeatureCriterion(TeacherCriterion):
    """`labels`, and how far the neck's maps are from those of `teacher`. Of several processes each adds its share."""

    labels: Criterion
    teacher: Detector
    names: tuple[str, ...]
    """Of the maps."""
    weight: float
    last_factor: float
    times_images: bool
    """The loss of the labels is multiplied by the number of images, and so is this."""
    totals: Totals | None = None
    factor: float = 1.0
    """Share of the weight that the epoch leaves."""

    @property
    def parts(self) -> tuple[str, ...]:
        """See :class:`Criterion`."""
        return (*self.labels.parts, FEATURES)

    def at(self, epoch: int, epochs: int) -> FeatureCriterion:
        """See :class:`Criterion`."""
        return replace(
            self, labels=self.labels.at(epoch, epochs), factor=cosine_factor(epoch, epochs, self.last_factor)
        )

    def wrap(self, model: nn.Module) -> nn.Module:
        """See :class:`Criterion`: the student with its teacher."""
        assert isinstance(model, Detector)
        return Compared(model, self.teacher, self.names)

    def __call__(self, raw: Sequence[Tensor], targets: Tensor, images: Tensor | None = None) -> LossResult:
        """Loss of a batch; `raw` as :class:`Compared` returns it."""
        own, ours, theirs = self._split(raw)
        result = self.labels(own, targets, images)
        batch = float(len(ours[0]))
        if self.totals is not None:
            (batch,) = self.totals(torch.tensor([batch], dtype=torch.float64)).tolist()
        term = sum(map(channel_divergence, ours, theirs), ours[0].new_zeros(())) / batch
        added = (self.weight * self.factor * term).float()
        total = result.total + (added * batch if self.times_images else added)
        return LossResult(total, {**result.parts, FEATURES: added.detach()})

    def _split(self, raw: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
        """The student's raw maps, its feature maps, and those of the teacher."""
        count = len(self.names)
        return raw[: -2 * count], raw[-2 * count : -count], raw[-count:]


class Compared(nn.Module):
    """A student beside its teacher: images (B, 3, H, W) -> the student's raw maps, then the maps `names` (B, F, h, w)
    of the student, and those of the teacher, which keeps its mode and has no gradient."""

    def __init__(self, student: Detector, teacher: Detector, names: tuple[str, ...]):
        super().__init__()
        self.student, self.teacher, self.names = student, teacher, names

    def forward(self, images: Tensor) -> list[Tensor]:
        """See the class."""
        raw, ours = self.student.raw_and_features(images)
        with torch.no_grad():
            theirs = self.teacher.features(images)
        return [*raw, *(ours[name] for name in self.names), *(theirs[name] for name in self.names)]

    def train(self, mode: bool = True) -> Compared:
        """Set the mode of the student alone."""
        self.training = mode
        self.student.train(mode)
        return self


def compares_classes(network: Network) -> bool:
    """True if the predictions of this network can be compared by :func:`yolov7.loss.distilled`."""
    head = network.head
    aligned = isinstance(head, AlignedHead) and issubclass(head.parameters, AlignedLoss)
    return aligned and not getattr(head, "objectness", False)


def with_features(
    labels: Criterion, student: Network, teacher: Detector, params: Train, *, totals: Totals | None = None
) -> Criterion:
    """The criterion of a `student`, made of that of the labels, which also learns from the maps of `teacher`; `labels`
    itself where `params` give that no weight.

    Raises :class:`ConfigError` for a teacher whose maps are not those of the student.
    """
    options, names = params.distillation, student.head.reads("deploy")
    if not options.features:
        return labels
    ours, theirs = student.maps(), teacher.spec.maps()
    differ = [name for name in names if ours[name] != theirs.get(name)]
    if differ:
        raise ConfigError(
            f"the teacher, a {teacher.variant}, has no map like {differ[0]!r} of {student.name}: take a teacher of the "
            "same network, or set the weight of the features to 0"
        )
    loss = params.loss
    times = loss.times_images if isinstance(loss, AlignedLoss) else isinstance(loss, AnchorLoss)
    return FeatureCriterion(
        labels=labels,
        teacher=teacher,
        names=names,
        weight=options.features,
        last_factor=options.last_factor,
        times_images=times,
        totals=totals,
    )
