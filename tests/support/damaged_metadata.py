"""Valid metadata of model files, damaged in every way JSON allows, and containers with the result inside."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import onnx
from hypothesis import strategies as st

STRANGE: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    131_072,
    10**9,
    10**60,
    float("inf"),
    float("nan"),
    "",
    "640",
    "a\x1b[31m\nb",
    "\ud800",
    "\x00",
    "x" * 100_000,
    [],
    {},
    [None],
    [[[float("nan"), 1.0]]],
    {"kind": "Network"},
    {"kind": 5},
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


@st.composite
def damaged(draw: st.DrawFn, valid: dict[str, Any]) -> str:
    """JSON text made of `valid` by: another value in a place, a key gone or twice, depth, cut text, a changed byte."""
    document = copy.deepcopy(valid)
    how = draw(st.sampled_from(["value", "value", "value", "gone", "twice", "deep", "cut", "flipped", "digits"]))
    *parents, last = draw(st.sampled_from(list(places(document))))
    inner: Any = document
    for key in parents:
        inner = inner[key]
    if how == "value":
        inner[last] = draw(st.sampled_from(STRANGE))
    elif how == "gone":
        del inner[last]
    elif how == "deep":
        inner[last] = "DEEP"
    elif how == "digits":
        inner[last] = "DIGITS"
    text = json.dumps(document)
    if how == "twice":
        key = draw(st.sampled_from(sorted(document)))
        return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(draw(st.sampled_from(STRANGE)))}}}"
    if how == "cut":
        return text[: draw(st.integers(0, len(text) - 1))]
    if how == "flipped":
        at = draw(st.integers(0, len(text) - 1))
        return text[:at] + draw(st.characters(codec="utf-8")) + text[at + 1 :]
    depth = draw(st.sampled_from([65, 900, 100_000]))
    return text.replace('"DEEP"', "[" * depth + "]" * depth).replace('"DIGITS"', "9" * 5000)


def safetensors_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a .safetensors file, and the bytes behind it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_safetensors(path: Path, header: dict[str, Any], data: bytes) -> Path:
    """The inverse of :func:`safetensors_header`."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def onnx_entries(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file."""
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def with_onnx_entry(source: Path, target: Path, key: str, value: str) -> Path:
    """An ONNX file with another text under a key of its metadata."""
    graph = onnx.load(source)
    next(entry for entry in graph.metadata_props if entry.key == key).value = value
    target.write_bytes(graph.SerializeToString())
    return target


def with_openvino_entry(source: Path, target: Path, key: str, value: str) -> Path:
    """An OpenVINO file with another text under a key of its metadata; its .bin is copied beside it."""
    lines = source.read_text(encoding="utf-8").split("\n")
    at = next(number for number, line in enumerate(lines) if line.strip().startswith(f"<{key} "))
    lines[at] = f"<{key} value={quoteattr(value)} />"
    target.write_text("\n".join(lines), encoding="utf-8")
    target.with_suffix(".bin").write_bytes(source.with_suffix(".bin").read_bytes())
    return target
