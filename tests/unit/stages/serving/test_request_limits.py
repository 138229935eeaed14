"""Requests that reach a served model: the documented forms, within the limits, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.serving import handover, model
from stages.serving.request_limits import Refused, RequestLimits, check_request

IMAGE = base64.b64encode(b"\xff\xd8 an image").decode()
SPLIT = {"dataframe_split": {"columns": ["image"], "data": [[IMAGE], [IMAGE]]}}


def refusal(document: object, *, raw: bytes | None = None, max_images: int = 4) -> str:
    with pytest.raises(Refused) as caught:
        check_request(json.dumps(document).encode() if raw is None else raw, max_images=max_images)
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        SPLIT,
        {**SPLIT, "params": {"confidence": 0, "iou": 0.5}},
        {**SPLIT, "params": None},
        {"dataframe_split": {"columns": ["image"], "data": [[IMAGE]], "index": [7]}},
        {"dataframe_records": [{"image": IMAGE}]},
        {"instances": [{"image": IMAGE}]},
        {"inputs": {"image": [IMAGE, IMAGE]}},
        {"inputs": {"image": IMAGE}},
        {"inputs": {"image": [IMAGE[:8] + "\r\n" + IMAGE[8:]]}},
    ],
)
def test_documented_forms_pass(document: object) -> None:
    check_request(json.dumps(document).encode(), max_images=4)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (3, "a JSON object is expected, got a number"),
        ([], "a JSON object is expected, got a list"),
        ({}, "exactly one of"),
        ({"image": IMAGE}, "exactly one of"),
        ({**SPLIT, "inputs": {"image": IMAGE}}, "exactly one of"),
        ({"dataframe_split": IMAGE}, "dataframe_split: a JSON object is expected, got text"),
        ({"dataframe_split": {"columns": ["picture"], "data": [[IMAGE]]}}, "the one column is called 'image'"),
        ({"dataframe_split": {"columns": ["image"], "data": IMAGE}}, "data: a list is expected, got text"),
        (
            {"dataframe_split": {"columns": ["image"], "data": [[IMAGE], IMAGE]}},
            "data: row 1: a list is expected, got text",
        ),
        ({"dataframe_split": {"columns": ["image"], "data": [[IMAGE]], "index": [[]]}}, "index"),
        ({"dataframe_split": {"columns": ["image"], "data": [[IMAGE]], "index": [1, 2]}}, "for every row"),
        ({"dataframe_split": {"columns": ["image"], "data": [[IMAGE, IMAGE]]}}, "data: row 0: "),
        ({"dataframe_split": {"columns": ["image"], "data": []}}, "no image given"),
        ({"dataframe_records": {"image": IMAGE}}, "dataframe_records: a list is expected, got an object"),
        ({"instances": [{"image": IMAGE}, {}]}, "instances: row 1: image: is missing"),
        ({"instances": [{"image": IMAGE, "b": IMAGE}]}, "instances: row 0: b: is not a key of this form"),
        ({"inputs": {"image": [IMAGE, None]}}, "row 1: base64 text of an image file is expected, got null"),
        ({"inputs": {"image": [[[1, 2], [3, 4]]]}}, "row 0: base64 text of an image file is expected, got a list"),
        ({"inputs": {"image": [IMAGE, ""]}}, "row 1: the image is empty"),
        ({"inputs": {"image": [IMAGE + "A"]}}, "row 0: the text is not base64"),
        ({"inputs": {"image": ["\ud800" + IMAGE]}}, "row 0: the text is not base64"),
        ({"inputs": {"image": ["data:image/png;base64," + IMAGE]}}, "row 0: the text is not base64"),
        ({**SPLIT, "params": [1]}, "params: a JSON object is expected, got a list"),
        ({**SPLIT, "params": {"nms": 1}}, "params: nms: is not a key of this form"),
        ({**SPLIT, "params": {"iou": "0.5"}}, "params: iou: must be a number and must lie between 0 and 1"),
        ({**SPLIT, "params": {"iou": None}}, "params: iou: must be a number and must lie between 0 and 1"),
        ({**SPLIT, "params": {"iou": True}}, "params: iou: must be a number and must lie between 0 and 1"),
        (
            {**SPLIT, "params": {"confidence": 10**400}},
            "params: confidence: must be a number and must lie between 0 and 1",
        ),
        ({**SPLIT, "params": {"iou": 1.5}}, "params: iou: must be a number and must lie between 0 and 1"),
        ({**SPLIT, "params": {"\ud800": 1}}, "params: "),
        ({"inputs": {"image": [IMAGE] * 200}}, "more parts than 4 images need"),
    ],
)
def test_everything_else_is_refused_by_name(document: object, words: str) -> None:
    assert words in refusal(document)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe\x00", b"NaN", b'{"a": Infinity}', b"[" * 50_000, b"9" * 5000, b"[]," * 9_000_000]
)
def test_invalid_json_is_refused_without_being_repeated(raw: bytes) -> None:
    assert len(refusal(None, raw=raw)) < 500


HOSTILE = st.tuples(st.text("A/+\r\n=", max_size=40), st.sampled_from(["", "!", "=", "\n"])).map("".join)


@given(HOSTILE)
def test_the_linear_pattern_takes_what_its_plain_form_takes(text: str) -> None:
    plain = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")
    assert bool(model._BASE64.fullmatch(text.encode())) == bool(plain.fullmatch(text))


@pytest.mark.parametrize("tail", ["!", "=!", "==!", "=\r\n!"])
def test_text_that_is_almost_base64_is_refused_in_linear_time(tail: str) -> None:
    # A pattern that backtracks needs hours for this; the test's own time limit is the bound.
    text = "\n" * 4_000_000 + tail
    assert "row 0: the text is not base64" in refusal({"inputs": {"image": [text]}})
    assert not model._BASE64.fullmatch(text.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([IMAGE, "image"]),
    lambda parts: (
        st.lists(parts, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dataframe_split", "inputs", "columns", "data", "image", "params", "iou"]) | st.text(),
            parts,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_document_is_anything_but_taken_or_refused(document: Any) -> None:
    try:
        check_request(json.dumps(document).encode(), max_images=4)
    except Refused as refused:
        assert refused.status == 400 and str(refused)


@given(st.binary(max_size=200))
def test_no_bytes_are_anything_but_taken_or_refused(raw: bytes) -> None:
    try:
        check_request(raw, max_images=4)
    except Refused as refused:
        assert refused.status == 400 and str(refused)


class Reached:
    """Fake of MLflow's application: keeps what it gets, and answers 200 or the given status."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.requests: list[Any] = []
        """The images that the model would get, and its parameters."""
        self.status, self.answer = 200, b"done"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.bodies.append(message["body"])
        if message["body"].startswith(b"{"):
            document = json.loads(message["body"])
            (row,) = document["dataframe_split"]["data"]
            images = handover.withdraw(base64.b64decode(row[0]))
            self.requests.append((images, document.get("params")))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.answer[:9], "more_body": True})
        await send({"type": "http.response.body", "body": self.answer[9:]})


def ask(limits: RequestLimits, parts: list[bytes | None], *, path: str = "/invocations", **headers: str) -> dict:
    """The answer to a body that arrives in `parts`; at None, nothing more comes."""
    scope = {"type": "http", "method": "POST", "path": path}
    scope["headers"] = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    answer: dict[str, Any] = {"body": b"", "read": 0}
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        part = waiting.pop(0)
        if part is None:
            await asyncio.sleep(600)
        answer["read"] += 1
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        answer["status"] = message.get("status", answer.get("status"))
        answer["body"] += message.get("body", b"")
        answer.update({name.decode(): value.decode() for name, value in message.get("headers", [])})

    asyncio.run(limits(scope, receive, send))
    return answer


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Reached:
    monkeypatch.setenv("YOLOV7_SERVE_MAX_REQUEST_BYTES", "1000")
    return Reached()


KIND = {"content_type": "application/json; charset=utf-8"}


def test_a_body_in_parts_arrives_whole(app: Reached) -> None:
    body = json.dumps({**SPLIT, "params": {"iou": 0.25}}).encode()
    assert ask(RequestLimits(app), [body[:9], b"", body[9:]], **KIND)["status"] == 200
    assert ask(RequestLimits(app), [b"x" * 5000], path="/ping")["status"] == 200, "nobody else is looked at"
    assert app.requests == [([base64.b64decode(IMAGE)] * 2, {"iou": 0.25})]
    assert app.bodies[1:] == [b"x" * 5000] and len(app.bodies[0]) < 200


@pytest.mark.parametrize(
    ("parts", "headers", "status", "read"),
    [
        ([b"x" * 1001], KIND, 413, 1),
        ([b"x" * 600] * 3, KIND, 413, 3),
        ([b"x" * 600] * 50, KIND, 413, 7),  # it does not read on for ever
        ([b"x" * 600] * 2, {**KIND, "content_length": "1200"}, 413, 2),
        ([b"x" * 600] * 2, {**KIND, "content_length": "1200", "expect": "100-continue"}, 413, 0),
        ([b"{}"], {}, 415, 1),
        ([b"{}"], {"content_type": "text/csv"}, 415, 1),
        ([b"{}", b"{}"], {"content_type": "application/vnd.apache.parquet"}, 415, 2),
        ([b"{", None], KIND, 408, 1),
        ([b"{"], KIND, 400, 1),
    ],
)
def test_refused_bodies(
    app: Reached, monkeypatch: pytest.MonkeyPatch, parts: list[bytes | None], headers: dict, status: int, read: int
) -> None:
    if None in parts:
        monkeypatch.setenv("YOLOV7_SERVE_BODY_SECONDS", "1")
    answer = ask(RequestLimits(app), parts, **headers)
    assert (answer["status"], answer["read"]) == (status, read)
    assert json.loads(answer["body"])["message"] and answer["content-type"] == "application/json"
    assert (answer.get("connection") == "close") == (status in (408, 413))
    assert not app.bodies


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (400, {"error_code": "X", "message": "Failed to predict data 'AAAA'. \nError: row 2: why"}, "row 2: why"),
        (500, {"error_code": "X", "message": "broken", "stack_trace": "Traceback"}, "broken"),
        (415, "only UTF-8", "only UTF-8"),
    ],
)
def test_mlflows_own_refusals_keep_the_reason_alone(app: Reached, status: int, answer: Any, words: str) -> None:
    app.status = status
    app.answer = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    said = ask(RequestLimits(app), [json.dumps(SPLIT).encode()], **KIND)
    assert said["status"] == status and json.loads(said["body"])["message"] == words
    assert b"Traceback" not in said["body"] and int(said["content-length"]) == len(said["body"])


def test_a_reason_that_cannot_be_encoded_is_still_reported(app: Reached) -> None:
    app.status, app.answer = 400, b'{"error_code": "X", "message": "\\ud800 is wrong"}'
    answer = ask(RequestLimits(app), [json.dumps(SPLIT).encode()], **KIND)
    assert json.loads(answer["body"])["message"] == "? is wrong"


def test_a_server_with_too_much_to_do_says_so(app: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV7_SERVE_MAX_WAITING", "1")
    limits = RequestLimits(app)
    body = json.dumps(SPLIT).encode()

    limits._complete = 1  # another one is being worked on
    busy = ask(limits, [body], **KIND)
    assert busy["status"] == 503 and busy["retry-after"] == "1"
    limits._complete = 0
    assert ask(limits, [body], **KIND)["status"] == 200 and limits._complete == 0


@pytest.mark.parametrize("value", ["", "0", "-1", "many"])
def test_an_invalid_limit_is_named(app: Reached, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("YOLOV7_SERVE_MAX_IMAGES", value)
    with pytest.raises(ValueError, match="YOLOV7_SERVE_MAX_IMAGES: a whole number above 0"):
        RequestLimits(app)
