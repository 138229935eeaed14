"""The published file behind a model's weights, as its metadata states it: address, sha256, licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolov7.text import printable

ORIGIN = "published_weights"
"""Key in the metadata's `extra`."""
_KEYS = ("address", "sha256", "licence")


def stated_origin(extra: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The entry of a model's metadata, by its key; empty if there is none. Anyone may have written it."""
    stated = extra.get(ORIGIN)
    if not isinstance(stated, dict):
        return {}
    return {ORIGIN: {key: printable(str(stated.get(key, "")))[:200] for key in _KEYS}}
