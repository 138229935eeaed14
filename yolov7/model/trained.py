"""The network that a training's parameters describe, with what only training has."""

from __future__ import annotations

from yolov7.config import Train
from yolov7.model.spec import Network
from yolov7.model.variants import find_variant


def training_network(variant: str, params: Train) -> Network:
    """The network called `variant`, or the user's own under this name, as it is trained.

    Raises :class:`ModelError` for an unknown variant, and for a network without what `params` add to or change in it.
    """
    return find_variant(variant, source=params.network, pgi=params.auxiliary_part)
