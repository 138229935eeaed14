"""The small network of RepVGG blocks with a wider stem, under the same name."""

from __future__ import annotations

from small_rep import small_rep_network

from yolov7.model.spec import Network


def network() -> Network:
    """See the module."""
    return small_rep_network(16)
