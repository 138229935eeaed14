"""Documents that are read while they arrive: the same verdict in pieces of any size, early refusals, linear time."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.serving.base64_stream import ImageText, NotBase64, TooLong
from stages.serving.document_stream import DocumentStream, FormError
from stages.serving.forms import read_request

FILE = bytes(range(256)) * 8
TEXT = base64.b64encode(FILE).decode()


def read(body: bytes, *, piece: int = 65536, max_images: int = 4, most: int = 1 << 25) -> list[bytes]:
    stream = DocumentStream(max_images=max_images, max_image_bytes=most)
    for start in range(0, len(body), piece):
        stream.feed(body[start : start + piece])
    return read_request(*stream.finish()).images


def bytes_until_refused(body: bytes, **limits: int) -> tuple[int, str]:
    stream = DocumentStream(**{"max_images": 4, "max_image_bytes": 1 << 25, **limits})
    for start in range(0, len(body), 64):
        try:
            stream.feed(body[start : start + 64])
        except FormError as error:
            return start + 64, str(error)
    raise AssertionError("not refused")


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 64, 255, 4096])
@pytest.mark.parametrize(
    "written",
    [
        TEXT,
        TEXT.replace("/", "\\/"),  # PHP
        TEXT.replace("+", "\\u002B").replace("=", "\\u003d"),  # .NET, Gson
        "\\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76)) + "\\r\\n",  # Python, openssl
        base64.b64encode(TEXT.encode()).decode(),  # twice, as MLflow and the model undo it
    ],
    ids=["plain", "slashes", "unicode", "lines", "twice"],
)
def test_an_image_arrives_in_pieces_of_any_size(written: str, piece: int) -> None:
    rows = f'[["{written}"], ["{TEXT}"]]'
    body = f'\ufeff {{"dataframe_split":\n {{"columns": ["image"], "data": {rows}}}}}'.encode()
    assert read(body, piece=piece) == [FILE, FILE]


def outcome(document: bytes, piece: int) -> Any:
    try:
        return read(document, piece=piece)
    except FormError as error:
        return str(error)


PART = st.sampled_from(
    [
        TEXT[:300],
        TEXT[:299],
        "/9j/",
        "=",
        "==",
        "\\",
        "\\n",
        "\\u00",
        "2F",
        '"',
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "é",
        "\n",
    ]
)


@given(st.lists(PART, max_size=12).map("".join), st.integers(1, 40))
def test_the_verdict_does_not_depend_on_the_pieces(middle: str, piece: int) -> None:
    body = f'{{"inputs": {{"image": ["{middle}"]}}}}'.encode()
    assert outcome(body, piece) == outcome(body, len(body))
    try:
        document = json.loads(body)
    except ValueError:
        assert isinstance(outcome(body, piece), str)
        return
    cells = document["inputs"]["image"]
    plain = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")
    good = all(cell and plain.fullmatch(cell) and not len(re.sub("[\r\n]", "", cell)) % 4 for cell in cells)
    assert isinstance(outcome(body, piece), list) == good


@given(st.text("A/+\r\n=", max_size=40), st.integers(1, 7))
def test_base64_in_pieces_is_what_its_pattern_says(text: str, piece: int) -> None:
    image = ImageText(1000)
    try:
        for start in range(0, len(text), piece):
            image.feed(text[start : start + piece].encode())
        image.finish()
        taken = True
    except NotBase64:
        taken = False
    letters = re.sub("[\r\n]", "", text)
    assert taken == bool(re.fullmatch(r"[A/+\r\n]*={0,2}[\r\n]*", text) and not len(letters) % 4)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"inputs": {"image": ["' + "A" * 100_000, "row 0: the image file is too large, at most 30000 bytes"),
        ('{"inputs": {"image": ["' + TEXT + '", "' + "\\n" * 500 + "!" + "A" * 90_000, "row 1: the text is not base64"),
        ('{"inputs": {"image": ["' + "é" * 90_000, "row 0: the text is not base64"),
        ('{"inputs": {"image": ["' + "\\x" * 90_000, "not readable as JSON"),
        ('{"inputs": {"image": ["' + "\n" * 90_000, "not readable as JSON"),
        ('{"inputs": {"image": [' + f'"{TEXT}",' * 50, "at most 4 are taken"),
        ("[" * 100_000, "more parts than 4 images need"),
        ('""' * 100_000, "more parts than 4 images need"),
        ("9" * 100_000, "more parts than 4 images need"),
        ("[" + '{"a":1},' * 100_000, "more parts than 4 images need"),
        ('{"' + "a" * 300 + '":1', "row 0: the text is not base64"),
    ],
)
def test_a_fault_is_found_where_it_arrives(body: str, words: str) -> None:
    raw = body.encode()
    if "a" * 300 in body:
        with pytest.raises(FormError):
            read(raw)
        return
    at, reason = bytes_until_refused(raw, max_image_bytes=30_000)
    assert words in reason and at < 45_000


def test_blanks_of_any_length_cost_nothing() -> None:
    stream = DocumentStream(max_images=4, max_image_bytes=1000)
    for _ in range(100):
        stream.feed(b" \t\r\n" * 16_000)
    assert stream.held < 200


@pytest.mark.parametrize("body", ["1 2", '{"inputs": {"image": "QUJD"}} {}', "1\x0b"])
def test_blanks_still_separate(body: str) -> None:
    for piece in (1, 2, 100):
        with pytest.raises(FormError):
            read(body.encode(), piece=piece)


@pytest.mark.parametrize(
    "body",
    [
        '{"inputs": {"image": ["QUJD"]}, "inputs": {"image": ["QUJD"]}}',
        '{"inputs": {"image": ["QUJD"], "image": []}}',
        '{"inputs": {"image": ["QUJD"]}, "params": {"iou": 0.1, "iou": 0.9}}',
    ],
)
def test_a_key_that_occurs_twice_is_refused(body: str) -> None:
    with pytest.raises(FormError, match="occurs twice"):
        read(body.encode())


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused(encoding: str) -> None:
    with pytest.raises(FormError, match="must be UTF-8"):
        read('{"inputs": {"image": ["QUJD"]}}'.encode(encoding))


def test_a_placeholder_cannot_be_written_by_a_client() -> None:
    first = DocumentStream(max_images=2, max_image_bytes=10_000)
    first.feed(f'{{"inputs": {{"image": ["{TEXT}"]}}}}'.encode())
    _, texts = first.finish()
    (placeholder,) = texts
    with pytest.raises(FormError, match="row 0: the text is not base64"):
        read(f'{{"inputs": {{"image": ["{placeholder}", "{TEXT}"]}}}}'.encode())


WORST = {
    "line breaks": '{"inputs":{"image":["' + "\\n" * 1_000_000 + '!"]}}',
    "line breaks, encoded": '{"inputs":{"image":["' + base64.b64encode(b"\n" * 1_500_000 + b"!").decode() + '"]}}',
    "escapes": '{"inputs":{"image":["' + "\\u0041" * 330_000 + '!"]}}',
    "half escapes": '{"inputs":{"image":["' + "\\u00" * 500_000 + '"]}}',
    "backslashes": '{"inputs":{"image":["' + "\\\\" * 1_000_000 + '"]}}',
    "padding": '{"inputs":{"image":["' + "A" * 4 + "=" * 2_000_000 + '"]}}',
    "padding and breaks": '{"inputs":{"image":["AAA=' + "\\n" * 1_000_000 + '="]}}',
    "blanks": " " * 2_000_000,
    "number": "9" * 2_000_000,
    "quotes": '"' * 2_000_000,
}


@pytest.mark.parametrize("kind", WORST)
def test_no_document_costs_more_than_its_length(kind: str) -> None:
    """2 MB take some 10 ms; a step that looks back over what it has seen takes minutes, in pieces or as a whole."""
    start = time.process_time()
    for piece in (65536, 4096):
        outcome(WORST[kind].encode(), piece)
    assert time.process_time() - start < 2


def test_an_image_above_the_limit_is_refused_also_if_it_is_encoded_twice() -> None:
    for text in (base64.b64encode(b"\xff" * 999), base64.b64encode(base64.b64encode(b"\xff" * 999))):
        image = ImageText(900)
        with pytest.raises(TooLong):
            image.feed(text)
            image.finish()
