"""Base of the specs that are made of conv units."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from yolov7.model.spec import ADDED, Block, Scaling, widened


@dataclass(frozen=True)
class ConvBlock(Block):
    """A block of conv units: an activation of its own, and widths that grow with the network."""

    transitions: ClassVar[tuple[str, ...]] = ("out",)
    """Names of the fields that compound scaling widens as transitions."""

    act: str | None = field(default=None, kw_only=True, metadata=ADDED)
    """Activation of the block's conv units; None: the network's."""

    def scaled(self, scaling: Scaling) -> Self:
        """The block with its transitions widened."""
        widths: dict[str, Any] = {name: widened(getattr(self, name), scaling.transition) for name in self.transitions}
        return replace(self, **widths)
