"""Every regular expression of the packages takes time in proportion to its text, also for a text made to hold it up."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTIONS = {"compile", "match", "fullmatch", "search", "sub", "split", "findall", "finditer"}
UNITS = [
    "a",
    "A",
    "0",
    "1",
    " ",
    "\n",
    "\r\n",
    ".",
    "-",
    "_",
    "/",
    "\\",
    "'",
    '"',
    "=",
    ":",
    "@",
    "://",
    "a/",
    "(",
    "[",
]
UNITS += ["0.", ".0", "1e", "' ", "Stage '", "https://", "x@", "a.b", ") ", "\\u00", "\t", "é"]
LENGTH = 30_000
SECONDS = 1.0
"""A linear pattern needs some milliseconds for a text of this length, a quadratic one many seconds."""


def patterns() -> Iterator[tuple[str, str | bytes, int, str]]:
    """Place, pattern, flags, and how it is used, of every expression that is written as text."""
    for file in sorted(path for package in ("stages", "yolov7", "flows") for path in (ROOT / package).rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if not re.search(r"\bre\.", source):
            continue
        tree = ast.parse(source)
        names = {id(node.value): node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign)}
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Attribute(ast.Name("re"), used), [ast.Constant() as first, *others]):
                    pass
                case _:
                    continue
            if used not in FUNCTIONS:
                continue
            if used == "compile":
                name = re.escape(ast.unparse(names[id(node)])) if id(node) in names else "$none"
                anywhere = re.search(rf"\b{name}\.(search|sub|split|findall|finditer)\(", source)
                used = "search" if anywhere else "match"
            text = ast.unparse(others[-1]) if others else ""
            flags = sum(
                int(getattr(re, flag)) for flag in ("IGNORECASE", "DOTALL", "MULTILINE", "ASCII") if flag in text
            )
            yield f"{file.relative_to(ROOT)}:{node.lineno}", first.value, flags, used


FOUND = list(patterns())


def test_the_patterns_are_found() -> None:
    assert len(FOUND) > 30


@pytest.mark.parametrize(("place", "pattern", "flags", "used"), FOUND, ids=[f"{found[0]}" for found in FOUND])
def test_no_text_holds_a_pattern_up(place: str, pattern: str | bytes, flags: int, used: str) -> None:
    expression = re.compile(pattern, flags)
    looks = [expression.search] if used not in ("match", "fullmatch") else [expression.match, expression.fullmatch]
    literal = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    starts = ["", *re.findall(r"[A-Za-z:/']{3,}", literal)]
    for unit in [*UNITS, *starts[1:]]:
        for start in starts[:3]:
            text = start + unit * (LENGTH // len(unit)) + "\0"
            for look in looks:
                before = time.process_time()
                look(text if isinstance(pattern, str) else text.encode())
                taken = time.process_time() - before
                assert taken < SECONDS, f"{place}: {taken:.1f} s for {start!r} and {unit!r} repeated"
