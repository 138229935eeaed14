"""Networks as JSON and back.

Every object carries the name of its kind, a dataclass. Names are looked up among the library's kinds and those that the
caller hands over, so reading a file imports and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import MappingProxyType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from yolov7.errors import ModelError
from yolov7.model import blocks, spec
from yolov7.model.variants import FAMILIES

KINDS: tuple[type, ...] = (*blocks.KINDS, *(kind for family in FAMILIES for kind in family.kinds))

LARGEST = 65_536
"""Largest number in a network read from JSON: no channel count, kernel or anchor comes near it."""


@cache
def library_kinds() -> Mapping[str, type]:
    """The kinds of the library by name."""
    return MappingProxyType(_by_name((spec.Network, spec.Stage, *KINDS), "the library"))


def own_kinds(network: spec.Network) -> dict[str, type]:
    """The kinds in a network that are not the library's, by name.

    Raises :class:`ModelError` if two kinds in it have the same name: a file could not tell them apart.
    """
    known = library_kinds()
    used = _by_name(_kinds_in(network), network.name)
    return {name: kind for name, kind in used.items() if known.get(name) is not kind}


def network_to_json(network: spec.Network) -> dict[str, Any]:
    """The network as a dictionary of JSON values. Raises as :func:`own_kinds` does."""
    own_kinds(network)
    value = _plain(network)
    assert isinstance(value, dict)
    return value


def network_from_json(value: Any, *, kinds: Mapping[str, type] | None = None) -> spec.Network:
    """The network of :func:`network_to_json`. `kinds` by name come before those of the library.

    A field that is absent takes its default. Raises :class:`ModelError` for unknown kinds and fields, and for anything
    that is not a network.
    """
    network = _rebuilt(value, {**library_kinds(), **(kinds or {})})
    if not isinstance(network, spec.Network):
        raise ModelError("the header describes no network")
    return network


def _by_name(kinds: Iterator[type] | tuple[type, ...], owner: str) -> dict[str, type]:
    found: dict[str, type] = {}
    for kind in kinds:
        if found.setdefault(kind.__name__, kind) is not kind:
            places = " and ".join(item.__module__ for item in (found[kind.__name__], kind))
            raise ModelError(f"{owner}: two kinds of block are called {kind.__name__} (in {places}); rename one")
    return found


def _kinds_in(value: Any) -> Iterator[type]:
    if isinstance(value, tuple):
        for item in value:
            yield from _kinds_in(item)
    elif is_dataclass(value):
        yield type(value)
        for item in fields(value):
            yield from _kinds_in(getattr(value, item.name))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not is_dataclass(value):
        return value
    held = {item.name: getattr(value, item.name) for item in fields(value) if not _unused(item, value)}
    return {"kind": type(value).__name__} | {name: _plain(item) for name, item in held.items()}


def _unused(item: Field[Any], value: Any) -> bool:
    """True if a field that files did not have at first still has its default (see :data:`spec.ADDED`)."""
    return bool(item.metadata.get("added")) and getattr(value, item.name) == item.default


def _rebuilt(value: Any, kinds: Mapping[str, type]) -> Any:
    if isinstance(value, list):
        return tuple(_rebuilt(item, kinds) for item in value)
    if not isinstance(value, dict):
        if isinstance(value, int | float) and not abs(value) <= LARGEST:  # NaN too
            raise ModelError(f"the network holds the number {str(value)[:30]}; at most {LARGEST} is expected")
        return value
    kind = kinds.get(str(value.get("kind")))
    if kind is None:
        raise ModelError(
            f"the network has a block of kind {value.get('kind')!r}, which the library does not know; "
            "say which network it is from: `network` of load_checkpoint and load_detector, or --network MODULE:FUNCTION"
        )
    given = {name: _rebuilt(item, kinds) for name, item in value.items() if name != "kind"}
    known = {item.name: item for item in fields(kind)}
    unknown = sorted(set(given) - set(known))
    missing = [name for name, item in known.items() if name not in given and _required(item)]
    if unknown:
        raise ModelError(
            f"{kind.__name__}: fields {unknown} are unknown (known: {', '.join(sorted(known))}); "
            "the file may come from a later version"
        )
    if missing:
        raise ModelError(f"{kind.__name__}: fields {missing} are missing")
    for name, hint in _hints(kind).items():
        if name in given and not _fits(given[name], hint):
            raise ModelError(f"{kind.__name__}.{name}: {str(given[name])[:60]!r} is not of the type {hint}")
    return kind(**given)


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    """Types of a kind's fields; none if the module of a user's own kind does not let them be read."""
    try:
        return get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """True if a value read from JSON is of this type, as far as types are understood here."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_fits(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING
