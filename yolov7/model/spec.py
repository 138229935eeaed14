"""Networks as data: named stages of blocks, and a head.

A :class:`Network` is a backbone, a neck and a head, and sometimes auxiliary stages that only training has. Backbone,
neck and auxiliary stages are sequences of named :class:`Stage`, each a block applied to named maps; the head reads some
of the maps. A new block or head is one frozen dataclass with the methods below, next to the module it builds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from yolov7.errors import ModelError
from yolov7.predictions import Scoring

if TYPE_CHECKING:
    from yolov7.config import LossParameters

IMAGE = "image"  # the name of the network's input among the maps

Form = Literal["training", "deploy"]
"""The stages and levels of a network that run."""
ModelForm = Literal["training", "deploy", "quantized"]
"""A detector's modules: as trained; folded for use; folded, with the rounding of int8 files inside, to be trained on
(:mod:`yolov7.model.quantized`), which has the stages and levels of deploy form."""
Part = Literal["backbone", "neck", "auxiliary"]

ADDED: Mapping[str, Any] = MappingProxyType({"added": True})
"""Metadata of a field that came after files were written: `field(default=..., metadata=ADDED)`.

Such a field stays out of a network's JSON while it has its default. So the JSON of every network that existed before
the field did is unchanged, and with it the bytes of its files and the identity of a training that was stopped.
"""


@dataclass(frozen=True)
class Map:
    """The wiring's view of a feature map: channels, and pixels of the input per cell side."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Scaling:
    """Factors of compound scaling (paper, section 3.3): depth of the blocks, width inside and between them."""

    depth: float = 1.0
    inside: float = 1.0
    transition: float = 1.0

    def layers(self, count: int, *, step: int = 1) -> int:
        """`count` convolutions made deeper, to the nearest multiple of `step`."""
        return count if self.depth == 1.0 else max(step, round(count * self.depth / step) * step)


def widened(channels: int, factor: float) -> int:
    """`channels` times `factor`, to the nearest multiple of 8."""
    return channels if factor == 1.0 else max(8, round(channels * factor / 8) * 8)


@dataclass(frozen=True)
class Block:
    """One kind of block. Subclasses are frozen dataclasses of plain numbers and words."""

    def output(self, maps: Sequence[Map]) -> Map:
        """Width and stride of the output. Raises :class:`ModelError` if the maps do not fit together."""
        raise ModelError(f"{type(self).__name__} does not define `output`")

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        """The module for inputs of these widths; `merged`: its output feeds a residual or a concatenation."""
        raise ModelError(f"{type(self).__name__} does not define `build`")

    def scaled(self, scaling: Scaling) -> Block:
        """The block of a larger or smaller network."""
        return self

    def merges(self, position: int) -> bool:
        """True if input number `position` goes into a concatenation or a sum with no convolution before it."""
        return False

    def single(self, maps: Sequence[Map]) -> Map:
        """The only map of a block with one input."""
        if len(maps) != 1:
            raise ModelError(f"{type(self).__name__} takes one map, got {len(maps)}")
        return maps[0]

    def joined(self, first: Map, others: Sequence[Map]) -> Map:
        """The concatenation of these maps."""
        if any(other.stride != first.stride for other in others):
            strides = ", ".join(str(item.stride) for item in (first, *others))
            raise ModelError(f"{type(self).__name__} cannot concatenate maps of strides {strides}")
        return Map(first.channels + sum(other.channels for other in others), first.stride)


@dataclass(frozen=True)
class Stage:
    """A named block. `of` names the maps it reads (None: the stage before it); `image` is the input."""

    name: str
    block: Block
    of: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Wire:
    """A stage with its inputs spelled out, and whether its output goes into a residual or a concatenation."""

    stage: Stage
    inputs: tuple[str, ...]
    merged: bool
    part: Part


class HeadModule(Protocol):
    """The module of a head, as the detector and the exports see it; it is an nn.Module too.

    The layout of the raw maps is the head's own: only its module and the criterion made for it know it.
    """

    strides: tuple[int, ...]
    """Pixels per cell side of the lead levels, small to large."""

    @property
    def auxiliary_levels(self) -> int:
        """Number of maps that `raw` adds to those of `leads`; 0 in deploy form."""
        ...

    def leads(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps of the levels that are decoded."""
        ...

    def outputs(self) -> list[nn.Module]:
        """Modules of the lead levels whose convolutions are the last of their path, which int8 files keep in float."""
        ...

    def raw(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps of all levels: lead levels, then auxiliary ones if the form has them."""
        ...

    def decode(self, raw: Sequence[Tensor]) -> Tensor:
        """Predictions (B, N, ...) from the maps of `leads`: x1, y1, x2, y2 in input pixels, then by `scoring`."""
        ...

    @property
    def order(self) -> str:
        """Order of the decoded predictions, for contracts."""
        ...

    def scoring(self) -> Scoring:
        """Rule that makes the score from the columns after the box."""
        ...

    def predictions(self, height: int, width: int) -> int:
        """Number N of predictions for an image of this size in pixels."""
        ...

    def decoding_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates for an image of this size in pixels of the decoding, as far as it was published as
        convolutions.
        """
        ...

    def raw_contract(self) -> dict[str, Any]:
        """Description of the maps of `leads` for a file that puts them out: shape, order, values, decoding."""
        ...


@dataclass(frozen=True, kw_only=True)
class Head:
    """One kind of head. Subclasses are frozen dataclasses; `yolov7.model.heads` has those of the library."""

    parameters: ClassVar[type[LossParameters]]
    """The group of parameters that trains it. The criterion is found by this type."""

    def reads(self, form: Form) -> tuple[str, ...]:
        """Names of the maps it takes in this form."""
        raise ModelError(f"{type(self).__name__} does not define `reads`")

    def build(self, maps: Mapping[str, Map], act: str, num_classes: int) -> nn.Module:
        """Its module in training form, a :class:`HeadModule`."""
        raise ModelError(f"{type(self).__name__} does not define `build`")

    def scaled(self, scaling: Scaling) -> Head:
        """The head of a larger or smaller network."""
        return self

    def deployed(self) -> Head:
        """The head without what only training has."""
        return self

    def current(self, module: nn.Module) -> Head:
        """The head with the values that its module holds now, where training or a file may have changed them."""
        return self


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network as data: everything but the class count and the weights."""

    name: str
    backbone: tuple[Stage, ...]
    neck: tuple[Stage, ...]
    head: Head
    activation: str = "silu"
    image_size: int = 640
    """Side of the square image the network is made for, in pixels."""
    auxiliary: tuple[Stage, ...] = field(default=(), metadata=ADDED)
    """Stages that only training has, such as a second backbone of an auxiliary branch. They read the image, maps of
    backbone and neck, and each other. Only they and the head in training form may read them."""

    def wires(self) -> tuple[Wire, ...]:
        """Backbone, neck and auxiliary stages in order, with inputs by name.

        Raises :class:`ModelError` for an input that no earlier stage makes, and for names that are taken or not words.
        """
        named: list[tuple[Stage, tuple[str, ...], Part]] = []
        seen, previous = {IMAGE}, IMAGE
        for part, stage in self._stages():
            if stage.name in seen or not stage.name.isidentifier():
                raise ModelError(f"{self.name}: stage {stage.name!r}: give every stage a name of its own, one word")
            inputs = (previous,) if stage.of is None else stage.of
            for name in inputs:
                if name not in seen:
                    raise ModelError(f"{self.name}: stage {stage.name!r} reads {name!r}, which no earlier stage makes")
            named.append((stage, inputs, part))
            seen.add(stage.name)
            previous = stage.name
        self._check_head(seen)
        # A trunk map that only auxiliary stages merge does not count: the trunk is deployed without them.
        trunk = {stage.name for stage, _, part in named if part != "auxiliary"}
        merged = {
            name
            for stage, inputs, part in named
            for position, name in enumerate(inputs)
            if stage.block.merges(position) and not (part == "auxiliary" and name in trunk)
        }
        return tuple(Wire(stage, inputs, stage.name in merged, part) for stage, inputs, part in named)

    def maps(self) -> dict[str, Map]:
        """Width and stride of every map, the input (3 channels, stride 1) included."""
        maps = {IMAGE: Map(3, 1)}
        for wire in self.wires():
            try:
                maps[wire.stage.name] = wire.stage.block.output([maps[name] for name in wire.inputs])
            except ModelError as error:
                raise ModelError(f"{self.name}: stage {wire.stage.name!r}: {error}") from None
        return maps

    def wires_of(self, form: Form) -> tuple[Wire, ...]:
        """The stages of this form. Deploy form has only those that its head reads, directly or through others."""
        wires = self.wires()
        if form == "training":
            return wires
        wanted = set(self.head.reads("deploy"))
        kept = []
        for wire in reversed(wires):
            if wire.stage.name in wanted:
                wanted.update(wire.inputs)
                kept.append(wire)
        return tuple(reversed(kept))

    def _stages(self) -> list[tuple[Part, Stage]]:
        parts: tuple[tuple[Part, tuple[Stage, ...]], ...] = (
            ("backbone", self.backbone),
            ("neck", self.neck),
            ("auxiliary", self.auxiliary),
        )
        return [(part, stage) for part, stages in parts for stage in stages]

    def _check_head(self, seen: set[str]) -> None:
        training_only = {stage.name for stage in self.auxiliary}
        for name in self.head.reads("training"):
            if name not in seen:
                raise ModelError(f"{self.name}: the head reads {name!r}, which no stage makes")
        for name in self.head.reads("deploy"):
            if name not in seen - training_only:
                why = "only training has" if name in training_only else "no stage makes"
                raise ModelError(f"{self.name}: the head reads {name!r} in deploy form, which {why}")
