"""What a network is made of, as data: named stages of blocks, and a head.

A :class:`Network` is a backbone, a neck and a head. Backbone and neck are sequences of named :class:`Stage`, each a
block applied to named maps; the head reads some of the maps. The blocks of the family stand in
`yolov7.model.block_specs`, its head in `yolov7.model.heads.anchor`. Whoever adds a block or a head writes one
frozen dataclass with the methods below, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from yolov7.config import LossParameters
from yolov7.errors import ModelError

IMAGE = "image"  # the name of the network's input among the maps


@dataclass(frozen=True)
class Map:
    """A feature map as far as the wiring knows it: channels, and pixels of the input per cell side."""

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
        """Width and stride of the output. Raises :class:`ModelError` if the maps do not go together."""
        raise ModelError(f"{type(self).__name__} does not say what it puts out")

    def build(self, channels: Sequence[int], act: str, *, merged: bool) -> nn.Module:
        """The module for inputs of these widths; `merged`: its output feeds a residual or a concatenation."""
        raise ModelError(f"{type(self).__name__} does not say how it is built")

    def scaled(self, scaling: Scaling) -> Block:
        """The block of a larger or smaller network."""
        return self

    def merges(self, position: int) -> bool:
        """Whether input number `position` goes into a concatenation or a sum with no convolution before it."""
        return False

    def single(self, maps: Sequence[Map]) -> Map:
        """The one map a block of one input takes."""
        if len(maps) != 1:
            raise ModelError(f"{type(self).__name__} takes one map, got {len(maps)}")
        return maps[0]

    def joined(self, first: Map, others: Sequence[Map]) -> Map:
        """What concatenating these maps gives."""
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


class HeadModule(Protocol):
    """What the detector asks of a head's module (it is an nn.Module besides)."""

    anchors: Tensor
    strides: tuple[int, ...]

    def leads(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps of the levels that are decoded."""
        ...

    def raw(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Raw maps of all levels: lead levels, then auxiliary ones if the form has them."""
        ...

    def decode(self, raw: Sequence[Tensor]) -> Tensor:
        """Predictions (B, N, ...) from the maps of `leads`."""
        ...


class Head(Protocol):
    """A head as data. YOLOv7's is `yolov7.model.heads.anchor.AnchorHead`; another family brings its own."""

    parameters: ClassVar[type[LossParameters]]

    def reads(self) -> tuple[str, ...]:
        """Names of the maps it takes."""
        ...

    def build(
        self, maps: Mapping[str, Map], act: str, num_classes: int, anchors: Sequence[Sequence[Sequence[float]]] | None
    ) -> nn.Module:
        """Its module, a :class:`HeadModule`."""
        ...

    def scaled(self, scaling: Scaling) -> Head:
        """The head of a larger or smaller network."""
        ...


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

    def wires(self) -> tuple[Wire, ...]:
        """Backbone and neck in order, with inputs by name. Raises :class:`ModelError` for a name that is not there."""
        stages = (*self.backbone, *self.neck)
        previous, seen, inputs = IMAGE, {IMAGE}, {}
        for stage in stages:
            if stage.name in seen or not stage.name.isidentifier():
                raise ModelError(f"{self.name}: stage {stage.name!r}: give every stage a name of its own, one word")
            inputs[stage.name] = (previous,) if stage.of is None else stage.of
            for name in inputs[stage.name]:
                if name not in seen:
                    raise ModelError(f"{self.name}: stage {stage.name!r} reads {name!r}, which no earlier stage makes")
            seen.add(stage.name)
            previous = stage.name
        for name in self.head.reads():
            if name not in seen:
                raise ModelError(f"{self.name}: the head reads {name!r}, which no stage makes")
        merged = {
            name for stage in stages for position, name in enumerate(inputs[stage.name]) if stage.block.merges(position)
        }
        return tuple(Wire(stage, inputs[stage.name], stage.name in merged) for stage in stages)

    def maps(self) -> dict[str, Map]:
        """Width and stride of every map, the input (3 channels, stride 1) included."""
        maps = {IMAGE: Map(3, 1)}
        for wire in self.wires():
            try:
                maps[wire.stage.name] = wire.stage.block.output([maps[name] for name in wire.inputs])
            except ModelError as error:
                raise ModelError(f"{self.name}: stage {wire.stage.name!r}: {error}") from None
        return maps
