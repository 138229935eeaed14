"""Read groups of parameters from mappings: presets, overrides, and mistakes in one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from yolov7.config.group import Group
from yolov7.config.loss import AlignedLoss, AnchorLoss, LossParameters
from yolov7.config.train import PGI, Train
from yolov7.errors import ConfigError, nearest
from yolov7.presets import PRESETS, merge

G = TypeVar("G", bound=Group)


def parse(
    group: type[G],
    values: Mapping[str, Any] | None,
    *,
    where: str,
    loss: type[LossParameters] = AnchorLoss,
    written: Any = None,
) -> G:
    """Build `group` from a mapping; a mistake becomes a :class:`ConfigError` of one line.

    `where` is how the user knows the mapping, for example `params.yaml: train`. `loss` is the group that `Train.loss`
    is read as. `written` is the same mapping with all scalars as texts (:class:`yolov7.yaml_text.YamlDocument`): where
    a text is expected and YAML made something else of it, it is read as written.
    """
    given = dict(values or {})
    try:
        try:
            return group.model_validate(given, context={LossParameters: loss})
        except ValidationError as error:
            texts = {_place(item["loc"], given) for item in error.errors() if item["type"] == "string_type"}
            if written is None or not texts:
                raise
            return group.model_validate(_as_written(given, written, texts), context={LossParameters: loss})
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(group, item, where, loss) for item in error.errors())) from None


def _place(loc: tuple[str | int, ...], values: Any) -> tuple[str | int, ...]:
    """The place of an error in `values`; pydantic also puts the members of unions into it."""
    place: list[str | int] = []
    for part in loc:
        inside = part in values if isinstance(values, Mapping) else isinstance(values, list) and isinstance(part, int)
        if inside:
            values = values[part]
            place.append(part)
    return tuple(place)


def _as_written(values: Any, written: Any, texts: set[tuple[str | int, ...]], at: tuple[str | int, ...] = ()) -> Any:
    """`values` with the text as written at the places `texts`; nothing at all is a text in lists only."""
    if isinstance(values, Mapping):
        return {key: _as_written(value, written[key], texts, (*at, key)) for key, value in values.items()}
    if isinstance(values, list):
        return [_as_written(value, written[i], texts, (*at, i)) for i, value in enumerate(values)]
    keep = at not in texts or isinstance(values, str) or (values is None and not isinstance(at[-1], int))
    return values if keep else written


LOSSES: Mapping[str, type[LossParameters]] = {"yolov7": AnchorLoss, "yolov9": AlignedLoss, "yolov6": AlignedLoss}
"""The loss group of each family in :data:`yolov7.presets.PRESETS`."""


def train_parameters(
    values: Mapping[str, Any] | None, *, where: str = "params.yaml: train", recipe: str = "p5"
) -> Train:
    """Parameters of a run: a preset, with whatever `values` gives laid over it key by key.

    `recipe` is the preset the variant was published with. It is used where `values` names none, and its family is the
    one whose presets and loss parameters are valid here; a network of the user's own may name a preset of any family.
    Raises :class:`ConfigError`.
    """
    given = dict(values or {})
    family = next((family for family, presets in PRESETS.items() if recipe in presets), "")
    if not family:
        raise ConfigError(f"{where}: {recipe!r} is not a recipe{nearest(recipe, _preset_names())}")
    name = given.get("preset", "")
    if name == "":
        name = given["preset"] = recipe
    if not isinstance(name, str):
        raise ConfigError(f"{where}.preset: {name!r} is not a preset{nearest(str(name), list(PRESETS[family]))}")
    if given.get("network") and name not in PRESETS[family]:
        # A network of the user's own has the head of any family: the preset says which.
        family = next((other for other, presets in PRESETS.items() if name in presets), family)
    presets, group = PRESETS[family], LOSSES[family]
    if name not in presets:
        raise ConfigError(f"{where}.preset: {_unknown_preset(name, family)}")
    own = given.get("loss")
    if isinstance(own, LossParameters) and not isinstance(own, group):
        raise ConfigError(f"{where}.loss: {group.__name__} is expected here, got {type(own).__name__}")
    # What was given is checked alone first, so that a mistake is reported as the user wrote it.
    parse(Train, given, where=where, loss=group)
    # An empty `loss` is read as the family's group too; without one it would be the default of `Train`.
    filled = merge({"loss": {}, **presets[name]}, {"loss": _loss_of_pgi(given, where)})
    return parse(Train, merge(filled, given), where=where, loss=group)


def _loss_of_pgi(given: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The loss parameters that `pgi` sets. Raises :class:`ConfigError` where `loss` sets one of them otherwise."""
    part = given.get("pgi", "")
    implied = PGI.get(part, {})
    own = given.get("loss") or {}
    values = own if isinstance(own, Mapping) else own.model_dump()
    for name, value in implied.items():
        if values.get(name, value) != value:
            raise ConfigError(f"{where}.loss.{name}: {values[name]!r} contradicts pgi: {part}, which sets {value!r}")
    return implied


def _unknown_preset(name: str, family: str) -> str:
    """Error text for a preset that the family does not have."""
    others = [other for other, presets in PRESETS.items() if name in presets]
    if others:
        known = ", ".join(PRESETS[family])
        return f"{name!r} is a preset of {others[0]} and does not fit a network of {family} (known: {known})"
    return f"{name!r} is not a preset{nearest(name, list(PRESETS[family]))}"


def _preset_names() -> list[str]:
    return [name for presets in PRESETS.values() for name in presets]


def recipe_loss(group: type[LossParameters], recipe: str) -> dict[str, Any]:
    """The loss parameters that `recipe` sets otherwise than the defaults of `group`; none if it is another group's."""
    for family, presets in PRESETS.items():
        if recipe in presets and LOSSES[family] is group:
            return dict(presets[recipe].get("loss", {}))
    return {}


def _explain(group: type[Group], item: Any, where: str, loss: type[LossParameters]) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join([where, *path])
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(path[-1], _known_keys(group, path[:-1], loss))}"
    given = "" if isinstance(item.get("input"), dict | list) else f", got {item.get('input')!r}"[:100]
    return f"{key}: {item['msg'].removeprefix('Value error, ')}{given}"


def _known_keys(group: type[Group], path: list[str], loss: type[LossParameters]) -> list[str]:
    """Field names of the group that the path leads to; list indices and dictionary keys are stepped over."""
    for part in path:
        field = group.model_fields.get(part)
        if field is not None:
            group = next(iter(_groups_in(field.annotation)), group)
            group = loss if group is LossParameters else group
    return list(group.model_fields)


def _groups_in(annotation: Any) -> list[type[Group]]:
    if isinstance(annotation, type) and issubclass(annotation, Group):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _groups_in(part)]
