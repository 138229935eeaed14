"""One training step with each of our choices switched on or off.

All on is the step of :class:`yolov7.train.loop.Trainer`; all off is the plain way: float16 autocast, contiguous
tensors, eager, PyTorch's default SGD, assignment image by image, float images copied from ordinary memory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from gpu_kit.reference import per_image
from gpu_kit.settings import Settings
from yolov7.augment.device_color import jitter_batch
from yolov7.config import Train, train_parameters
from yolov7.device import autocast, autocast_dtype, gradient_scaler, has_fused_sgd
from yolov7.loss import create_criterion
from yolov7.model import create_model
from yolov7.model.variants import recipe_of
from yolov7.train.ema import AveragedModel
from yolov7.train.optimizer import create_optimizer

CLASSES, OBJECTS = 80, 7
"""As in COCO, objects an image on average."""


@dataclass(frozen=True)
class Way:
    """What is switched on."""

    channels_last: bool = False
    fused_optimizer: bool = False
    batched_assigner: bool = False
    uint8_transfer: bool = False
    compile: bool = False

    def names(self) -> list[str]:
        """The options that are on."""
        return [field.name for field in fields(self) if getattr(self, field.name)]


PLAIN = Way()
OURS = Way(channels_last=True, fused_optimizer=True, batched_assigner=True, uint8_transfer=True)
OPTIONS = tuple(field.name for field in fields(Way))


def ladder() -> list[tuple[str, Way]]:
    """The plain way, and each option switched on in turn on top of those before."""
    ways = [("plain", PLAIN)]
    for option in OPTIONS:
        ways.append((f"+ {option.replace('_', ' ')}", replace(ways[-1][1], **{option: True})))
    return ways


@dataclass
class Batch:
    """Images as the loader gives them, and targets."""

    images: Tensor
    """(B, 3, S, S) uint8, in channels_last memory order; pinned if the way asks for it."""
    targets: Tensor
    """(n, 6) float32."""
    tables: Tensor | None = None
    """(B, 3, 256) uint8 of the jitter on the device, if there is any."""


def synthetic_batch(settings: Settings, side: int, *, seed: int = 0) -> Batch:
    """Noise with seven random boxes an image."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (settings.batch, side, side, 3), dtype=torch.uint8, generator=generator)
    count = settings.batch * OBJECTS
    size = (torch.rand(count, 2, generator=generator) * 0.4 + 0.03) * side
    low = torch.rand(count, 2, generator=generator) * (side - size)
    image = torch.arange(settings.batch).repeat_interleave(OBJECTS)[:, None].float()
    label = torch.randint(0, CLASSES, (count, 1), generator=generator).float()
    return Batch(images.permute(0, 3, 1, 2), torch.cat((image, label, low, low + size), 1))


def parameters(settings: Settings, variant: str, side: int) -> Train:
    """The published recipe at this side and batch."""
    values = {"image_size": side, "batch_size": settings.batch}
    return train_parameters(values, recipe=recipe_of(variant))


class Step:
    """A network in training and everything that a batch changes."""

    def __init__(self, settings: Settings, variant: str, way: Way, side: int):
        device = torch.device(settings.device)
        params = parameters(settings, variant, side)
        self.way, self.device, self.side = way, device, side
        self.model = create_model(variant, CLASSES, device=device).train()
        if way.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Behind the first epochs, some of which YOLOv6 assigns by another rule.
        self.criterion = create_criterion(self.model, image_size=side, **params.loss.model_dump()).at(100, 300)
        if not way.batched_assigner:
            self._assign_by_image()
        self.network = self.criterion.wrap(self.model)
        if way.compile:
            torch.compiler.reset()
            self.network = torch.compile(self.network, backend="eager" if settings.tiny else "inductor")  # type: ignore[assignment]
        decay = params.optimizer.weight_decay
        if way.fused_optimizer:
            fused = has_fused_sgd(device)
            self.optimizer = create_optimizer(self.model, params.optimizer, weight_decay=decay, fused_sgd=fused)
        else:
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), lr=params.optimizer.learning_rate, momentum=0.937, nesterov=True
            )
        self.dtype = autocast_dtype(device, params.precision)
        self.scaler = gradient_scaler(device, self.dtype)
        self.average = AveragedModel(self.model, params.ema)

    def _assign_by_image(self) -> None:
        for name in ("assigner", "auxiliary_assigner"):
            if getattr(self.criterion, name, None) is not None:
                setattr(self.criterion, name, per_image(getattr(self.criterion, name)))

    def on_host(self, batch: Batch) -> Batch:
        """The batch as this way's loader leaves it: bytes in pinned memory, or contiguous floats."""
        if not self.way.uint8_transfer:
            return Batch(batch.images.contiguous().float().div_(255), batch.targets)
        if self.device.type != "cuda":
            return batch
        return Batch(batch.images.pin_memory(), batch.targets.pin_memory())

    def __call__(self, batch: Batch) -> Tensor:
        """Forward, loss, backward, optimiser, average; the loss."""
        images = batch.images.to(self.device, non_blocking=self.way.uint8_transfer)
        targets = batch.targets.to(self.device, non_blocking=self.way.uint8_transfer)
        if batch.tables is not None:
            images = jitter_batch(images, batch.tables.to(self.device, non_blocking=True))
        order = torch.channels_last if self.way.channels_last else torch.contiguous_format
        images = images.contiguous(memory_format=order)
        if self.way.uint8_transfer:
            images = images.float().div_(255)
        with autocast(self.device, self.dtype):
            raw = self.network(images)
        loss = self.criterion(raw, targets, images).total
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        return loss.detach()
