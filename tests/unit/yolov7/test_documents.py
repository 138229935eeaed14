"""JSON and YAML from outside: read within bounds, or refused in one line within a moment."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolov7.documents import MAX_DEPTH, DocumentError, load_json, parse_json, parse_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_json_comes_back(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "deep"),
        ('{"a":' * 900 + "1" + "}" * 900, "deep"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "deep"),
        ("9" * 5000, "5000 digits"),
        ('{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("", "not JSON"),
        ('{"a": 1', "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_json_beyond_the_bounds(text, message):
    with pytest.raises(DocumentError, match=message) as refused:
        parse_json(text)
    assert "\n" not in str(refused.value)


def test_names_that_are_not_utf8_may_be_allowed():
    assert parse_json('["a\\udcff"]', any_text=True) == ["a\udcff"]


def test_files_beyond_the_bounds(tmp_path):
    file = tmp_path / "huge.json"
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(DocumentError, match="larger"):
        load_json(file)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 50_000, "deep"),
        ("- " * 50_000, "deep"),
        ("".join(" " * n + "a:\n" for n in range(100)), "deep"),
        ("a: &a [*a]", "contains itself"),
        (BOMB, "values"),
        ("a: " + "9" * 5000, "5000 digits"),
        ("a: 0x" + "f" * 5000, "digits"),
        ("a: " + ":".join(["59"] * 2000), "digits"),
        ('a: "x\\0y"', "control character"),
        ('"a\\e[31m": 1', "control character"),
        ("a: \x00", "not YAML"),
        ('a: "\\ud800"', "surrogate"),
        ("a: 2020-13-45", "month"),
        ("a: !!int abc", "not YAML"),
        ("a: !!timestamp 1", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("? [a]\n: 1", "not YAML"),
        ("[1, 2", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("#" * 2_000_000, "larger"),
    ],
)
def test_yaml_beyond_the_bounds(text, message):
    start = time.monotonic()
    with pytest.raises(DocumentError, match=message) as refused:
        parse_yaml(text)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - start < 5


def test_plain_yaml_comes_back():
    assert parse_yaml("") is None
    text = 'a: [1, two, 3.0, off]\nb: &b\n  c: |\n    two\n    lines\nd: *b\ne: "tab\\t"'
    inner = {"c": "two\nlines\n"}
    assert parse_yaml(text) == {"a": [1, "two", 3.0, False], "b": inner, "d": inner, "e": "tab\t"}
