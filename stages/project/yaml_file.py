"""Read a YAML document of foreign origin: bounded in size, depth and number of values.

PyYAML recurses once per level, an alias may stand for a document of any size, and a number of thousands of digits
raises an error that is not its own. The stream of events is counted first, in time linear in the text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_MOST_CHARACTERS = 1_000_000
_MOST_LEVELS = 50
_MOST_VALUES = 100_000
"""Every alias counts as all the values that it stands for."""

_LONG_NUMBER = re.compile(r"[-+]?[0-9a-fA-FxXoO_:]{400,}")


def load_yaml(text: str) -> Any:
    """The document. Raises :class:`ValueError` for everything that is not one, `yaml.YAMLError` included."""
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{len(text):,} characters; {_MOST_CHARACTERS:,} are allowed")
    try:
        _count(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    # Tags such as `!!bool x`, and `!!timestamp x`, fail in PyYAML's constructors.
    except (KeyError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"a value does not fit its tag: {error}") from None


def _count(text: str) -> None:
    """Raise :class:`ValueError` for a document with too many levels or values."""
    sizes: dict[str, int | None] = {}
    # Of each open collection: its anchor, and the number of values before it.
    opened: list[tuple[str | None, int]] = []
    values = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, values))
            values += 1
            if event.anchor is not None:
                sizes[event.anchor] = None
            if len(opened) > _MOST_LEVELS:
                raise ValueError(f"more than {_MOST_LEVELS} levels{_place(event)}")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = values - before
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", 1)
            if size is None:
                raise ValueError(f"*{event.anchor} names a value that contains it")
            values += size
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.style is None and _LONG_NUMBER.fullmatch(event.value):
                raise ValueError(f"a number of {len(event.value):,} characters{_place(event)}")
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if values > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values, with aliases replaced")


def _place(event: yaml.Event) -> str:
    return "" if event.start_mark is None else f" at line {event.start_mark.line + 1}"
