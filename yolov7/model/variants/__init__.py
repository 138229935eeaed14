"""The networks that come with the library, by family, and those of users by `MODULE:FUNCTION`.

The functions of YOLOv7's networks can be imported from here too, as users' own networks do; `yolov7` is the function.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from yolov7.catalogue import Published
from yolov7.errors import ModelError, nearest
from yolov7.model.pgi import with_pgi
from yolov7.model.spec import Network
from yolov7.model.variants.records import Family, Variant
from yolov7.model.variants.yolov6 import FAMILY as YOLOV6
from yolov7.model.variants.yolov7 import FAMILY as YOLOV7
from yolov7.model.variants.yolov7 import (
    yolov7,
    yolov7_d6,
    yolov7_e6,
    yolov7_e6e,
    yolov7_tiny,
    yolov7_tiny_silu,
    yolov7_w6,
    yolov7_x,
    yolov7_x_light,
)
from yolov7.model.variants.yolov9 import FAMILY as YOLOV9

__all__ = [
    "FAMILIES",
    "VARIANTS",
    "Family",
    "Published",
    "Variant",
    "family_name",
    "family_of",
    "find_family",
    "find_record",
    "find_variant",
    "list_variants",
    "recipe_of",
    "yolov7",
    "yolov7_d6",
    "yolov7_e6",
    "yolov7_e6e",
    "yolov7_tiny",
    "yolov7_tiny_silu",
    "yolov7_w6",
    "yolov7_x",
    "yolov7_x_light",
]

FAMILIES: tuple[Family, ...] = (YOLOV7, YOLOV9, YOLOV6)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {name: variant for family in FAMILIES for name, variant in family.variants.items()}
)
"""The networks of all families by name."""

OWN_RECIPE = "p5"  # the preset of a network of the user's own


def list_variants(family: str | None = None) -> list[str]:
    """Names of the networks that come with the library, or of one family; a family's are ordered small to large.

    Raises :class:`ModelError` for an unknown family.
    """
    return list(VARIANTS if family is None else find_family(family).variants)


def find_family(name: str) -> Family:
    """The family called `name`. Raises :class:`ModelError`, naming the known ones."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ModelError(f"unknown family {name!r} (known: {known})")


def find_record(name: str) -> Variant:
    """The record of a name of `list_variants()`. Raises :class:`ModelError`, naming the nearest known variant."""
    if name not in VARIANTS:
        raise ModelError(f"unknown variant {name!r}{nearest(name, list_variants())}")
    return VARIANTS[name]


def family_of(name: str) -> Family:
    """The family of a name of `list_variants()`. Raises :class:`ModelError` as :func:`find_record` does."""
    find_record(name)
    return next(family for family in FAMILIES if name in family.variants)


def family_name(name: str) -> str | None:
    """Name of the variant's family; None for a network of the user's own."""
    return family_of(name).name if name in VARIANTS else None


def recipe_of(name: str) -> str:
    """The preset a variant was published with; that of P5 networks for a network of the user's own."""
    return VARIANTS[name].recipe if name in VARIANTS else OWN_RECIPE


def find_variant(name: str, *, source: str = "", pgi: str = "") -> Network:
    """The network of a name of `list_variants()`; with `source`, what MODULE:FUNCTION returns, called `name`.

    `name` itself may be MODULE:FUNCTION too; the network then keeps the name it gives itself. With `pgi` it is
    trained with that part (:func:`yolov7.model.pgi.with_pgi`) instead of its own. Raises :class:`ModelError` that
    names the nearest known variant or part, or says what is wrong with the function.
    """
    network = _found(name, source)
    return with_pgi(network, pgi) if pgi else network


def _found(name: str, source: str) -> Network:
    if source:
        return replace(_defined_at(source), name=name)
    if ":" in name:
        return _defined_at(name)
    return find_record(name).network()


def _defined_at(source: str) -> Network:
    module_name, _, function_name = source.partition(":")
    if not module_name or not function_name:
        raise ModelError(f"network {source!r}: MODULE:FUNCTION is expected, for example my_networks:small")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, ValueError) as error:
        raise ModelError(f"network {source!r}: module {module_name!r} cannot be imported: {error}") from None
    except AttributeError:
        raise ModelError(f"network {source!r}: module {module_name!r} has no {function_name!r}") from None
    network = function() if callable(function) else function
    if not isinstance(network, Network):
        raise ModelError(f"network {source!r}: {function_name} must return a Network, got {type(network).__name__}")
    return network
