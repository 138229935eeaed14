"""The identity of a training run: everything that changes its result. It decides which state the run may resume."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from yolov7.config import Train, identity_of
from yolov7.model.spec_json import network_to_json
from yolov7.model.variants import find_variant
from yolov7.train.state import FIRST

_NOT_IDENTITY = (
    "checkpoint_minutes",
    "cache",
    "cache_folder",
    "max_bad_batches",
    "max_bad_images",
    "preset",
    "weights_sha256",  # the digest of the file itself is in the identity
    "scales",  # its digest is in the identity
    "first_epochs",  # of the first of two trainings, whose `epochs` they are
    "distill_from",  # its digest is in the identity
)
"""Parameters that leave the result as it is, so that a run may resume with others."""


_OF_TEACHER = ("distillation", "distill_sha256")
"""Parameters that change nothing without a teacher; the recipes of some variants set them."""


def run_identity(
    variant: str, train: Train, data: dict[str, Any], weights: str | None, *, first: str | None = None
) -> dict[str, Any]:
    """Network, parameters that change the result, data (`dataset.json`) and start weights by their sha256.

    `first` is the fingerprint of the training whose weights this one needs.
    """
    without = _NOT_IDENTITY if train.distill_from else (*_NOT_IDENTITY, *_OF_TEACHER)
    parameters = {k: v for k, v in identity_of(train).items() if k not in without}
    # A user's own network may change behind its name.
    network = network_to_json(find_variant(variant, source=train.network)) if train.network else None
    identity = {"variant": variant, "network": network, "train": parameters, "data": data["sha256"], "weights": weights}
    return identity if first is None else {**identity, FIRST: first}


def fingerprint(identity: dict[str, Any]) -> str:
    """Twelve hex digits of the identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
