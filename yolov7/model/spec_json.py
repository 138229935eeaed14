"""A network as JSON and back. Kinds are looked up in a fixed table, so reading a file imports and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from yolov7.errors import ModelError
from yolov7.model import block_specs, spec
from yolov7.model.heads import anchor as head

KINDS: Mapping[str, type] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            block_specs.Conv,
            block_specs.RepConv,
            block_specs.SpaceToDepth,
            block_specs.MaxPool,
            block_specs.Elan,
            block_specs.StridedConv,
            block_specs.MpConv,
            block_specs.DownC,
            block_specs.SppCspc,
            block_specs.TinySpp,
            block_specs.UpConcat,
            block_specs.Concat,
            block_specs.Sum,
            spec.Stage,
            spec.Network,
            head.AnchorHead,
            head.Level,
        )
    }
)


def network_to_json(network: spec.Network) -> dict[str, Any]:
    """The network as a dictionary of what JSON holds; every object carries its kind."""
    value = _plain(network)
    assert isinstance(value, dict)
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        kind = type(value).__name__
        return {"kind": kind} | {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def network_from_json(value: Any) -> spec.Network:
    """The network of :func:`network_to_json`. Raises :class:`ModelError` for anything else."""
    network = _rebuilt(value)
    if not isinstance(network, spec.Network):
        raise ModelError("the header describes no network")
    return network


def _rebuilt(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_rebuilt(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = KINDS.get(str(value.get("kind")))
    if kind is None:
        raise ModelError(
            f"the network has a block of kind {value.get('kind')!r}, which the library does not know; "
            "give load_checkpoint your network as `network`"
        )
    known = {item.name for item in fields(kind)}
    given = {name: _rebuilt(item) for name, item in value.items() if name != "kind"}
    if set(given) != known:
        raise ModelError(f"{kind.__name__}: fields {sorted(known)} are expected, got {sorted(given)}")
    return kind(**given)
