"""A network as JSON and back. Kinds are looked up in a fixed table, so reading a file imports and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from types import MappingProxyType
from typing import Any

from yolov7.errors import ModelError
from yolov7.model import blocks, spec
from yolov7.model.variants import FAMILIES

KINDS: Mapping[str, type] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            spec.Network,
            spec.Stage,
            *blocks.KINDS,
            *(kind for family in FAMILIES for kind in family.kinds),
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
        written = [item for item in fields(value) if not _left_out(item, value)]
        return {"kind": kind} | {item.name: _plain(getattr(value, item.name)) for item in written}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _left_out(item: Field[Any], value: Any) -> bool:
    return "added" in item.metadata and getattr(value, item.name) == item.default


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
    required = {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}
    given = {name: _rebuilt(item) for name, item in value.items() if name != "kind"}
    if not required <= set(given) <= known:
        raise ModelError(f"{kind.__name__}: fields {sorted(known)} are expected, got {sorted(given)}")
    return kind(**given)
