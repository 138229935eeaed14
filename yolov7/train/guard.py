"""What may go wrong in a long run, what is left out for it, and how often before the run stops."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolov7.config import Train
from yolov7.data.loader import Batch, TrainLoader
from yolov7.device import is_out_of_memory
from yolov7.errors import TrainingError
from yolov7.train.distributed import Processes
from yolov7.train.records import Position
from yolov7.train.schedule import Schedule

log = logging.getLogger(__name__)

_SHOWN_IDS = 16
"""So many image ids are in the line about a skipped step."""


class Guard:
    """Counts skipped steps and unreadable images, up to the limits of `params`, and explains what ends a run.

    The counts are part of the :class:`Position`, so that a resumed run goes on counting. Of several processes each has
    one, and all count alike. `states`: the folder that messages point to.
    """

    def __init__(
        self, params: Train, processes: Processes, loader: TrainLoader, schedule: Schedule, *, share: int, states: Path
    ):
        self.params, self.processes, self.loader, self.schedule = params, processes, loader, schedule
        self.share, self.states = share, states

    @contextmanager
    def memory_advice(self, load: str, side: int) -> Iterator[None]:
        """Turn running out of memory into an error that says under what load, and what to try."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            given, half = self.params.image_size, self.share // 2 * self.processes.world_size
            hint = f"train.batch_size: {half}" if half else "a smaller train.image_size"
            if side > given:
                hint += f", or train.multi_scale: false, which keeps to {given} px"
            raise TrainingError(f"out of memory with {load} of {side} px; try {hint}") from error

    def window(self, iteration: int) -> range:
        """The iterations whose gradients are summed after this one: all since the last step."""
        first = iteration
        while first and (first - 1) % self.schedule.at(first - 1).accumulate:
            first -= 1
        return range(first, iteration + 1)

    def skip(self, position: Position, why: str, iterations: range) -> None:
        """Count a skipped step; the images of `iterations` have led to it."""
        batches = self.schedule.batches_per_epoch
        position.bad_batches += 1
        position.skipped_steps += 1
        ids = [image for one in iterations for image in self.loader.image_ids(*divmod(one, batches))]
        shown = ", ".join(map(str, ids[:_SHOWN_IDS])) + f" and {len(ids) - _SHOWN_IDS} more" * (len(ids) > _SHOWN_IDS)
        if self.processes.main:
            log.warning("epoch %d, batch %d skipped: %s (image ids %s)", position.epoch, position.batch, why, shown)
        if position.bad_batches > self.params.max_bad_batches:
            raise TrainingError(
                f"{position.bad_batches} batches in a row were skipped because {why}; the last one held the image ids "
                f"{', '.join(map(str, ids))}. Lower train.optimizer.learning_rate, or set train.precision to float32; "
                f"the state of {self.states} is from before"
            )

    def count_bad_images(self, position: Position, batch: Batch) -> None:
        """Every image once an epoch: a mosaic asks for it time and again."""
        known = set(position.unreadable)
        new = [line for line in batch.skipped if line not in known]
        if self.processes.any(bool(new)) == (False,):
            return
        gathered = self.processes.gather(new)
        new = self.processes.on_main(lambda: list(dict.fromkeys(gathered)))
        position.unreadable += new
        position.epoch_bad_images += len(new)
        for line in new if self.processes.main else ():
            log.warning("image left out: %s", line)
        if position.epoch_bad_images > self.params.max_bad_images:
            raise TrainingError(
                f"{position.epoch_bad_images} training images could not be read in epoch {position.epoch} "
                f"(train.max_bad_images: {self.params.max_bad_images}); the last: {new[-1]}"
            )
