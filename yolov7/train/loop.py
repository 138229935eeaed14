"""The training loop: one trainer for every variant, with exact resume and guards for long runs.

Source: training sheet, section 2 (optimiser, warm-up, accumulation, EMA) and 9 (evaluation). The loss comes from the
model's head, so every head and auxiliary head is trained by this one trainer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from yolov7.augment.device_color import jitter_batch
from yolov7.augment.multi_scale import multi_scale_size, resize_batch
from yolov7.config import Train
from yolov7.data.dataset import TrainDataset
from yolov7.data.index import Index
from yolov7.data.loader import Batch, TrainLoader
from yolov7.data.tally import Tally
from yolov7.data.workers import lost_workers_explained
from yolov7.device import allow_tf32, pins_memory, step_memory_kept
from yolov7.errors import ConfigError, TrainingError
from yolov7.evaluate import EVALUATION
from yolov7.evaluate.left_out import uncounted_objects
from yolov7.model import Detector, ModelMetadata, save_checkpoint
from yolov7.train.class_weights import class_weights, image_weights
from yolov7.train.distributed import Processes, share_of_batch
from yolov7.train.guard import Guard, memory_advice
from yolov7.train.learner import Learner
from yolov7.train.records import Listener, Outcome, Position
from yolov7.train.reporter import Reporter
from yolov7.train.schedule import Schedule
from yolov7.train.snapshot import restore, snapshot
from yolov7.train.state import StateFolder, TrainingState
from yolov7.train.unused import find_unused, report_tally, report_unused, with_unreadable
from yolov7.train.validation import validation_figures

BEST = "best.safetensors"
LAST = "last.safetensors"
_WORTH_SAVING_SECONDS = 60.0
"""Progress older than this is saved before a validation, which may fail (an image, memory, a kill)."""


class Trainer:
    """Trains `model` on `train_index` and selects by COCO AP on `val_index`.

    One of several `processes` takes its share of every batch and of the evaluation. The first of them alone reads and
    writes states, writes weights and has listeners. `teacher` is what `params.distill_from` names, loaded. With
    `evaluate_first` the weights that `model` has are the best until those of an epoch are better.
    """

    def __init__(
        self,
        model: Detector,
        *,
        train_index: Index,
        val_index: Index,
        params: Train,
        states: StateFolder,
        metadata: ModelMetadata,
        listeners: Iterable[Listener] = (),
        device: torch.device | None = None,
        workers: int = 0,
        stop: Callable[[], bool] = lambda: False,
        processes: Processes | None = None,
        teacher: Detector | None = None,
        evaluate_first: bool = False,
    ):
        _check_side(params.image_size, model.stride)
        self.params = params
        self.device = device or torch.device("cpu")
        self.processes = processes or Processes()
        self.train_index, self.val_index = train_index, val_index
        self.states, self.metadata = states, metadata
        self.workers, self.stop = workers, stop
        self.share = share_of_batch(params.batch_size, self.processes.world_size)
        allow_tf32(self.device, params.tf32)
        self.loader = self._loader()
        self.schedule = Schedule(
            optimizer=params.optimizer,
            epochs=params.epochs,
            batches_per_epoch=self.loader.batches_per_epoch,
            batch_size=params.batch_size,
        )
        self.guard = Guard(self.processes, params.max_bad_batches, params.max_bad_images, states.folder)
        self.learner = Learner(
            model,
            params,
            self.schedule,
            class_weights=class_weights(params.class_weights, train_index),
            device=self.device,
            processes=self.processes,
            teacher=teacher,
        )
        self.model = self.learner.model
        told, parts = listeners if self.processes.main else (), self.learner.criterion.parts
        self.reporter = Reporter(
            told, params, self.schedule, parts, training_images=len(train_index), device=self.device
        )
        self.evaluate_first = evaluate_first
        self.position = Position()
        self.epoch_losses = torch.zeros(len(parts), dtype=torch.float64)
        self.saved = time.monotonic()
        self.unused: Tally | None = None

    def _loader(self) -> TrainLoader:
        params = self.params
        dataset = TrainDataset(
            self.train_index,
            image_size=params.image_size,
            augment=params.augment,
            seed=params.seed,
            epochs=params.epochs,
            cache=params.cache,
            cache_folder=params.cache_folder,
        )
        return TrainLoader(
            dataset,
            batch_size=self.share,
            workers=self.workers,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            pin_memory=pins_memory(self.device),
            weights=image_weights(params.image_sampling, self.train_index),
        )

    # The run ---------------------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Train to the end, or until `stop()`; resumes from the newest state if there is one.

        Raises :class:`TrainingError` for anything the user must decide: a state of another run, no memory, no disk,
        too many bad batches or images.
        """
        state = self.processes.share(self.processes.on_main(self.states.newest))
        if state is not None:
            self._restore(state)
        if self.processes.main:
            self.unused = self._find_unused()
        self.reporter.started(
            self.position,
            variant=self.metadata.variant,
            classes=self.model.num_classes,
            validation_images=len(self.val_index),
        )
        self.saved = time.monotonic()
        try:
            with lost_workers_explained(), step_memory_kept(self.device):
                self._run()
        finally:
            self.loader.close()
        return self._outcome()

    def _run(self) -> None:
        if self.evaluate_first and self.position.iteration == 0 and not self.position.start:
            if not self._evaluate_start():
                self._save()
                return
            self._save()
        while not self.position.finished:
            if not (self._train_epoch() and self._end_epoch()):
                self._save()
                return

    def _evaluate_start(self) -> bool:
        """Evaluate and save the weights before the first step; False if `stop()` asked for an end before that."""
        figures = self._evaluate()
        if figures is None:
            return False
        position = self.position
        position.start = {f"val/{name}": value for name, value in figures.items()}
        position.best_ap = figures["AP"]
        self._save_weights(BEST, {"epoch": position.best_epoch, **position.start})
        self.reporter.note(f"AP {position.best_ap:.4f} on the validation images before the first epoch")
        return True

    def _outcome(self) -> Outcome:
        position = self.position
        return Outcome(
            finished=position.finished,
            best=self.states.folder / BEST,
            last=self.states.folder / LAST,
            best_ap=position.best_ap,
            best_epoch=position.best_epoch,
            history=position.history,
            start=position.start,
            skipped_steps=position.skipped_steps,
            unused=self.unused and with_unreadable(self.unused, self.train_index, position.lost_images),
        )

    def _find_unused(self) -> Tally:
        """Count and report the objects that this training never uses."""
        unused = find_unused(
            self.train_index,
            self.params,
            self.learner.criterion,
            stride=self.model.stride,
            validation=self.val_index,
        )
        report_unused(unused)
        report_tally(uncounted_objects(self.val_index, max_detections=EVALUATION.max_detections), lost_only=True)
        return unused.counts

    def _train_epoch(self) -> bool:
        """The rest of the current epoch; False if `stop()` asked for an end after one of its batches."""
        position = self.position
        self.learner.train()
        started = time.monotonic()
        spent = position.epoch_seconds
        done_before = position.batch
        for batch in self.loader.epoch(position.epoch, position.batch):
            self.guard.count_bad_images(position, batch)
            self._step(batch)
            position.batch += 1
            position.iteration += 1
            now = time.monotonic()
            position.epoch_seconds = spent + now - started
            self.reporter.stepped(
                position,
                self.epoch_losses,
                seconds=now - started,
                batches=position.batch - done_before,
                learning_rate=self.learner.optimizer.param_groups[0]["lr"],
            )
            asked, due = self.processes.any(self.stop(), self._due(self.params.checkpoint_minutes * 60))
            if asked:
                return False
            if due:
                self._save()
        return True

    def _due(self, seconds: float) -> bool:
        return self.processes.main and time.monotonic() - self.saved > seconds

    def _end_epoch(self) -> bool:
        """Evaluate, save, report; False if `stop()` asked for an end before the figures were there.

        A run resumed from a state saved before the figures are there continues here.
        """
        position, params = self.position, self.params
        last = position.epoch + 1 == params.epochs
        row = self.reporter.row(position, self.epoch_losses)
        best = False
        if last or (position.epoch + 1) % params.evaluate_every == 0:
            (due,) = self.processes.any(self._due(min(_WORTH_SAVING_SECONDS, params.checkpoint_minutes * 60)))
            if due:
                self._save()
            figures = self._evaluate()
            if figures is None:
                return False
            row |= {f"val/{name}": value for name, value in figures.items()}
            # AP stays at -1 on data without objects: the first weights are as good as any.
            first = position.best_epoch < 0 and not position.start
            best = first or row["val/AP"] > position.best_ap
        if best:
            position.best_ap, position.best_epoch = row["val/AP"], position.epoch
            self._save_weights(BEST, row)
        position.history.append(row)
        position.epoch += 1
        position.batch = 0
        position.epoch_bad_images, position.unreadable, position.epoch_seconds = 0, [], 0.0
        self.epoch_losses.zero_()
        patient = params.patience == 0 or position.epoch - 1 - position.best_epoch < params.patience
        position.finished = last or not patient
        if position.finished:
            self._save_weights(LAST, row)
        self._save()
        early = f"no better validation AP for {params.patience} epochs: stopped after {position.epoch}"
        self.reporter.epoch_ended(row, best=best, note="" if patient or last else early)
        return True

    # One batch -------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> None:
        """Add the gradients of a batch, and let the optimiser use them at the end of an accumulation window."""
        position, learner = self.position, self.learner
        settings = self.schedule.at(position.iteration)
        with self._memory_advice(f"a batch of {len(batch)} images", self._side()):
            finite = self._add_gradients(batch)
            learner.share_statistics()
            if not finite:
                # The sum of the window so far is sound; only this batch is left out.
                learner.average.heal()
                self._skip("the loss is not finite", range(position.iteration, position.iteration + 1))
            if not self.schedule.steps_after(position.iteration) or not learner.has_gradients():
                return
            if not learner.update(settings):
                self._skip("a gradient is not finite", self.schedule.window(position.iteration))
            elif finite:
                position.bad_batches = 0

    def _skip(self, why: str, iterations: range) -> None:
        """Count a skipped step; the images of `iterations` have led to it."""
        batches = [divmod(iteration, self.schedule.batches_per_epoch) for iteration in iterations]
        ids = [image for epoch, batch in batches for image in self.loader.image_ids(epoch, batch)]
        self.guard.skip(self.position, why, ids)

    def _add_gradients(self, batch: Batch) -> bool:
        """Forward and backward pass; False if the loss was not finite, and then no gradient was touched."""
        images, targets = self._on_device(batch)
        raw = self.learner.raw(images)
        criterion = self.learner.criterion.at(self.position.epoch, self.params.epochs)
        self.reporter.assigned(batch, images, targets, raw, criterion)
        loss = criterion(raw, targets, images)
        figures = torch.stack([loss.total, *(loss.parts[name] for name in self.reporter.parts)])
        # One message: the losses of the whole batch, and whether one of the shares is not finite.
        figures = self.processes.sum(figures.detach().cpu().double())
        if not bool(torch.isfinite(figures[0])):
            return False
        self.epoch_losses += figures[1:]
        self.learner.backward(loss.total)
        return True

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) float32 in [0, 1], and targets, resized if the training is at several scales."""
        images = batch.images.to(self.device, non_blocking=True)
        if batch.tables is not None:
            images = jitter_batch(images, batch.tables.to(self.device, non_blocking=True))
        images = images.contiguous(memory_format=torch.channels_last).float().div_(255)
        targets = batch.targets.to(self.device, non_blocking=True)
        return resize_batch(images, targets, self._side())

    def _side(self) -> int:
        """S of the current batch."""
        if not self.params.multi_scale:
            return self.params.image_size
        place = {"seed": self.params.seed, "epoch": self.position.epoch, "batch": self.position.batch}
        return multi_scale_size(self.params.image_size, self.model.stride, **place)

    # Validation ------------------------------------------------------------------------------------------------------

    def _evaluate(self) -> dict[str, float] | None:
        """COCO figures of the averaged weights on the validation split; None if `stop()` asked for an end."""
        with self._memory_advice(f"an evaluation of {self.share} images at a time", self.params.image_size):
            return validation_figures(
                self.learner.average.model,
                self.metadata,
                self.val_index,
                self.params,
                batch_size=self.share,
                workers=self.workers,
                processes=self.processes,
                stop=self.stop,
            )

    def _memory_advice(self, load: str, side: int) -> AbstractContextManager[None]:
        half = self.share // 2 * self.processes.world_size
        return memory_advice(load, side, image_size=self.params.image_size, smaller_batch=half)

    # State -----------------------------------------------------------------------------------------------------------

    def _save_weights(self, name: str, row: dict[str, Any]) -> None:
        extra = {"epoch": row["epoch"], "val": {k: v for k, v in row.items() if k.startswith("val/")}}
        metadata = replace(self.metadata, extra={**self.metadata.extra, **extra})
        self.processes.on_main(lambda: save_checkpoint(self.states.folder / name, self.learner.average.model, metadata))

    def _save(self) -> None:
        learner = self.learner
        tensors, values = snapshot(learner.model, learner.average, learner.optimizer, learner.scaler)
        tensors["epoch_losses"] = self.epoch_losses
        values["position"] = self.position.__dict__
        self.processes.on_main(lambda: self.states.save(TrainingState(tensors, values), self.position.iteration))
        self.saved = time.monotonic()

    def _restore(self, state: TrainingState) -> None:
        learner = self.learner
        try:
            restore(state, learner.model, learner.average, learner.optimizer, learner.scaler)
            self.epoch_losses.copy_(state.tensors["epoch_losses"])
            self.position = Position(**state.values["position"])
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"{self.states.folder}: the newest training state is damaged ({reason}); delete it to resume from the "
                "one before"
            ) from None
        self.reporter.note(f"resuming at epoch {self.position.epoch}, batch {self.position.batch}")


def _check_side(image_size: int, stride: int) -> None:
    if image_size % stride:
        below = image_size // stride * stride
        raise ConfigError(
            f"train.image_size: {image_size} is not a multiple of the network's largest stride {stride}; "
            f"use {max(below, stride)} or {below + stride}"
        )
