"""DVC reads its YAML with a parser in C: the same values as with ruamel's parser in Python, in half the time."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.main import CParser

ROOT = Path(__file__).resolve().parents[3]

WORDS = ["yes", "no", "on", "off", "y", "n", "true", "True", "TRUE", "~", "null", "Null", "''", '"\\u00e9"', "é"]
NUMBERS = [
    "010",
    "0o10",
    "0x1F",
    "0b11",
    "1_000",
    "1,000",
    "+1",
    "1e-3",
    "1E-3",
    "1e3",
    "1.e3",
    ".5",
    ".1e2",
    "-.inf",
    ".nan",
]
TIMES = ["2001-01-01", "12:30:45", "1:20"]
FORMS = [
    "{b: 1, c: [1, 2]}",
    "&x {b: 1}\nc: {<<: *x, d: 2}",
    "|\n  x\n   y",
    ">\n  x\n  y",
    "'b\n  c'",
    "[1,\n 2]  # c",
]


def test_it_is_there():
    assert CParser is not None, "ruamel.yaml.clib of requirements.lock is not installed"


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "prefect.yaml"])
def test_files_are_read_alike(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert YAML(typ="safe", pure=True).load(text) == YAML(typ="safe").load(text)


@pytest.mark.parametrize("value", [*WORDS, *NUMBERS, *TIMES, *FORMS])
def test_values_are_read_alike(value):
    plain, fast = (YAML(typ="safe", pure=pure).load(f"a: {value}\n") for pure in (True, False))
    assert repr(plain) == repr(fast)


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: [\n", "a: b: c\n", "\ta: 1\n"])
def test_mistakes_are_refused_alike(text):
    for pure in (True, False):
        with pytest.raises(YAMLError):
            YAML(typ="safe", pure=pure).load(text)
