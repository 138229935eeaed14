"""Progress of a training for people: a live display on a terminal, elsewhere one plain line an epoch."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from yolov7.text import for_terminal
from yolov7.train.pictures import AssignedBatch
from yolov7.train.records import StartReport, StepReport, loss_parts

_PLAIN_SECONDS = 60.0


class ProgressDisplay:
    """A listener that shows the run on `console` (rich decides whether that is a terminal)."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, soft_wrap=True)
        self._bar: Progress | None = None
        self._last_line = time.monotonic()

    def started(self, report: StartReport) -> None:
        """Print the facts of the run."""
        self.console.print(
            f"{report.variant}: {report.training_images} training and {report.validation_images} validation images, "
            f"{report.classes} classes, {report.epochs} epochs of batches of {report.batch_size} at "
            f"{report.image_size} px, {report.optimizer} at {report.learning_rate:g}, on {report.device}, "
            f"from epoch {report.epoch + 1}",
            highlight=False,
            markup=False,
            emoji=False,
        )
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.add_task("epoch", text="")
            self._bar.start()

    def assigned(self, batch: AssignedBatch) -> None:
        """Nothing to show on a terminal."""

    def stepped(self, report: StepReport) -> None:
        """Move the bar; without a terminal, a line a minute, so that a log shows progress within long epochs."""
        losses = " ".join(f"{_short(name)} {value:.4f}" for name, value in report.losses.items())
        memory = f"{report.memory_gib:.1f} GiB, " if math.isfinite(report.memory_gib) else ""
        text = (
            f"{losses} lr {report.learning_rate:.2e} {report.images_per_second:.0f} img/s "
            f"{memory}{duration(report.seconds_left)} left"
        )
        if self._bar is not None:
            name = f"epoch {report.epoch + 1}/{report.epochs}"
            task = self._bar.task_ids[0]
            self._bar.update(task, description=name, completed=report.batch, total=report.batches, text=text)
        elif time.monotonic() - self._last_line > _PLAIN_SECONDS:
            where = f"epoch {report.epoch + 1}/{report.epochs} batch {report.batch}/{report.batches}"
            self._line(f"{where}: {text}")

    def epoch_ended(self, row: dict[str, float], *, best: bool) -> None:
        """One line for the epoch."""
        losses = " ".join(f"{name} {row[f'train/{name}']:.4f}" for name in loss_parts(row))
        figures = f"  AP {row['val/AP']:.3f} AP50 {row['val/AP50']:.3f}" if "val/AP" in row else ""
        mark = "  best so far" if best else ""
        speed = f"{row['images_per_second']:.0f} img/s"
        self._line(f"epoch {int(row['epoch']) + 1}: {losses}  {speed}{figures}{mark}")

    def note(self, message: str) -> None:
        """A line of its own."""
        self._line(message)

    def close(self) -> None:
        """Release the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        # A class or a file may be called [/b]: that is no markup.
        self.console.print(for_terminal(text), highlight=False, markup=False, emoji=False)


def duration(seconds: float) -> str:
    """A duration for people: `2h05m`, `3m20s`, `12s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _short(name: str) -> str:
    """Three letters of each word: `cla`, `dis-cla`."""
    return "-".join(word[:3] for word in name.split("_"))
