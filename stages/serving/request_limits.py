"""Request limits enforced before MLflow parses the body.

`mlflow models serve` accepts a body of any size, parses any JSON, CSV or Parquet in it, and answers some of what it
cannot parse with 500 and some with the whole body repeated. It runs uvicorn, which takes its HTTP protocol from the
environment, so this needs no server of its own:

    export UVICORN_HTTP=stages.serving.request_limits:LimitedProtocol
    mlflow models serve -m models:/yolov7-tiny@champion --env-manager local --port 5001

Only the documented forms of `POST /invocations` pass (stages/serving/forms.py). They are read while they arrive
(stages/serving/document_stream.py), within a bounded memory (stages/serving/waiting.py), and wait for their turn only
when they are complete. Limits of pixels are the model's, in stages/serving/model.py. Nothing of `yolov7` is imported
here: the model brings the library that it was registered with, and this module is loaded first.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers

from stages.serving import handover
from stages.serving.connections import BoundedConnection
from stages.serving.document_stream import DocumentStream, FormError
from stages.serving.forms import Request, read_request
from stages.serving.headers import check_headers, check_kind
from stages.serving.intake import Intake, refused_form, too_large
from stages.serving.refusals import Refused, reason_of, refusal_of, response
from stages.serving.settings import Settings
from stages.serving.waiting import Claim, Pool, Turns

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class RequestLimits:
    """ASGI middleware before MLflow's scoring server, with the limits of the environment (:class:`Settings`).

    Raises ValueError with the variable for any but a positive integer.
    """

    def __init__(self, app: App):
        self.app = app
        self.settings = Settings.from_environment()
        self._pool = Pool(self.settings.max_waiting_bytes)
        self._turns = Turns()
        self._running = asyncio.Semaphore(self.settings.max_running)
        self._complete = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer refused requests; pass everything else on."""
        if scope["type"] != "http":
            return  # uvicorn closes it: nothing here speaks another protocol
        is_invocation = _path(scope) == "/invocations" and scope["method"] == "POST"
        try:
            check_headers(scope["headers"], takes_body=is_invocation)
        except Refused as refused:
            await refusal_of(refused, close=True)(scope, receive, send)
            return
        if is_invocation:
            await self._invoke(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _invoke(self, scope: Message, receive: Receive, send: Send) -> None:
        length = Headers(scope=scope).get("content-length", "")
        claim = self._pool.claim(int(length) if length else self.settings.max_request_bytes)
        try:
            request = await self._read(claim, scope, receive)
            await self._answer(request, scope, receive, send)
        except Refused as refused:
            await refusal_of(refused)(scope, receive, send)
        finally:
            claim.release()

    async def _read(self, claim: Claim, scope: Message, receive: Receive) -> Request:
        """The request, once it has arrived."""
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers.get("content-length", ""))
        if refusal is not None and headers.get("expect", "").lower() == "100-continue":
            raise refusal  # this client waits for an answer before it sends anything
        stream = DocumentStream(max_images=self.settings.max_images, max_image_bytes=self.settings.max_image_bytes)
        await Intake(self.settings, claim, self._turns, receive).read(stream, refusal)
        return request_of(stream)

    async def _answer(self, request: Request, scope: Message, receive: Receive, send: Send) -> None:
        """Let the model answer a complete request, when it is its turn."""
        self._complete += 1
        ticket = handover.deposit(request.images)
        try:
            body = handover.document_of(ticket, request.thresholds)
            if not await self._may_run(receive):
                return  # the client has left
            try:
                await self.app(_described(scope, body), _again(body, receive), _without_echo(scope, receive, send))
            finally:
                self._running.release()
        finally:
            handover.withdraw(ticket)
            self._complete -= 1

    async def _may_run(self, receive: Receive) -> bool:
        """Wait for a turn; False if the client leaves before."""
        if not self._running.locked():
            return await self._running.acquire()
        turn, left = asyncio.ensure_future(self._running.acquire()), asyncio.ensure_future(receive())
        try:
            await asyncio.wait((turn, left), return_when=asyncio.FIRST_COMPLETED)
            return turn.done()
        finally:
            left.cancel()
            if not turn.done():
                turn.cancel()

    def _refusal(self, scope: Message, length: str) -> Refused | None:
        """The reason to refuse a request that its head gives, or None."""
        if self._complete >= self.settings.max_waiting:
            return Refused(503, f"{self.settings.max_waiting} requests are being processed; try again in a second")
        try:
            check_kind(scope["headers"])
        except Refused as refused:
            return refused
        return too_large(self.settings) if length and int(length) > self.settings.max_request_bytes else None


class LimitedProtocol(BoundedConnection):
    """uvicorn's own HTTP protocol, with :class:`RequestLimits` before the application."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        limits = _limited(self.app)
        self.app, self.settings = limits, limits.settings


def check_request(body: bytes, *, max_images: int) -> Request:
    """The request of a whole body. Raises :class:`Refused` unless it is one of the documented forms."""
    stream = DocumentStream(max_images=max_images, max_image_bytes=Settings.max_image_bytes)
    try:
        for start in range(0, len(body), 65536):
            stream.feed(body[start : start + 65536])
    except FormError as error:
        raise refused_form(error) from None
    return request_of(stream)


def request_of(stream: DocumentStream) -> Request:
    """The request of a document that has arrived. Raises :class:`Refused` unless it has one of the forms."""
    try:
        return read_request(*stream.finish())
    except FormError as error:
        raise refused_form(error) from None


def _path(scope: Message) -> str:
    """The path as the application's routes see it."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _described(scope: Message, body: bytes) -> Message:
    """The scope of a request with another body."""
    kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, (b"content-length", str(len(body)).encode())]}


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with the body, then continues with what follows it."""
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
                await response(status[0], *reason_of(b"".join(body)))(scope, receive, send)
        else:
            await send(message)

    return tidy


@functools.lru_cache(maxsize=1)
def _limited(app: App) -> RequestLimits:
    """One instance for all connections: it counts their requests."""
    handover.install()
    return RequestLimits(app)
