"""Records of a training: reports to listeners, its position, its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from yolov7.data.tally import Tally
from yolov7.train.pictures import AssignedBatch


@dataclass(frozen=True, kw_only=True)
class StartReport:
    """A training that begins or resumes."""

    variant: str
    training_images: int
    validation_images: int
    classes: int
    epochs: int
    batch_size: int
    image_size: int
    optimizer: str
    learning_rate: float
    device: str
    """Kind of device."""
    epoch: int
    """The epoch to be trained next, from 0."""
    finished: bool
    """True if the run had ended already: nothing is left to train."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The state of a training after a batch."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    losses: dict[str, float]
    """Means over the epoch so far."""
    learning_rate: float
    images_per_second: float
    seconds_left: float
    memory_gib: float


class Listener(Protocol):
    """Shows or records the events of a training. Every method may be called again for an epoch that is resumed."""

    def started(self, report: StartReport) -> None:
        """Training begins or resumes."""

    def assigned(self, batch: AssignedBatch) -> None:
        """Called with the label assignment of each batch that is drawn."""

    def stepped(self, report: StepReport) -> None:
        """A batch has been trained on."""

    def epoch_ended(self, row: dict[str, float], *, best: bool) -> None:
        """An epoch is over; `row` is its line of the history."""

    def note(self, message: str) -> None:
        """A message for the log."""


@dataclass
class Position:
    """Position in a run. With the seed and the parameters it determines every later batch."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    iteration: int = 0
    """Batches since the start of the run."""
    best_ap: float = -1.0
    best_epoch: int = -1
    bad_batches: int = 0
    """Skipped steps in a row."""
    skipped_steps: int = 0
    """Skipped steps of the whole run."""
    epoch_bad_images: int = 0
    """Images that could not be read in this epoch."""
    unreadable: list[str] = field(default_factory=list)
    """The error message of each."""
    lost_images: list[int] = field(default_factory=list)
    """Numbers of the images that could not be read in some epoch of the run."""
    epoch_seconds: float = 0.0
    finished: bool = False
    start: dict[str, float] = field(default_factory=dict)
    """Figures of the weights that the run began with, where they are evaluated; `best_epoch` is -1 while they are the
    best."""
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a training."""

    finished: bool
    """False: stopped on request; the state is saved and the same call resumes."""
    best: Path
    last: Path
    best_ap: float
    best_epoch: int
    history: list[dict[str, float]]
    skipped_steps: int
    start: dict[str, float] = field(default_factory=dict)
    """Figures of the weights that the run began with, where they were evaluated."""
    unused: Tally | None = None
    """Training objects that the run never used, by reason and class; None in processes other than the first."""


LOSS_PREFIX = "train/"
"""Begins the columns of the history that hold the loss parts."""


def loss_parts(row: Mapping[str, float]) -> list[str]:
    """Names of the loss parts in a row of the history."""
    return [name.removeprefix(LOSS_PREFIX) for name in row if name.startswith(LOSS_PREFIX)]
