"""Read YAML, and keep every scalar also as the text that was written; bounds as in :mod:`yolov7.documents`.

YAML 1.1, which PyYAML reads, takes `no` for false, 0402 for 258, 1:30 for 90 and `~` for nothing. Where a text is
expected, such as the name of a class, only the text as written is right, so a document holds both readings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from yolov7.documents import parse_yaml

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class YamlDocument:
    """A document, read twice. The keys of mappings are texts as written in both."""

    value: Any
    """With the types of YAML 1.1, but dates as texts: text, int, float, bool, None, list, dict."""
    written: Any
    """The same, with every scalar as the text that was written; empty for a value left out."""


def read_yaml(text: str) -> YamlDocument:
    """Read one document.

    Raises :class:`yolov7.documents.DocumentError` as :func:`yolov7.documents.parse_yaml`, and for a key given twice and
    a key that is a list or mapping.
    """
    value = parse_yaml(text, loader=_Typed)
    written = parse_yaml(text, loader=_Written)
    return YamlDocument(value, "" if written is None else written)


class _Typed(yaml.SafeLoader):
    """Keys are texts as written; so are dates, `=` and `<<`, and numbers that Python cannot hold."""

    def construct_plain_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused(key, "a list or mapping is used as a key")
            value = self.construct_object(item, deep=True)
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

    def construct_plain_list(self, node: yaml.SequenceNode) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def construct_text(self, node: yaml.ScalarNode) -> str:
        return node.value

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        number = self.construct_yaml_int if node.tag == f"{_TAG}int" else self.construct_yaml_float
        try:
            return number(node)
        except ValueError:
            return node.value


class _Written(_Typed):
    """Every scalar is a text as written."""


def _refused(node: yaml.Node, message: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


for _loader in (_Typed, _Written):
    _loader.add_constructor(f"{_TAG}map", _loader.construct_plain_mapping)
    _loader.add_constructor(f"{_TAG}seq", _loader.construct_plain_list)
    for _kind in ("timestamp", "value", "merge"):
        _loader.add_constructor(f"{_TAG}{_kind}", _loader.construct_text)
    for _kind in ("int", "float"):
        _loader.add_constructor(f"{_TAG}{_kind}", _loader.construct_number)
for _kind in ("null", "bool", "int", "float"):
    _Written.add_constructor(f"{_TAG}{_kind}", _Written.construct_text)
