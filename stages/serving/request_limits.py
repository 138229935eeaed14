"""What stands before the model when it is served: the size and the form of a request, judged before MLflow reads it.

`mlflow models serve` takes a body of any size, parses whatever JSON, CSV or Parquet is in it, answers some of what it
cannot parse with 500 and some with the whole body repeated. It runs uvicorn, which takes its HTTP protocol from the
environment, so this needs no server of its own:

    export UVICORN_HTTP=stages.serving.request_limits:LimitedProtocol
    mlflow models serve -m models:/yolov7-tiny@champion --env-manager local --port 5001

Only `POST /invocations` is looked at, and only the documented forms of it pass (docs/operations.md). What an image may
be is the model's own business, in stages/serving/model.py. Nothing of `yolov7` is imported here: the model brings the
library it was registered with, and this is loaded first.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, NoReturn

from uvicorn.protocols.http.h11_impl import H11Protocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_REQUEST_BYTES = "YOLOV7_SERVE_MAX_REQUEST_BYTES"
"""Variable: size of a request's body; images travel as base64, a third larger than they are."""
MAX_IMAGES = "YOLOV7_SERVE_MAX_IMAGES"
"""Variable: images in one request, the model's own limit; here it bounds what is parsed at all."""
MAX_WAITING = "YOLOV7_SERVE_MAX_WAITING"
"""Variable: requests that are received or worked on at a time; more are told to come again."""
BODY_SECONDS = "YOLOV7_SERVE_BODY_SECONDS"
"""Variable: time for a body to arrive."""

_DEFAULTS = {MAX_REQUEST_BYTES: 64 * 1024 * 1024, MAX_IMAGES: 64, MAX_WAITING: 32, BODY_SECONDS: 60}
_DRAINED = 4
"""Times the size limit that is read and thrown away, so that a client that is still sending hears why."""

_ECHO = "Failed to predict data '"
_LONGEST = 1000
"""Letters of a reason."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")
_PARAMS = ("confidence", "iou")
_FORMS = "dataframe_split, dataframe_records, inputs, instances"
_HINT = 'for example {"dataframe_split": {"columns": ["image"], "data": [["<base64 of an image file>"]]}}'


class Refused(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request that gets a 4xx (or, for a server with too much to do, 503) and the reason."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class RequestLimits:
    """ASGI middleware before MLflow's scoring server. Limits come from the environment, see the variables above.

    Raises ValueError that names the variable for anything but a whole number above 0.
    """

    def __init__(self, app: App):
        self.app = app
        self.max_bytes = _setting(MAX_REQUEST_BYTES)
        self.max_images = _setting(MAX_IMAGES)
        self.max_waiting = _setting(MAX_WAITING)
        self.body_seconds = _setting(BODY_SECONDS)
        self._present = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer what is refused; hand on everything else as it came."""
        if scope["type"] != "http" or scope["path"] != "/invocations" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self._present += 1
        try:
            body = await self._body(scope, receive)
            check_request(body, max_images=self.max_images)
        except Refused as refused:
            await _answer(send, refused)
        else:
            await self.app(scope, _again(body, receive), _without_echo(send))
        finally:
            self._present -= 1

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is not None and headers.get(b"expect", b"").lower() == b"100-continue":
            raise refusal  # this client waits for an answer before it sends anything
        # What is refused already is read nevertheless, and thrown away: a client that is cut off hears no reason.
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_seconds):
                async for part in _parts(receive):
                    size += len(part)
                    if size > self.max_bytes:
                        refusal = self._too_large()
                    if refusal is None:
                        parts.append(part)
                    else:
                        parts.clear()
                        if size > _DRAINED * self.max_bytes:
                            break
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {self.body_seconds} s") from None
        if refusal is not None:
            raise refusal
        return b"".join(parts)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> Refused | None:
        """What the head of a request is enough for."""
        if self._present > self.max_waiting:
            return Refused(503, f"{self.max_waiting} requests are being worked on; try again in a second")
        kind = headers.get(b"content-type", b"").decode("latin-1").split(";")[0].strip().lower()
        if kind != "application/json":
            said = f"not {kind[:80]!r}" if kind else "and this request names none"
            return Refused(415, f"the content type must be application/json, {said}; images travel as base64 text")
        length = headers.get(b"content-length", b"")
        return self._too_large() if length.isdigit() and int(length) > self.max_bytes else None

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self.max_bytes} bytes; send the images in parts")


class LimitedProtocol(H11Protocol):
    """uvicorn's own HTTP protocol, with :class:`RequestLimits` before the application."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.app = _limited(self.app)


def check_request(body: bytes, *, max_images: int) -> None:
    """Raise :class:`Refused` unless `body` is one of the documented JSON forms with base64 text in every row.

    A row that is no such text is named. Whether the text is an image, the model says.
    """
    # Text of base64 has none of these letters. Counting them costs nothing; parsing 60 MB of `[],[],` costs a gigabyte.
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > 32 + 8 * max_images:
        raise _malformed(f"the document has more parts than {max_images} images need, and no more are taken at a time")
    try:
        document = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"not readable as JSON: {str(error)[:200]}") from None
    for row, cell in enumerate(_rows(document)):
        if not isinstance(cell, str):
            raise Refused(400, f"row {row}: base64 text of an image file is expected, got {_kind(cell)}")
        if not cell:
            raise Refused(400, f"row {row}: the image is empty")
        if not _BASE64.fullmatch(cell) or len(cell.translate({10: None, 13: None})) % 4:
            raise Refused(400, f"row {row}: the text is not base64 of an image file")


def _rows(document: Any) -> list[Any]:
    """The cells of the column `image`."""
    if not isinstance(document, dict):
        raise _malformed(f"a JSON object is expected, got {_kind(document)}")
    document = dict(document)
    _check_params(document.pop("params", None))
    if len(document) != 1:
        raise _malformed(f"exactly one of {_FORMS} is expected, besides params; got {_names(document)}")
    (form, content), rows = document.popitem(), []
    if form == "dataframe_split":
        rows = _rows_of_split(content)
    elif form in ("dataframe_records", "instances"):
        if not isinstance(content, list):
            raise _malformed(f"{form}: a list of rows is expected, got {_kind(content)}")
        rows = [_image_of(row, f"{form}: row {number}") for number, row in enumerate(content)]
    elif form == "inputs":
        rows = _image_of(content, form)
        rows = rows if isinstance(rows, list) else [rows]
    else:
        raise _malformed(f"exactly one of {_FORMS} is expected, got {_names([form])}")
    if not rows:
        raise _malformed("no image given: send at least one row in the column 'image'")
    return rows


def _rows_of_split(content: Any) -> list[Any]:
    if not isinstance(content, dict) or not {"columns", "data"} <= content.keys() <= {"columns", "data", "index"}:
        raise _malformed("dataframe_split: an object with columns and data is expected")
    if content["columns"] != ["image"]:
        raise _malformed("dataframe_split: the one column is called 'image'")
    data = content["data"]
    if not isinstance(data, list):
        raise _malformed(f"dataframe_split: data: a list of rows is expected, got {_kind(data)}")
    index = content.get("index", list(range(len(data))))
    if not isinstance(index, list) or len(index) != len(data) or not all(isinstance(i, int | str) for i in index):
        raise _malformed("dataframe_split: index: leave it out, or give a number or a name for every row")
    for row, cells in enumerate(data):
        if not isinstance(cells, list) or len(cells) != 1:
            raise _malformed(f"row {row}: a list of one cell is expected")
    return [cells[0] for cells in data]


def _image_of(content: Any, where: str) -> Any:
    if not isinstance(content, dict) or content.keys() != {"image"}:
        raise _malformed(f"{where}: an object with the one key 'image' is expected")
    return content["image"]


def _check_params(params: Any) -> None:
    if params is None:
        return
    if not isinstance(params, dict) or not params.keys() <= set(_PARAMS):
        raise _malformed(f"params: an object with {' and '.join(_PARAMS)} is expected")
    for name, value in params.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise Refused(400, f"params: {name} must be a number and must lie between 0 and 1")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _names(keys: Iterable[Any]) -> str:
    return ", ".join(repr(str(key)[:40]) for key in list(keys)[:5]) or "none"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _malformed(message: str) -> Refused:
    return Refused(400, f"{message}; {_HINT}")


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it arrives."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the client left before the request was whole")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, then what comes after it."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def first_the_body() -> Message:
        return whole.pop() if whole else await receive()

    return first_the_body


def _without_echo(send: Send) -> Send:
    """A `send` that tells the reason of a refusal alone. MLflow repeats the request before it, images and all, and adds
    the lines of code it came through."""
    head: list[Message] = []
    body: list[bytes] = []

    async def tidy(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            head.append(message)
        elif head and message["type"] == "http.response.body":
            body.append(message.get("body", b""))
            if not message.get("more_body", False):
                await _send(send, head[0]["status"], _reason(b"".join(body)))
        else:
            await send(message)

    return tidy


def _reason(body: bytes) -> dict[str, str]:
    """MLflow's answer, in its own form."""
    try:
        said = json.loads(body)
        code, message = str(said["error_code"]), str(said["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "BAD_REQUEST", body.decode(errors="replace")
    if message.startswith(_ECHO):
        message = message.rpartition("\nError: ")[2]
    return {"error_code": code, "message": message[:_LONGEST]}


async def _answer(send: Send, refused: Refused) -> None:
    """In the form of MLflow's own answers."""
    codes = {413: "REQUEST_TOO_LARGE", 503: "REQUEST_LIMIT_EXCEEDED"}
    said = {"error_code": codes.get(refused.status, "INVALID_PARAMETER_VALUE"), "message": str(refused)}
    await _send(send, refused.status, said)


async def _send(send: Send, status: int, said: Mapping[str, str]) -> None:
    body = json.dumps(said).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status in (408, 413, 503):  # there may be more of the request to come
        headers.append((b"connection", b"close"))
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _setting(name: str) -> int:
    text = os.environ.get(name, str(_DEFAULTS[name]))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name}: a whole number above 0 is expected, got {text!r}")
    return int(text)


@functools.lru_cache(maxsize=1)
def _limited(app: App) -> RequestLimits:
    """One for all connections: it counts them."""
    return RequestLimits(app)
