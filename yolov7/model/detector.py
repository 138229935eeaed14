"""Builds a network from its data, and runs it: backbone, neck, head."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model import reparameterize
from yolov7.model.spec import IMAGE, HeadModule, Network, Stage
from yolov7.model.variants import find_variant

if TYPE_CHECKING:
    from yolov7.model.published.load import ImportReport

Form = Literal["training", "deploy"]
Anchors = Sequence[Sequence[Sequence[float]]]


class Stages(nn.Module):
    """A sequence of named blocks over named maps. `wanted` are the names that others read afterwards."""

    def __init__(self, network: Network, stages: Sequence[Stage], wanted: set[str]):
        super().__init__()
        maps = network.maps()
        wires = [wire for wire in network.wires() if wire.stage in stages]
        last_reader = {name: wire.stage.name for wire in wires for name in wire.inputs}
        self.steps: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        for wire in wires:
            name = wire.stage.name
            if hasattr(self, name):
                raise ModelError(f"{network.name}: stage {name!r}: this word is taken, choose another name")
            channels = [maps[source].channels for source in wire.inputs]
            self.add_module(name, wire.stage.block.build(channels, network.activation, merged=wire.merged))
            done = tuple(source for source, reader in last_reader.items() if reader == name and source not in wanted)
            self.steps.append((name, wire.inputs, done))

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the maps of these stages to `maps` and drop, as soon as they are done with, those nobody wants."""
        for name, inputs, done in self.steps:
            maps[name] = getattr(self, name)(*[maps[source] for source in inputs])
            for source in done:
                del maps[source]
        return maps


class Detector(nn.Module):
    """A detector of the family.

    `forward` in eval mode: images (B, 3, H, W) in [0, 1] -> (B, N, 5 + C): x1, y1, x2, y2 in input pixels, objectness,
    class probabilities; order level, anchor, row, column. In train mode: the raw maps, as :meth:`raw`.

    Attributes: `spec` (the network as data), `num_classes`, `form` ("training" or "deploy"), and `stride`, the largest
    of any map: image sides are multiples of it.
    """

    def __init__(self, spec: Network, num_classes: int, *, anchors: Anchors | None = None):
        super().__init__()
        if num_classes < 1:
            raise ModelError(f"number of classes: {num_classes} is not possible, at least 1 is needed")
        self.spec = spec
        self.num_classes = num_classes
        self.form: Form = "training"
        maps = spec.maps()
        self.stride = max(item.stride for item in maps.values())
        for_head = set(spec.head.reads())
        for_neck = {name for wire in spec.wires() if wire.stage in spec.neck for name in wire.inputs}
        self.backbone = Stages(spec, spec.backbone, for_neck | for_head)
        self.neck = Stages(spec, spec.neck, for_head)
        self.head = spec.head.build(maps, spec.activation, num_classes, anchors)

    @property
    def _head(self) -> HeadModule:
        return cast(HeadModule, self.head)

    @property
    def variant(self) -> str:
        """Name of the network."""
        return self.spec.name

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell side of the lead levels, small to large."""
        return self._head.strides

    @property
    def anchors(self) -> Tensor:
        """(L, A, 2) width and height in pixels."""
        return self._head.anchors

    @property
    def num_levels(self) -> int:
        """Number L of lead levels."""
        return len(self.strides)

    @property
    def has_auxiliary(self) -> bool:
        """Whether :meth:`raw` also returns auxiliary levels."""
        return len(getattr(self.head, "auxiliary", ())) > 0

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The maps the head reads, by name."""
        self._check(images)
        maps: dict[str, Tensor] = self.neck(self.backbone({IMAGE: images}))
        return maps

    def raw(self, images: Tensor) -> list[Tensor]:
        """Raw maps (B, A, h, w, 5 + C), before the sigmoid: lead levels, then auxiliary levels (training form)."""
        return self._head.raw(self.features(images))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Predictions in eval mode, raw maps in train mode; see the class."""
        if self.training:
            return self.raw(images)
        return self._head.decode(self._head.leads(self.features(images)))

    def reparameterize(self) -> Detector:
        """A new detector in deploy form and eval mode: one biased convolution per conv unit, no implicit vectors, no
        auxiliary levels. It computes the same (float32 rounding apart) and cannot be trained further.
        """
        deploy = copy.deepcopy(self)
        for name, child in list(deploy.named_children()):
            setattr(deploy, name, reparameterize.convert(child))
        deploy.form = "deploy"
        return deploy.requires_grad_(False).eval()

    def load_official(self, path: str | os.PathLike[str]) -> ImportReport:
        """Take the weights of a published checkpoint (`.pt`), read without executing anything in it.

        Deploy-form files get identity implicit vectors; of a file with another class count everything that fits is
        taken. The report says what was taken and what was left. Raises :class:`ModelError` for a file that is damaged,
        holds anything but tensors and plain metadata, or belongs to another variant.
        """
        from yolov7.model.published.load import load_published

        return load_published(self, path)

    def _check(self, images: Tensor) -> None:
        """One clear line instead of a shape error deep inside; left out of traced graphs."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            found = f"{tuple(images.shape)} {images.dtype}"
            raise ModelError(f"images: (B, 3, H, W) of floats in [0, 1] is expected, got {found}")
        largest = self.stride
        for side, name in ((images.shape[2], "height"), (images.shape[3], "width")):
            if side % largest or side == 0:
                below, above = side // largest * largest, (side // largest + 1) * largest
                fitting = f"{below} or {above}" if below else f"{above}"
                raise ModelError(
                    f"image {name} {side} is not a multiple of {self.variant}'s largest stride {largest}; "
                    f"{fitting} would do"
                )


def create_model(
    variant: str | Network,
    num_classes: int = 80,
    *,
    anchors: Anchors | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Detector:
    """A network with random weights, in training form.

    `variant` is a name of `list_variants()`, `MODULE:FUNCTION` of a network of yours, or the :class:`Network` itself.
    `anchors` (L, A, 2) in pixels replace the published ones. The same `seed` gives the same weights on every device,
    and no global generator is moved. On the `meta` device nothing is allocated. Raises :class:`ModelError`.
    """
    spec = variant if isinstance(variant, Network) else find_variant(variant)
    if device is not None and torch.device(device).type == "meta":
        with torch.device("meta"):
            return Detector(spec, num_classes, anchors=anchors)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = Detector(spec, num_classes, anchors=anchors)
    return model if device is None else model.to(device)
