"""Records a training in its MLflow journal, with pictures of its first batches."""

from __future__ import annotations

import logging
from pathlib import Path

from stages.registry.journal import RunJournal
from yolov7.train.pictures import AssignedBatch, draw_batch
from yolov7.train.records import StartReport, StepReport

log = logging.getLogger(__name__)


class Recorder:
    """Listener that sends a row per epoch and the pictures; `folder` is where the pictures are drawn."""

    def __init__(self, journal: RunJournal, folder: Path, class_names: tuple[str, ...]):
        self.journal, self.folder, self.class_names = journal, folder, class_names

    def started(self, report: StartReport) -> None:
        """Reopen a run that had ended: stopped on request, or failed."""
        if not report.finished:
            self.journal.reopen()

    def assigned(self, batch: AssignedBatch) -> None:
        """Draw the labels of a batch, and which predictions learn them."""
        for path in draw_batch(batch, self.class_names, self.folder):
            self.journal.artifact(path, "pictures")

    def stepped(self, report: StepReport) -> None:
        """Ignore single steps: the epoch's row sums them up."""

    def epoch_ended(self, row: dict[str, float], *, best: bool) -> None:
        """Record the figures of an epoch."""
        self.journal.metrics({k: v for k, v in row.items() if k != "epoch"}, step=int(row["epoch"]))

    def note(self, message: str) -> None:
        """Ignore notes: they are for the person at the terminal."""
