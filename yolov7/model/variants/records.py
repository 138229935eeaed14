"""Records of the networks that come with the library: recipe, published results, family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from yolov7.catalogue import Published
from yolov7.model.published.layout import PublishedLayout
from yolov7.model.spec import Network


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
