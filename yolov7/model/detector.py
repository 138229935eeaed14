"""Builds a network from its data and runs it: backbone, neck, head."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.model import reparameterize
from yolov7.model.heads.anchor import AnchorHeadModule, Anchors, with_anchors
from yolov7.model.rounding import RoundedValues
from yolov7.model.spec import IMAGE, Form, HeadModule, ModelForm, Network, Part
from yolov7.model.variants import find_variant

if TYPE_CHECKING:
    from yolov7.model.published.load import ImportReport

__all__ = ["Anchors", "Detector", "Form", "Stages", "create_model"]

FORMS: tuple[Form, ...] = ("training", "deploy")

Step = tuple[str, tuple[str, ...], tuple[str, ...]]
"""A stage, the maps it reads, and the maps whose last reader it is."""


def _steps(network: Network, part: Part, form: Form) -> list[Step]:
    """The stages of one part that run in this form, and when each map can be dropped."""
    wires = network.wires_of(form)
    wanted = set(network.head.reads(form))
    last_reader = {name: wire.stage.name for wire in wires for name in (wire.stage.name, *wire.inputs)}
    done: dict[str, list[str]] = {}
    for name, reader in last_reader.items():
        if name not in wanted:
            done.setdefault(reader, []).append(name)
    return [(wire.stage.name, wire.inputs, tuple(done.get(wire.stage.name, ()))) for wire in wires if wire.part == part]


class Stages(nn.Module):
    """One part of a network: named blocks over named maps."""

    def __init__(self, network: Network, part: Part):
        super().__init__()
        self.steps = {form: _steps(network, part, form) for form in FORMS}
        maps = network.maps()
        for wire in network.wires():
            if wire.part != part:
                continue
            name = wire.stage.name
            if hasattr(self, name):
                raise ModelError(f"{network.name}: stage {name!r}: this word is taken, choose another name")
            channels = [maps[source].channels for source in wire.inputs]
            self.add_module(name, wire.stage.block.build(channels, network.activation, merged=wire.merged))

    def forward(self, maps: dict[str, Tensor], form: Form) -> dict[str, Tensor]:
        """Add the maps of the stages that this form needs to `maps`, and drop each map after its last reader."""
        for name, inputs, done in self.steps[form]:
            maps[name] = getattr(self, name)(*[maps[source] for source in inputs])
            for source in done:
                del maps[source]
        return maps

    def reparameterize(self) -> Stages:
        """Drop the stages that only training has; those that stay convert themselves."""
        kept = {name for name, _, _ in self.steps["deploy"]}
        for name, _ in list(self.named_children()):
            if name not in kept:
                delattr(self, name)
        self.steps["training"] = self.steps["deploy"]
        return self


class Detector(nn.Module):
    """A detector: backbone, neck and head of a :class:`Network`.

    `forward` in eval mode: images (B, 3, H, W) in [0, 1] -> predictions (B, N, ...): x1, y1, x2, y2 in input pixels,
    then the columns that the head's `scoring` names, in the order of the head's `decode`. In train mode: the raw maps,
    as :meth:`raw`.

    Attributes: `num_classes`, `form` ("training", "deploy" or "quantized"), and `stride`, the largest of any map: image
    sides are multiples of it.
    """

    def __init__(self, network: Network, num_classes: int):
        super().__init__()
        if num_classes < 1:
            raise ModelError(f"number of classes: {num_classes} is not possible, at least 1 is needed")
        self.num_classes = num_classes
        self.form: ModelForm = "training"
        self._network = network
        maps = network.maps()
        self.stride = max(item.stride for item in maps.values())
        self.backbone = Stages(network, "backbone")
        self.neck = Stages(network, "neck")
        self.head = network.head.build(maps, network.activation, num_classes)
        # Last, so that the same seed gives the same network with and without auxiliary stages.
        self.auxiliary = Stages(network, "auxiliary") if network.auxiliary else None

    @property
    def _head(self) -> HeadModule:
        return cast(HeadModule, self.head)

    @property
    def spec(self) -> Network:
        """The network as data, with the values its head holds now (anchors of a published file, for example)."""
        head = self._network.head.current(self.head)
        return self._network if head is self._network.head else replace(self._network, head=head)

    @property
    def variant(self) -> str:
        """Name of the network."""
        return self._network.name

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell side of the lead levels, small to large."""
        return self._head.strides

    @property
    def anchors(self) -> Tensor:
        """(L, A, 2) width and height in pixels. Raises :class:`ModelError` for a head without anchors."""
        if not isinstance(self.head, AnchorHeadModule):
            raise ModelError(f"{self.variant}: its head has no anchors")
        return self.head.anchors

    @property
    def has_auxiliary(self) -> bool:
        """True if :meth:`raw` also returns auxiliary levels."""
        return self._head.auxiliary_levels > 0

    def decoding_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the decoding for an image of this size, where it was published as convolutions."""
        return self._head.decoding_macs(height, width)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The maps that the lead predictions are made of, by name."""
        return self._maps(images, "deploy")

    def raw(self, images: Tensor) -> list[Tensor]:
        """Raw maps of the head before any sigmoid or softmax: lead levels, then auxiliary levels (training form)."""
        return self.raw_and_features(images)[0]

    def raw_and_features(self, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The raw maps, and the maps that they are made of by name."""
        with self._rounding():
            maps = self._maps(images, "training" if self.form == "training" else "deploy")
            return self._head.raw(maps), maps

    def leads_and_features(self, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The same for the lead levels alone: nothing is computed that only training needs."""
        with self._rounding():
            maps = self.features(images)
            return self._head.leads(maps), maps

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Predictions in eval mode, raw maps in train mode; see the class."""
        if self.training:
            return self.raw(images)
        with self._rounding():
            leads = self._head.leads(self.features(images))
        return self._head.decode(leads)

    def _rounding(self) -> AbstractContextManager[object]:
        return RoundedValues() if self.form == "quantized" else nullcontext()

    def _maps(self, images: Tensor, form: Form) -> dict[str, Tensor]:
        """The maps the head reads in this form, by name."""
        self._check(images)
        maps: dict[str, Tensor] = self.neck(self.backbone({IMAGE: images}, form), form)
        if form == "training" and self.auxiliary is not None:
            maps = self.auxiliary(maps, form)
        return maps

    def reparameterize(self) -> Detector:
        """A new detector in deploy form and eval mode: one biased convolution per conv unit, no implicit vectors, and
        nothing that only training has. It computes the same (float32 rounding apart) and cannot be trained further.
        """
        deploy = copy.deepcopy(self)
        deploy.auxiliary = None
        for name, child in list(deploy.named_children()):
            setattr(deploy, name, reparameterize.convert(child))
        deploy.form = "deploy"
        return deploy.requires_grad_(False).eval()

    def inference(self) -> Detector:
        """The form to predict with: deploy form; a quantised one as it is, since it computes what its int8 files do."""
        return self.reparameterize() if self.form == "training" else self

    def deployed_only(self) -> None:
        """Forget, in deploy form, what only training has: the network as data has nothing of it either."""
        network = self.spec
        self._network = replace(network, head=network.head.deployed(), auxiliary=())

    def load_official(self, path: str | os.PathLike[str]) -> ImportReport:
        """Take the weights of a published checkpoint (`.pt`), read without executing anything in it.

        Deploy-form files get identity implicit vectors; of a file with another class count everything that fits is
        taken. The report lists the tensors taken and left. Raises :class:`ModelError` for a file that is damaged, holds
        anything but tensors and plain metadata, or belongs to another variant.
        """
        from yolov7.model.published.load import load_published

        return load_published(self, path)

    def state_of(self, network: Network) -> Mapping[str, Tensor]:
        """The tensors that this detector has after :meth:`adapt`, without values if that changes anything."""
        if network.head == self._network.head:
            return self.state_dict()
        with torch.device("meta"):
            return Detector(network, self.num_classes).state_dict()

    def adapt(self, network: Network) -> None:
        """Take the head of `network`, which has fresh weights then, if it differs from this one's."""
        if network.head == self._network.head:
            return
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            head = network.head.build(network.maps(), network.activation, self.num_classes)
        like = next(self.parameters())
        self.head = head.to(like.device, like.dtype).train(self.training)
        self._network = network

    def _check(self, images: Tensor) -> None:
        """Raise a clear error instead of a shape error deep inside; left out of traced graphs."""
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
                    f"image {name} {side} is not a multiple of {self.variant}'s largest stride {largest}; use {fitting}"
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
    `anchors` (L, A, 2) in pixels replace the network's own, see :func:`with_anchors`. The same `seed` gives the same
    weights on every device, and no global generator is moved. On the `meta` device nothing is allocated.
    Raises :class:`ModelError`.
    """
    network = variant if isinstance(variant, Network) else find_variant(variant)
    if anchors is not None:
        network = with_anchors(network, anchors)
    if device is not None and torch.device(device).type == "meta":
        with torch.device("meta"):
            return Detector(network, num_classes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = Detector(network, num_classes)
    return model if device is None else model.to(device)
