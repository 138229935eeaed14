"""The model and everything else that a batch changes: gradients, optimiser, loss scale, averaged weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolov7.config import Train
from yolov7.device import autocast, autocast_dtype, gradient_scaler, has_fused_sgd
from yolov7.loss import Criterion, compares_classes, create_criterion, distilled, loss_of_student, with_features
from yolov7.model import Detector
from yolov7.train.distributed import Processes
from yolov7.train.ema import AveragedModel
from yolov7.train.gradient_masks import gradient_masks
from yolov7.train.optimizer import apply_settings, create_optimizer, freeze
from yolov7.train.schedule import Schedule, StepSettings
from yolov7.train.sync_batchnorm import average_statistics, synchronize_batchnorm


class Learner:
    """`model` on `device` with the criterion of its head, its optimiser and the average of its weights.

    `class_weights` (C,) multiply the class loss. Of several `processes` each has a learner; their gradients and
    weights are the same. A frozen `teacher` (:func:`yolov7.train.teacher.load_teacher`) is learned from too.
    """

    def __init__(
        self,
        model: Detector,
        params: Train,
        schedule: Schedule,
        *,
        class_weights: Sequence[float] | None,
        device: torch.device,
        processes: Processes,
        teacher: Detector | None = None,
    ):
        self.params, self.device, self.processes = params, device, processes
        self.model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.synchronized = params.sync_batchnorm and processes.world_size > 1
        if self.synchronized:
            synchronize_batchnorm(self.model, device)
        self.frozen = freeze(self.model, params.freeze)
        self.criterion = self._criterion(class_weights, teacher)
        self.network = processes.wrap(self.criterion.wrap(self.model))
        if params.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        decay, fused = schedule.weight_decay, has_fused_sgd(device)
        self.optimizer = create_optimizer(self.model, params.optimizer, weight_decay=decay, fused_sgd=fused)
        self.masks = gradient_masks(self.model, params)
        self.dtype = autocast_dtype(device, params.precision)
        self.scaler = gradient_scaler(device, self.dtype)
        self.average = AveragedModel(self.model, params.ema)

    def _criterion(self, class_weights: Sequence[float] | None, teacher: Detector | None) -> Criterion:
        """The criterion of the head; with a teacher, which moves to the device, that of both."""
        params = self.params
        loss = params.loss if teacher is None else loss_of_student(params.loss, params.distillation)
        criterion = create_criterion(
            self.model,
            image_size=params.image_size,
            class_weights=class_weights,
            totals=self.processes.totals,
            **loss.model_dump(),
        )
        if teacher is None:
            return criterion
        teacher = teacher.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.synchronized:
            synchronize_batchnorm(teacher, self.device)
        if self.model.form == "quantized" and not compares_classes(self.model.spec):
            return with_features(criterion, self.model.spec, teacher, params, totals=self.processes.totals)
        gpus = params.optimizer.published_gpus
        return distilled(criterion, self.model.spec, teacher, params.distillation, gpus=gpus)

    def train(self) -> None:
        """Put the model into training mode; frozen parts keep their statistics."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    def raw(self, images: Tensor) -> list[Tensor]:
        """The head's raw maps of images (B, 3, H, W) in [0, 1]."""
        with autocast(self.device, self.dtype):
            maps: list[Tensor] = self.network(images)
        return maps

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss of this process's share."""
        # Processes average their gradients, but those of a batch are the sum of those of its shares.
        factor = self.processes.world_size * self.params.optimizer.published_gpus
        self.scaler.scale(loss * factor).backward()

    def share_statistics(self) -> None:
        """After a forward pass in training mode: the same statistics of batch norms in all processes."""
        if not self.synchronized:
            average_statistics(self.model, self.processes)

    def has_gradients(self) -> bool:
        """True if any batch has left gradients since the last step."""
        return any(parameter.grad is not None for parameter in self.model.parameters())

    def update(self, settings: StepSettings) -> bool:
        """Take a step with the summed gradients and drop them; False, and no step, if one is not finite."""
        apply_settings(self.optimizer, settings)
        self.scaler.unscale_(self.optimizer)
        self.masks.apply()
        finite = bool(torch.isfinite(self.clipped_norm()))
        if finite:
            self.scaler.step(self.optimizer)
        # Loss scaling overshoots now and then by design: without a step the scale shrinks.
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if finite:
            self.average.update()
        return finite

    def clipped_norm(self) -> Tensor:
        """Norm of all gradients, which are clipped to `gradient_clip` on the way if that is set."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.params.optimizer.gradient_clip > 0:
            return nn.utils.clip_grad_norm_(parameters, self.params.optimizer.gradient_clip)
        return nn.utils.get_total_norm([p.grad for p in parameters])
