"""Fault tolerance for long runs: skipped steps and images, and limits beyond which the run aborts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from yolov7.data.loader import Batch
from yolov7.device import is_out_of_memory
from yolov7.errors import TrainingError
from yolov7.train.distributed import Processes
from yolov7.train.records import Position

log = logging.getLogger(__name__)

_SHOWN_IDS = 16
"""Image ids named in the log line of a skipped step."""


@contextmanager
def memory_advice(load: str, side: int, *, image_size: int, smaller_batch: int) -> Iterator[None]:
    """Turn running out of memory into a :class:`TrainingError` that names the load and says what to try.

    `side` of the images in pixels; `image_size` from the parameters; `smaller_batch` 0 if there is none.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hint = f"train.batch_size: {smaller_batch}" if smaller_batch else "a smaller train.image_size"
        if side > image_size:
            hint += f", or train.multi_scale: false, which keeps to {image_size} px"
        raise TrainingError(f"out of memory with {load} of {side} px; try {hint}") from error


@dataclass(frozen=True)
class Guard:
    """Counts skipped steps and unreadable images, and ends a run that has too many.

    The counts are part of the :class:`Position`, so a resumed run continues them. Of several processes each has a
    guard, and all count alike.
    """

    processes: Processes
    max_bad_batches: int
    """Skipped steps in a row."""
    max_bad_images: int
    """Unreadable images in one epoch."""
    states: Path
    """The folder of states, named in messages."""

    def skip(self, position: Position, why: str, ids: Sequence[int]) -> None:
        """Count a skipped step; the images `ids` have led to it."""
        position.bad_batches += 1
        position.skipped_steps += 1
        shown = ", ".join(map(str, ids[:_SHOWN_IDS])) + f" and {len(ids) - _SHOWN_IDS} more" * (len(ids) > _SHOWN_IDS)
        if self.processes.main:
            log.warning("epoch %d, batch %d skipped: %s (image ids %s)", position.epoch, position.batch, why, shown)
        if position.bad_batches > self.max_bad_batches:
            raise TrainingError(
                f"{position.bad_batches} batches in a row were skipped because {why}; the last one held the image ids "
                f"{', '.join(map(str, ids))}. Lower train.optimizer.learning_rate, or set train.precision to float32; "
                f"the checkpoint in {self.states} predates the failure"
            )

    def count_bad_images(self, position: Position, batch: Batch) -> None:
        """Count each unreadable image once an epoch: mosaics read it again and again."""
        known = set(position.unreadable)
        new = [line for line in batch.skipped if line not in known]
        if self.processes.any(bool(new)) == (False,):
            return
        gathered = self.processes.gather(new)
        images = self.processes.gather([batch.unreadable[line] for line in new if line in batch.unreadable])
        new = self.processes.on_main(lambda: list(dict.fromkeys(gathered)))
        position.lost_images = self.processes.on_main(lambda: sorted({*position.lost_images, *images}))
        position.unreadable += new
        position.epoch_bad_images += len(new)
        for line in new if self.processes.main else ():
            log.warning("image left out: %s", line)
        if position.epoch_bad_images > self.max_bad_images:
            raise TrainingError(
                f"{position.epoch_bad_images} training images could not be read in epoch {position.epoch} "
                f"(train.max_bad_images: {self.max_bad_images}); the last: {new[-1]}"
            )
