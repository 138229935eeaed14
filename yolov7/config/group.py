"""The base of all groups of parameters, and the part of a group that identifies a run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    """A group of parameters: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class AddedLater:
    """Marks a field, `Annotated[float, AddedLater()]`, that revisions before it did not have.

    At its default it stays out of a run's identity (:func:`identity_of`), so that a run begun before the upgrade is
    still the same run.
    """


def identity_of(group: Group) -> dict[str, Any]:
    """The parameters as plain values (JSON types), for a run's identity.

    A field marked :class:`AddedLater` is left out while it is at its default: the identity of a run then equals the
    one that revisions before the field gave it.
    """
    values = group.model_dump(mode="json")
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, Group):
            values[name] = identity_of(value)
        later = any(isinstance(mark, AddedLater) for mark in field.metadata)
        if later and value == field.get_default(call_default_factory=True):
            del values[name]
    return values
