"""Records of the networks that come with the library: published results, recipe, family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from yolov7.model.published.layout import PublishedLayout
from yolov7.model.spec import Network


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Published speed of a deployed network, without suppression."""

    fps: int
    """Images per second."""
    device: str
    """For example `V100`."""
    precision: str
    """For example `fp16`."""
    batch_size: int

    def conditions(self) -> str:
        """The conditions of the measurement, in words."""
        return f"one {self.device}, {self.precision}, batch {self.batch_size}, without suppression"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published results on COCO: AP in percent, and the speed where it was published."""

    ap: float
    split: str
    """Split of the measurement: `test-dev` or `val2017`."""
    image_size: int
    """Side the AP was measured at, in pixels."""
    ap50: float | None
    ap75: float | None
    source: str
    """Paper and table, or release."""
    speed: Speed | None = None

    @property
    def fps(self) -> int | None:
        """Images per second, under the conditions of `speed`."""
        return None if self.speed is None else self.speed.fps


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network that comes with the library."""

    network: Callable[[], Network]
    recipe: str
    """The preset of `train.preset` that it was published with."""
    published: Published | None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that were published together."""

    name: str
    """As `list_variants(family=...)` takes it."""
    title: str
    """As texts write it."""
    variants: Mapping[str, Variant]
    """Small to large, by name."""
    kinds: tuple[type, ...]
    """Specs beside the block language (`yolov7.model.blocks.KINDS`) that its networks are made of, such as heads."""
    layout: PublishedLayout | None
    """Of its published checkpoints; None where they cannot be read."""
