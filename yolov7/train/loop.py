"""The training loop: one trainer for every variant, exact to resume, guarded against what goes wrong in long runs.

Source: training sheet, section 2 (optimiser, warm-up, accumulation, EMA) and 9 (evaluation). The loss comes from the
model's head, so networks with an auxiliary head need no trainer of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from yolov7.augment.multi_scale import multi_scale_size, resize_batch
from yolov7.config import Train
from yolov7.data.dataset import TrainDataset
from yolov7.data.index import Index
from yolov7.data.loader import Batch, TrainLoader
from yolov7.device import autocast, autocast_dtype, gradient_scaler, peak_memory_gib
from yolov7.errors import ConfigError, TrainingError
from yolov7.evaluate import evaluate
from yolov7.loss import LossResult, create_criterion
from yolov7.model import Detector, ModelMetadata, save_checkpoint
from yolov7.predict import Predictor, TorchRuntime
from yolov7.train.class_weights import class_weights
from yolov7.train.ema import AveragedModel
from yolov7.train.optimizer import apply_settings, create_optimizer, freeze
from yolov7.train.pictures import AssignedBatch
from yolov7.train.schedule import Schedule
from yolov7.train.state import StateFolder, TrainingState

log = logging.getLogger(__name__)

LOSS_PARTS = ("box", "objectness", "classification")
BEST = "best.safetensors"
LAST = "last.safetensors"
PICTURED = 3
"""So many of the first batches are shown with their assignment."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a listener is told after a batch."""

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
    """Told what happens; shows it or records it. Every method may be called again for an epoch that is resumed."""

    def started(self, trainer: Trainer) -> None:
        """Training begins or goes on."""

    def assigned(self, batch: AssignedBatch) -> None:
        """One of the few batches worth a picture is known to the last cell."""

    def stepped(self, report: StepReport) -> None:
        """A batch has been trained on."""

    def epoch_ended(self, row: dict[str, float], *, best: bool) -> None:
        """An epoch is over; `row` is its line of the history."""

    def note(self, message: str) -> None:
        """Something worth a line."""


@dataclass
class Position:
    """Where a run is. With the seed and the parameters it determines every batch to come."""

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
    epoch_seconds: float = 0.0
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training leaves."""

    finished: bool
    """False: stopped on request; the state is saved and the same call goes on."""
    best: Path
    last: Path
    best_ap: float
    best_epoch: int
    history: list[dict[str, float]]
    skipped_steps: int


class Trainer:
    """Trains `model` on `train_index` and selects by COCO AP on `val_index`."""

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
    ):
        if params.image_size % model.stride:
            below = params.image_size // model.stride * model.stride
            raise ConfigError(
                f"train.image_size: {params.image_size} is not a multiple of the network's largest stride "
                f"{model.stride}; {max(below, model.stride)} or {below + model.stride} would do"
            )
        self.params = params
        self.device = device or torch.device("cpu")
        self.model = model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train_index, self.val_index = train_index, val_index
        self.states, self.metadata = states, metadata
        self.listeners = tuple(listeners)
        self.stop = stop
        self.dataset = TrainDataset(
            train_index,
            image_size=params.image_size,
            augment=params.augment,
            seed=params.seed,
            epochs=params.epochs,
            cache=params.cache,
            cache_folder=params.cache_folder,
        )
        self.loader = TrainLoader(
            self.dataset, batch_size=params.batch_size, workers=workers, pin_memory=self.device.type == "cuda"
        )
        self.schedule = Schedule(
            optimizer=params.optimizer,
            epochs=params.epochs,
            batches_per_epoch=self.loader.batches_per_epoch,
            batch_size=params.batch_size,
        )
        self.frozen = freeze(self.model, params.freeze)
        self.optimizer = create_optimizer(self.model, params.optimizer, weight_decay=self.schedule.weight_decay)
        self.criterion = create_criterion(
            self.model,
            image_size=params.image_size,
            class_weights=class_weights(params.class_weights, train_index),
            **params.loss.model_dump(),
        )
        self.dtype = autocast_dtype(self.device, params.precision)
        self.scaler = gradient_scaler(self.device, self.dtype)
        self.average = AveragedModel(self.model, params.ema)
        self.position = Position()
        self.epoch_losses = torch.zeros(len(LOSS_PARTS), dtype=torch.float64, device=self.device)

    # The run ---------------------------------------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Train to the end, or until `stop()`; goes on from the newest state where there is one.

        Raises :class:`TrainingError` for anything the user must decide: a state of another run, no memory, no disk,
        too many bad batches or images.
        """
        state = self.states.newest()
        if state is not None:
            self._restore(state)
        for listener in self.listeners:
            listener.started(self)
        try:
            while not self.position.finished:
                if not self._train_epoch():
                    self._save()
                    break
                self._end_epoch()
        finally:
            self.loader.close()
        return self._outcome()

    def _outcome(self) -> Outcome:
        position = self.position
        return Outcome(
            finished=position.finished,
            best=self.states.folder / BEST,
            last=self.states.folder / LAST,
            best_ap=position.best_ap,
            best_epoch=position.best_epoch,
            history=position.history,
            skipped_steps=position.skipped_steps,
        )

    def _train_epoch(self) -> bool:
        """The rest of the present epoch; False if `stop()` asked for an end before its last batch."""
        position = self.position
        self.model.train()
        for module in self.frozen:
            module.eval()
        started = saved = time.monotonic()
        spent = position.epoch_seconds
        done_before = position.batch
        for batch in self.loader.epoch(position.epoch, position.batch):
            self._count_bad_images(batch)
            self._step(batch)
            position.batch += 1
            position.iteration += 1
            now = time.monotonic()
            position.epoch_seconds = spent + now - started
            self._report(now - started, position.batch - done_before, len(batch.images))
            if position.batch < self.schedule.batches_per_epoch and self.stop():
                return False
            if now - saved > self.params.checkpoint_minutes * 60:
                self._save()
                saved = time.monotonic()
        return True

    def _end_epoch(self) -> None:
        position, params = self.position, self.params
        last = position.epoch + 1 == params.epochs
        row = self._row()
        best = False
        if last or (position.epoch + 1) % params.evaluate_every == 0:
            row |= {f"val/{name}": value for name, value in self._evaluate().items()}
            # Without a single object to find, AP is -1 for ever: the first weights are then as good as any.
            best = position.best_epoch < 0 or row["val/AP"] > position.best_ap
        if best:
            position.best_ap, position.best_epoch = row["val/AP"], position.epoch
            self._save_weights(BEST, row)
        position.history.append(row)
        position.epoch += 1
        position.batch = 0
        position.epoch_bad_images, position.epoch_seconds = 0, 0.0
        self.epoch_losses.zero_()
        patient = params.patience == 0 or position.epoch - 1 - position.best_epoch < params.patience
        position.finished = last or not patient
        if position.finished:
            self._save_weights(LAST, row)
        self._save()
        for listener in self.listeners:
            listener.epoch_ended(row, best=best)
            if not patient and not last:
                listener.note(f"no better validation AP for {params.patience} epochs: stopped after {position.epoch}")

    # One batch -------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> None:
        position = self.position
        settings = self.schedule.at(position.iteration)
        images = batch.images.to(self.device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last).float().div_(255)
        targets = batch.targets.to(self.device, non_blocking=True)
        if self.params.multi_scale:
            place = {"seed": self.params.seed, "epoch": position.epoch, "batch": position.batch}
            size = multi_scale_size(self.params.image_size, self.model.stride, **place)
            images, targets = resize_batch(images, targets, size)
        try:
            with autocast(self.device, self.dtype):
                raw = self.model.raw(images)
            loss = self.criterion(raw, targets)
            finite = bool(torch.isfinite(loss.total))
            if finite:
                self.scaler.scale(loss.total).backward()
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            hint = f"train.batch_size: {len(images) // 2}" if len(images) > 1 else "a smaller train.image_size"
            given = f"{len(images)} images of {images.shape[2]} px"
            raise TrainingError(f"out of memory with a batch of {given}; try {hint}") from error
        self._show_assignment(batch, images, targets, raw)
        if not finite:
            self._skip(batch, "the loss is not finite")
            return
        self._add_losses(loss)
        if position.iteration % settings.accumulate:
            return
        apply_settings(self.optimizer, settings)
        self.scaler.unscale_(self.optimizer)
        if not bool(torch.isfinite(self._gradient_norm())):
            # Loss scaling overshoots now and then by design: the scale shrinks and the step is left out.
            self.scaler.update(self.scaler.get_scale() / 2 if self.scaler.is_enabled() else None)
            self._skip(batch, "a gradient is not finite")
            return
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        position.bad_batches = 0

    @torch.no_grad()
    def _show_assignment(self, batch: Batch, images: Tensor, targets: Tensor, raw: list[Tensor]) -> None:
        """Show the listeners what the first batches, and one of the last epoch, are made of; changes nothing."""
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
            positives=[cells.cpu() for cells in self.criterion.assign(raw, targets)],
            anchors=self.model.anchors.cpu(),
            strides=tuple(self.model.strides),
        )
        for listener in self.listeners:
            listener.assigned(seen)

    def _gradient_norm(self) -> Tensor:
        """Norm of all gradients, which are clipped to `gradient_clip` on the way if that is set."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.params.optimizer.gradient_clip > 0:
            return nn.utils.clip_grad_norm_(parameters, self.params.optimizer.gradient_clip, foreach=True)
        return nn.utils.get_total_norm([p.grad for p in parameters], foreach=True)

    def _skip(self, batch: Batch, why: str) -> None:
        position = self.position
        self.optimizer.zero_grad(set_to_none=True)
        position.bad_batches += 1
        position.skipped_steps += 1
        ids = ", ".join(str(image) for image in batch.image_ids[:16])
        log.warning("epoch %d, batch %d skipped: %s (image ids %s)", position.epoch, position.batch, why, ids)
        if position.bad_batches > self.params.max_bad_batches:
            raise TrainingError(
                f"{position.bad_batches} batches in a row were skipped because {why}; the last one held the image ids "
                f"{ids}. Lower train.optimizer.learning_rate, or set train.precision to float32; "
                f"the state of {self.states.folder} is from before"
            )

    def _count_bad_images(self, batch: Batch) -> None:
        if not batch.skipped:
            return
        self.position.epoch_bad_images += len(batch.skipped)
        for line in batch.skipped:
            log.warning("image left out: %s", line)
        if self.position.epoch_bad_images > self.params.max_bad_images:
            raise TrainingError(
                f"{self.position.epoch_bad_images} training images could not be read in epoch {self.position.epoch} "
                f"(train.max_bad_images: {self.params.max_bad_images}); the last: {batch.skipped[-1]}"
            )

    def _add_losses(self, loss: LossResult) -> None:
        parts = torch.stack([getattr(loss, name).detach().double().reshape(()) for name in LOSS_PARTS])
        self.epoch_losses += parts

    # Figures ---------------------------------------------------------------------------------------------------------

    def _row(self) -> dict[str, float]:
        position = self.position
        means = (self.epoch_losses / max(position.batch, 1)).tolist()
        images = min(position.batch * self.params.batch_size, len(self.dataset))
        return {
            "epoch": position.epoch,
            **{f"train/{name}": value for name, value in zip(LOSS_PARTS, means, strict=True)},
            "learning_rate": self.schedule.at(position.iteration - 1).learning_rate,
            "bad_images": position.epoch_bad_images,
            "skipped_steps": position.skipped_steps,
            "images_per_second": images / max(position.epoch_seconds, 1e-9),
            "seconds": position.epoch_seconds,
        }

    def _report(self, seconds: float, batches: int, images: int) -> None:
        if not self.listeners:
            return
        position = self.position
        left = (self.params.epochs * self.schedule.batches_per_epoch - position.iteration) * seconds / batches
        means = (self.epoch_losses / position.batch).tolist()
        report = StepReport(
            epoch=position.epoch,
            epochs=self.params.epochs,
            batch=position.batch,
            batches=self.schedule.batches_per_epoch,
            losses=dict(zip(LOSS_PARTS, means, strict=True)),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            images_per_second=batches * self.params.batch_size / max(seconds, 1e-9),
            seconds_left=left,
            memory_gib=peak_memory_gib(self.device),
        )
        for listener in self.listeners:
            listener.stepped(report)

    def _evaluate(self) -> dict[str, float]:
        """COCO figures of the averaged weights on the validation split, in the form that will be deployed."""
        runtime = TorchRuntime(self.average.model.reparameterize(), self.metadata)
        result = evaluate(
            Predictor(runtime),
            self.val_index,
            image_size=self.params.image_size,
            batch_size=self.params.batch_size,
            rectangular=self.params.evaluate_rectangular,
        )
        return result.metrics

    # State -----------------------------------------------------------------------------------------------------------

    def _save_weights(self, name: str, row: dict[str, Any]) -> None:
        extra = {"epoch": row["epoch"], "val": {k: v for k, v in row.items() if k.startswith("val/")}}
        metadata = replace(self.metadata, extra={**self.metadata.extra, **extra})
        save_checkpoint(self.states.folder / name, self.average.model, metadata)

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {"epoch_losses": self.epoch_losses}
        tensors |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.average.model.state_dict().items()}
        # In the middle of an accumulation window the summed gradients are part of the state.
        tensors |= {f"grad.{name}": p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        plain: dict[str, dict[str, Any]] = {}
        for number, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{slot}"] = value
                else:
                    plain.setdefault(str(number), {})[slot] = value
        values = {
            "position": self.position.__dict__,
            "ema_updates": self.average.updates,
            "optimizer": plain,
            "scaler": self.scaler.state_dict(),
        }
        self.states.save(TrainingState(tensors, values), self.position.iteration)

    def _restore(self, state: TrainingState) -> None:
        self.model.load_state_dict(state.part("model"))
        self.average.model.load_state_dict(state.part("ema"))
        self.average.updates = state.values["ema_updates"]
        gradients = state.part("grad")
        for name, parameter in self.model.named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(self.device)
        slots: dict[int, dict[str, Any]] = {int(n): dict(s) for n, s in state.values["optimizer"].items()}
        for name, tensor in state.part("optimizer").items():
            number, slot = name.split(".", 1)
            slots.setdefault(int(number), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if state.values["scaler"]:
            self.scaler.load_state_dict(state.values["scaler"])
        self.epoch_losses.copy_(state.tensors["epoch_losses"])
        self.position = Position(**state.values["position"])
        for listener in self.listeners:
            listener.note(f"going on from epoch {self.position.epoch}, batch {self.position.batch}")


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class of its own for it, the CPU allocator only a text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
