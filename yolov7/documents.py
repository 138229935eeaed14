"""JSON and YAML from outside, read within bounds: size, depth, length of numbers, duplicate keys, expansion of aliases.

What passes is plain data that can be walked, copied, compared and written again without surprises. The types of the
fields are for the reader to check.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the networks are read and trained without YAML
    import yaml

MAX_DEPTH = 64
MAX_DIGITS = 100
"""Longest whole number. States of random generators have 39 digits."""
MAX_JSON = 64 * 2**20
MAX_YAML = 2**20
MAX_NODES = 200_000
"""Values in a YAML document with its aliases expanded."""


class DocumentError(ValueError):
    """A document is damaged or beyond the bounds; the message says why, in one line, without its name."""


def read_text(path: str | os.PathLike[str], limit: int) -> str:
    """A file as UTF-8 text. Raises :class:`DocumentError` for other bytes and more than `limit`, and OSError."""
    with Path(path).open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise DocumentError(f"larger than {limit >> 20} MiB")
    return _decoded(content)


def load_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file. Raises :class:`DocumentError`, and OSError where it cannot be read."""
    return parse_json(read_text(path, MAX_JSON))


def parse_json(text: str | bytes, *, any_text: bool = False) -> Any:
    """The value of a JSON text. NaN and Infinity are read as Python writes them.

    Raises :class:`DocumentError` for anything that is not JSON, deeper than `MAX_DEPTH`, with a whole number of more
    than `MAX_DIGITS`, with a key given twice, or with half a surrogate pair, which no file in UTF-8 can hold. With
    `any_text` the last is allowed: Python has the names of files that are not UTF-8 like that.
    """
    if len(text) > MAX_JSON:
        raise DocumentError(f"larger than {MAX_JSON >> 20} MiB")
    try:
        value = json.loads(
            _decoded(text) if isinstance(text, bytes) else text, parse_int=_integer, object_pairs_hook=_unique
        )
    except json.JSONDecodeError as error:
        raise DocumentError(f"not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise DocumentError(f"nested more than {MAX_DEPTH} levels deep") from None
    _check_depth(value, any_text)
    return value


def parse_yaml(text: str, *, loader: type[yaml.SafeLoader] | None = None) -> Any:
    """The value of a YAML text with one document; None for an empty one. `loader` decides the types of plain words
    (default: `yaml.SafeLoader`).

    Raises :class:`DocumentError` for anything that is not YAML, deeper than `MAX_DEPTH`, with aliases that contain
    themselves or unfold to more than `MAX_NODES` values, with a whole number of more than `MAX_DIGITS`, or with a
    control character other than a line break or tab.
    """
    import yaml

    if len(text) > MAX_YAML:
        raise DocumentError(f"larger than {MAX_YAML >> 20} MiB")
    opened = None
    try:
        opened = (loader or yaml.SafeLoader)(text)
        node = opened.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return opened.construct_document(node)
    except yaml.YAMLError as error:
        raise DocumentError(f"not YAML: {_yaml_problem(error)}") from None
    except RecursionError:
        raise DocumentError(f"nested more than {MAX_DEPTH} levels deep") from None
    except DocumentError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # Dates that do not exist, `!!int abc`, and the like: PyYAML lets the errors of its converters through.
        raise DocumentError(f"not YAML: {' '.join(str(error).split())[:300]}") from None
    finally:
        if opened is not None:
            opened.dispose()


def _yaml_problem(error: yaml.YAMLError) -> str:
    """PyYAML's words in one line, without its name for a text."""
    import yaml

    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).replace('in "<unicode string>", ', "").split())[:300]
    mark = error.problem_mark
    words = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{' '.join(words.split())[:300]} (line {mark.line + 1}, column {mark.column + 1})"


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 at byte {error.start}") from None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise DocumentError(f"a number of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"the key {twice[:60]!r} is given twice")
    return found


def _check_depth(value: Any, any_text: bool) -> None:
    """Level by level, so that no recursion of Python's is needed."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for outer in level for item in _inside(outer, any_text)]
        if not level:
            return
    raise DocumentError(f"nested more than {MAX_DEPTH} levels deep")


def _inside(value: Any, any_text: bool) -> Iterator[Any]:
    if isinstance(value, dict):
        for key in () if any_text else value:
            _check_text(key)
        yield from value.values()
    elif isinstance(value, list):
        yield from value
    elif isinstance(value, str) and not any_text:
        _check_text(value)


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DocumentError("a text with half a surrogate pair") from None


def _check_nodes(root: yaml.Node) -> None:
    """Bound what the aliases of a document unfold to. A node is measured once, however often it is named."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def measured(node: yaml.Node, depth: int) -> int:
        key = id(node)
        if key in sizes:
            return sizes[key]
        if key in open_nodes:
            raise DocumentError("an alias that contains itself")
        if depth > MAX_DEPTH:
            raise DocumentError(f"nested more than {MAX_DEPTH} levels deep")
        open_nodes.add(key)
        size = 1 + sum(measured(child, depth + 1) for child in _children(node))
        open_nodes.remove(key)
        if size > MAX_NODES:
            raise DocumentError(f"more than {MAX_NODES} values")
        sizes[key] = size
        return size

    measured(root, 0)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    import yaml

    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.ScalarNode):
        _check_scalar(node)


def _check_scalar(node: yaml.ScalarNode) -> None:
    text = node.value
    line = node.start_mark.line + 1 if node.start_mark else 0
    if node.tag == "tag:yaml.org,2002:int" and len(text) > MAX_DIGITS:
        raise DocumentError(f"a number of {len(text)} digits in line {line}")
    if not text.isprintable():
        # PyYAML refuses these as bare characters, and lets them pass as escapes ("\0").
        wrong = next((letter for letter in text if letter not in "\t\n\r" and (letter < " " or letter == "\x7f")), None)
        if wrong is not None:
            raise DocumentError(f"the control character {wrong!r} in line {line}")
        _check_text(text)
