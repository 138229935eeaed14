"""Request limits enforced before MLflow parses the body.

`mlflow models serve` accepts a body of any size, parses any JSON, CSV or Parquet in it, and answers some of what it
cannot parse with 500 and some with the whole body repeated. It runs uvicorn, which takes its HTTP protocol from the
environment, so this needs no server of its own:

    export UVICORN_HTTP=stages.serving.request_limits:LimitedProtocol
    mlflow models serve -m models:/yolov7-tiny@champion --env-manager local --port 5001

Only `POST /invocations` is checked, and only its documented forms pass (stages/serving/forms.py). Limits of images
are the model's, in stages/serving/model.py. Nothing of `yolov7` is imported here: the model brings the library that it
was registered with, and this module is loaded first.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from stages.serving.forms import FormError, check_document

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_REQUEST_BYTES = "YOLOV7_SERVE_MAX_REQUEST_BYTES"
"""Variable: bytes of a request's body; images travel as base64, which makes them a third larger."""
MAX_IMAGES = "YOLOV7_SERVE_MAX_IMAGES"
"""Variable: images in one request. The model has the same limit; here it bounds what is parsed at all."""
MAX_WAITING = "YOLOV7_SERVE_MAX_WAITING"
"""Variable: requests received or processed at a time; others get 503."""
BODY_SECONDS = "YOLOV7_SERVE_BODY_SECONDS"
"""Variable: seconds for a body to arrive."""

_DEFAULTS = {MAX_REQUEST_BYTES: 64 * 1024 * 1024, MAX_IMAGES: 64, MAX_WAITING: 32, BODY_SECONDS: 60}
_DRAINED = 4
"""Multiple of the size limit that is read and discarded, so that a client that is still sending gets the reason."""

_ECHO = "Failed to predict data '"
_LONGEST = 1000
"""Most characters of a reason."""
_HINT = 'for example {"dataframe_split": {"columns": ["image"], "data": [["<base64 of an image file>"]]}}'


class Refused(Exception):  # noqa: N818 - an answer, not a fault of the server
    """A request that is answered with 4xx, or with 503 by a busy server, and the reason."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class RequestLimits:
    """ASGI middleware before MLflow's scoring server. Limits come from the environment variables above.

    Raises ValueError with the variable for any but a positive integer.
    """

    def __init__(self, app: App):
        self.app = app
        self.max_bytes = _setting(MAX_REQUEST_BYTES)
        self.max_images = _setting(MAX_IMAGES)
        self.max_waiting = _setting(MAX_WAITING)
        self.body_seconds = _setting(BODY_SECONDS)
        self._present = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer refused requests; pass everything else on unchanged."""
        if scope["type"] != "http" or scope["path"] != "/invocations" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self._present += 1
        try:
            body = await self._body(scope, receive)
            check_request(body, max_images=self.max_images)
        except Refused as refused:
            await _refusal_of(refused)(scope, receive, send)
        else:
            await self.app(scope, _again(body, receive), _without_echo(scope, receive, send))
        finally:
            self._present -= 1

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None and headers.get("expect", "").lower() == "100-continue":
            raise refusal  # this client waits for an answer before it sends anything
        # A refused body is read and discarded: a client that is cut off would not get the reason.
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_seconds):
                async for part in Request(scope, receive).stream():
                    size += len(part)
                    if size > self.max_bytes:
                        refusal = self._too_large()
                    if refusal is None:
                        parts.append(part)
                    else:
                        parts.clear()
                        if size > _DRAINED * self.max_bytes:
                            break
        except ClientDisconnect:
            raise Refused(400, "the client left before the request was whole") from None
        except TimeoutError:
            raise Refused(408, f"the request did not arrive within {self.body_seconds} s") from None
        if refusal is not None:
            raise refusal
        return b"".join(parts)

    def _refusal(self, headers: Headers) -> Refused | None:
        """The reason to refuse a request that its headers give, or None."""
        if self._present > self.max_waiting:
            return Refused(503, f"{self.max_waiting} requests are being processed; try again in a second")
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            found = f"not {kind[:80]!r}" if kind else "and this request names none"
            return Refused(415, f"the content type must be application/json, {found}; images travel as base64 text")
        length = headers.get("content-length", "")
        return self._too_large() if length.isdecimal() and int(length) > self.max_bytes else None

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self.max_bytes} bytes; send the images in parts")


class LimitedProtocol(H11Protocol):
    """uvicorn's own HTTP protocol, with :class:`RequestLimits` before the application."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.app = _limited(self.app)


def check_request(body: bytes, *, max_images: int) -> None:
    """Raise :class:`Refused` unless `body` is one of the documented JSON forms with base64 text in every row."""
    # Base64 text has none of these letters. Counting them costs nothing; parsing 60 MB of `[],[],` costs a gigabyte.
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > 32 + 8 * max_images:
        raise Refused(400, f"the document has more parts than {max_images} images need; send the images in parts")
    try:
        check_document(body)
    except FormError as error:
        raise Refused(400, f"{error}; {_HINT}") from None


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that repeats the body, then continues with what follows it."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def first_the_body() -> Message:
        return whole.pop() if whole else await receive()

    return first_the_body


def _without_echo(scope: Message, receive: Receive, send: Send) -> Send:
    """A `send` that reduces MLflow's refusals to their reason: MLflow repeats the whole request, images and all, and
    adds the lines of code it came through."""
    status: list[int] = []
    body: list[bytes] = []

    async def tidy(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            status.append(message["status"])
        elif status and message["type"] == "http.response.body":
            body.append(message.get("body", b""))
            if not message.get("more_body", False):
                await _response(status[0], *_reason(b"".join(body)))(scope, receive, send)
        else:
            await send(message)

    return tidy


def _reason(body: bytes) -> tuple[str, str]:
    """MLflow's error code and message."""
    try:
        document = json.loads(body)
        code, message = str(document["error_code"]), str(document["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "BAD_REQUEST", body.decode(errors="replace")
    if message.startswith(_ECHO):
        message = message.rpartition("\nError: ")[2]
    return code, message[:_LONGEST]


def _refusal_of(refused: Refused) -> JSONResponse:
    codes = {413: "REQUEST_TOO_LARGE", 503: "REQUEST_LIMIT_EXCEEDED"}
    return _response(refused.status, codes.get(refused.status, "INVALID_PARAMETER_VALUE"), str(refused))


def _response(status: int, code: str, message: str) -> JSONResponse:
    """An answer in the form of MLflow's own."""
    headers = {"connection": "close"} if status in (408, 413, 503) else {}  # more of the request may be on its way
    if status == 503:
        headers["retry-after"] = "1"
    text = message.encode(errors="replace").decode()  # half a surrogate pair cannot be sent
    return JSONResponse({"error_code": code, "message": text}, status, headers)


def _setting(name: str) -> int:
    text = os.environ.get(name, str(_DEFAULTS[name]))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name}: a whole number above 0 is expected, got {text!r}")
    return int(text)


@functools.lru_cache(maxsize=1)
def _limited(app: App) -> RequestLimits:
    """One instance for all connections: it counts their requests."""
    return RequestLimits(app)
