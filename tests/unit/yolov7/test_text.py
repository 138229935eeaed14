"""Names from outside, as they are written to terminals, tables, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolov7.text import csv_cell, csv_text, for_terminal, listed, markdown, printable, printable_json

NASTY = st.text(
    st.characters()
    | st.sampled_from("=+-@\uff1d\uff0b;|'\"\t\r\n\x1b\x9b\x85\u202e\u2066\u2028\ufeff\ud800 1a[]<>&`*\\\x00")
    | st.characters()
)


def is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in "\u202e\u202a\u2066\u2069\u200f\ufeff"


@given(NASTY)
def test_no_control_character_gets_through(text):
    assert not any(map(is_control, printable(text)))
    assert not any(is_control(letter) for letter in for_terminal(text) if letter not in "\n\t")
    assert not any(is_control(letter) for letter in str(csv_cell(text)))
    assert not any(map(is_control, markdown(text)))
    assert printable(printable(text)) == printable(text)


@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_other_text_stays_as_it_is(text):
    assert printable(text) == text
    assert for_terminal(text) == text


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+cmd|' /C calc'!A0", "'=1+cmd|' /C calc'!A0"),
        ("+x", "'+x"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'=1"),
        ("\r=1", "'=1"),
        ("  =1", "'  =1"),
        ("\uff1d1", "'\uff1d1"),
        ("\uff20x", "'\uff20x"),
        ("a;=1", "a;'=1"),
        ("'=1", "''=1"),
        ("-1.5", "-1.5"),
        ("1e-05", "1e-05"),
        ("knife, kitchen", "knife, kitchen"),
        ("semi-truck", "semi-truck"),
        ("日本 語", "日本 語"),
        (-0.5, -0.5),
        ("a\x1b[31mb", "a\\x1b[31mb"),
    ],
)
def test_formulas_are_defused(text, cell):
    assert csv_cell(text) == cell


@given(st.lists(NASTY, min_size=1, max_size=4))
def test_a_table_is_read_back_with_its_cells(names):
    rows = list(csv.reader(io.StringIO(csv_text(["class", "AP"], ((name, "0.5") for name in names)), newline="")))
    assert rows == [["class", "AP"], *([str(csv_cell(name)), "0.5"] for name in names)]


@given(NASTY.filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text)))
def test_json_means_the_same(text):
    shown = printable_json(json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(shown) == {text: text}
    assert not any(is_control(letter) for letter in shown)


@pytest.mark.parametrize(
    "text",
    [
        "[x](http://evil)",
        "![x](http://evil/a.png)",
        "<img src=x onerror=alert(1)>",
        "a|b",
        "`x`",
        "**x**",
        "a\n# b",
        "WWW.evil",
    ],
)
def test_markdown_begins_nothing(text):
    shown = markdown(text)
    assert "](" not in shown.replace("\\]", "")
    assert "<" not in shown
    assert "://" not in shown
    assert "www." not in shown.lower()
    assert "\n" not in shown
    assert all(shown[at - 1] == "\\" for at, letter in enumerate(shown) if letter in "|`*[]")


def test_a_long_list_is_cut_and_counted():
    names = ["a", "b", "c", "d", "e", "f", "g"]
    assert listed(names) == "a, b, c, d, e and 2 more"
    assert listed(names[:5]) == "a, b, c, d, e"
    assert listed(names, most=2, joint="; ") == "a; b; and 5 more"
    assert listed([]) == ""
