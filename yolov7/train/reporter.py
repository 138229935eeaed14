"""Reports of a training: the row of an epoch, and the records for its listeners."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from yolov7.config import Train
from yolov7.data.loader import Batch
from yolov7.device import peak_memory_gib
from yolov7.loss import Criterion
from yolov7.train.pictures import AssignedBatch
from yolov7.train.records import LOSS_PREFIX, Listener, Position, StartReport, StepReport
from yolov7.train.schedule import Schedule

PICTURED = 3
"""Number of first batches that are drawn with their assignment."""


class Reporter:
    """Makes the reports of one run and passes them to `listeners`; without any it only makes the rows.

    `parts` are the names of the losses. Losses are passed as sums (len(parts),) over the batches of the epoch so far.
    """

    def __init__(
        self,
        listeners: Iterable[Listener],
        params: Train,
        schedule: Schedule,
        parts: tuple[str, ...],
        *,
        training_images: int,
        device: torch.device,
    ):
        self.listeners = tuple(listeners)
        self.params, self.schedule, self.parts = params, schedule, parts
        self.training_images, self.device = training_images, device

    def started(self, position: Position, *, variant: str, classes: int, validation_images: int) -> None:
        """The training begins or resumes at `position`."""
        params = self.params
        report = StartReport(
            variant=variant,
            training_images=self.training_images,
            validation_images=validation_images,
            classes=classes,
            epochs=params.epochs,
            batch_size=params.batch_size,
            image_size=params.image_size,
            optimizer=params.optimizer.name,
            learning_rate=self.schedule.learning_rate,
            device=self.device.type,
            epoch=position.epoch,
            finished=position.finished,
        )
        for listener in self.listeners:
            listener.started(report)

    @torch.no_grad()
    def assigned(self, batch: Batch, images: Tensor, targets: Tensor, raw: list[Tensor], criterion: Criterion) -> None:
        """Show the labels and assignment of the first batches and of one of the last epoch.

        `images` and `targets` as the network saw them, `raw` its maps.
        """
        first = batch.epoch == 0 and batch.batch_index < PICTURED
        last = batch.epoch == self.params.epochs - 1 and batch.batch_index == 0
        if not self.listeners or not (first or last):
            return
        seen = AssignedBatch(
            epoch=batch.epoch,
            batch_index=batch.batch_index,
            image_ids=batch.image_ids,
            images=images[:16].mul(255).round().byte().cpu(),
            targets=targets.cpu(),
            positives=[cells.cpu() for cells in criterion.assign(raw, targets)],
            levels=criterion.levels(),
        )
        for listener in self.listeners:
            listener.assigned(seen)

    def stepped(
        self, position: Position, losses: Tensor, *, seconds: float, batches: int, learning_rate: float
    ) -> None:
        """A batch is done, the last of `batches` that took `seconds`."""
        if not self.listeners:
            return
        per_epoch = self.schedule.batches_per_epoch
        means = (losses / position.batch).tolist()
        report = StepReport(
            epoch=position.epoch,
            epochs=self.params.epochs,
            batch=position.batch,
            batches=per_epoch,
            losses=dict(zip(self.parts, means, strict=True)),
            learning_rate=learning_rate,
            images_per_second=batches * self.params.batch_size / max(seconds, 1e-9),
            seconds_left=(self.params.epochs * per_epoch - position.iteration) * seconds / batches,
            memory_gib=peak_memory_gib(self.device),
        )
        for listener in self.listeners:
            listener.stepped(report)

    def row(self, position: Position, losses: Tensor) -> dict[str, float]:
        """The line of the history for the epoch whose batches are done, without figures of a validation."""
        means = (losses / max(position.batch, 1)).tolist()
        images = min(position.batch * self.params.batch_size, self.training_images)
        return {
            "epoch": position.epoch,
            **{f"{LOSS_PREFIX}{name}": value for name, value in zip(self.parts, means, strict=True)},
            "learning_rate": self.schedule.at(position.iteration - 1).learning_rate,
            "bad_images": position.epoch_bad_images,
            "skipped_steps": position.skipped_steps,
            "images_per_second": images / max(position.epoch_seconds, 1e-9),
            "seconds": position.epoch_seconds,
        }

    def epoch_ended(self, row: dict[str, float], *, best: bool, note: str = "") -> None:
        """An epoch is over; a `note` follows its row."""
        for listener in self.listeners:
            listener.epoch_ended(row, best=best)
            if note:
                listener.note(note)

    def note(self, message: str) -> None:
        """Something worth a line."""
        for listener in self.listeners:
            listener.note(message)
