"""The network that a training's parameters describe, with what only training has."""

from __future__ import annotations

from yolov7.config import Train
from yolov7.model.heads.efficient import with_options, with_scaled_anchors
from yolov7.model.rep_optimizer import REP_OPTIMIZER
from yolov7.model.spec import Network
from yolov7.model.variants import find_variant


def training_network(variant: str, params: Train) -> Network:
    """The network called `variant`, or the user's own under this name, as it is trained.

    Raises :class:`ModelError` for an unknown variant, and for a network without what `params` add to or change in it.
    """
    network = find_variant(variant, source=params.network, pgi=params.auxiliary_part)
    head = params.head
    network = with_options(
        network,
        bins=head.bins,
        anchor_aided=head.anchor_aided or None,
        distributions=head.distributions or None,
        objectness=head.objectness or None,
    )
    network = with_scaled_anchors(network, params.anchor_scale)
    return REP_OPTIMIZER[params.rep_optimizer](network) if params.rep_optimizer else network
