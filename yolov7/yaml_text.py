"""Read YAML within bounds, and keep every scalar also as the text that was written.

YAML 1.1, which PyYAML reads, takes `no` for false, 0402 for 258, 1:30 for 90 and `~` for nothing. Where a text is
expected, such as the name of a class, only the text as written is right, so a document holds both readings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_CHARACTERS = 4 * 2**20
"""Longest document."""
_MAX_DEPTH = 50
"""Deepest nesting of lists and mappings; also ends an alias that holds itself."""
_MAX_NODES = 500_000
"""Most values, aliases written out: a few lines of aliases of aliases stand for billions."""

_TAG = "tag:yaml.org,2002:"
_TEXT = {f"{_TAG}{name}" for name in ("str", "timestamp", "value", "merge")}
"""Tags of scalars that stay texts. Dates do: no setting of ours is one."""
_LOADER: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlError(ValueError):
    """A text is not YAML, or not within the bounds; one line."""


@dataclass(frozen=True)
class YamlDocument:
    """A document, read twice. The keys of mappings are texts as written in both."""

    value: Any
    """With the types of YAML 1.1: text, int, float, bool, None, list, dict."""
    written: Any
    """The same, with every scalar as the text that was written; empty for a value left out."""


def read_yaml(text: str) -> YamlDocument:
    """Read one document.

    Raises :class:`YamlError` for a text that is not YAML, a key given twice, a tag of no plain type, nesting deeper
    than 50, more than half a million values (aliases count as often as they are used) and more than 4 MiB.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"longer than {MAX_CHARACTERS:,} characters")
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=_LOADER)
        return YamlDocument(_Builder(written=False).build(root), _Builder(written=True).build(root))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise YamlError(" ".join(str(error).split())[:300]) from None


def _check_depth(text: str) -> None:
    """Raise :class:`YamlError` before deep nesting reaches code that recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise YamlError(f"lists and mappings are nested more than {_MAX_DEPTH} deep")


class _Builder:
    """Turns nodes into Python values."""

    def __init__(self, *, written: bool) -> None:
        self._written = written
        self._nodes = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def build(self, node: Node | None, depth: int = 0) -> Any:
        if node is None:
            return "" if self._written else None
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise YamlError("too many values, or aliases that refer to themselves")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        plain = f"{_TAG}{'seq' if isinstance(node, SequenceNode) else 'map'}"
        if node.tag != plain:
            raise _refused(node, f"the tag {node.tag.removeprefix(_TAG)!r} is not supported")
        if isinstance(node, SequenceNode):
            return [self.build(item, depth + 1) for item in node.value]
        assert isinstance(node, MappingNode)
        return self._mapping(node, depth)

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, ScalarNode):
                raise _refused(key, "a list or mapping is used as a key")
            value = self.build(item, depth + 1)
            if key.tag == f"{_TAG}merge" and isinstance(value, dict | list):
                # The first of several wins, and the mapping's own keys over all of them.
                for part in value if isinstance(value, list) else [value]:
                    if not isinstance(part, Mapping):
                        raise _refused(key, "`<<` needs a mapping, or a list of mappings")
                    merged = {**part, **merged}
            elif key.value in own:
                raise _refused(key, f"the key {key.value[:40]!r} is given twice")
            else:
                own[key.value] = value
        return {**merged, **own}

    def _scalar(self, node: ScalarNode) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if node.tag in _TEXT or (self._written and kind in ("null", "bool", "int", "float")):
            return node.value
        if kind == "null":
            return None
        if kind == "bool":
            return self._scalars.construct_yaml_bool(node)
        if kind in ("int", "float"):
            number = self._scalars.construct_yaml_int if kind == "int" else self._scalars.construct_yaml_float
            try:
                return number(node)
            except ValueError:  # thousands of digits, or a tag on a word
                return node.value
        raise _refused(node, f"the tag {kind[:40]!r} is not supported")


def _refused(node: Node, message: str) -> YamlError:
    return YamlError(f"line {node.start_mark.line + 1}: {message}")
