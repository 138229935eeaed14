"""The page's server: three files of its own, the list of models, and detection on one image at a time."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stages.page.choices import Choices
from stages.page.guard import check_request, secured
from stages.project.redaction import redacted
from stages.serving.connections import BoundedConnection
from stages.serving.refusals import Refused, refusal_of
from stages.serving.settings import Settings
from stages.serving.waiting import Pool
from yolov7.errors import YoloError
from yolov7.text import printable

FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_HERE = Path(__file__).parent
_ROW = re.compile(r"row 0: ")
_KINDS = ("image/", "application/octet-stream")
"""Content types of a picture. A form of another site can send neither without asking first, and gets no answer."""


class PageConnection(BoundedConnection):
    """uvicorn's HTTP protocol with the time limits and the strict heads of the model server."""

    settings = Settings()


class Server:
    """The ASGI application of the page, for a server bound to `host`."""

    def __init__(self, choices: Choices, host: str, settings: Settings):
        self._choices, self._host, self._settings = choices, host, settings
        self._pool = Pool(settings.max_waiting_bytes)
        self._waiting = 0
        self._turn = asyncio.Lock()
        routes = [Route(path, functools.partial(_file, *named)) for path, named in FILES.items()]
        routes += [
            Route("/models", self._models),
            Route("/models/{place:int}", self._model),
            Route("/models/{place:int}/detect", self._detect, methods=["POST"]),
        ]
        self._app = Starlette(routes=routes)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request of the page; refuse any other."""
        if scope["type"] != "http":
            return

        async def send_secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": secured(message["headers"])}
            await send(message)

        try:
            check_request(scope, self._host)
        except Refused as refused:
            await refusal_of(refused, close=True)(scope, receive, send_secured)
            return
        await self._app(scope, receive, send_secured)

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"models": [choice.label for choice in self._choices.all]})

    async def _model(self, request: Request) -> Response:
        return await self._answered(request, lambda opened: opened.facts())

    async def _detect(self, request: Request) -> Response:
        claim = self._pool.claim(self._settings.max_image_bytes)
        waits = 0
        try:
            iou = _iou_of(request)
            content = await self._body(request, claim.hold)
            # Pictures that have arrived: one that does not arrive holds memory, and keeps nobody else out.
            self._waiting, waits = self._waiting + 1, 1
            if self._waiting > self._settings.max_waiting:
                raise Refused(503, f"{self._settings.max_waiting} pictures are being processed; try again in a second")
            return await self._answered(request, lambda opened: _timed(opened, content, iou))
        except Refused as refused:
            return refusal_of(refused)
        finally:
            self._waiting -= waits
            claim.release()

    async def _body(self, request: Request, hold: Callable[[int], Awaitable[None]]) -> bytes:
        """The picture, read while it arrives. Raises :class:`Refused` beyond the limits of bytes, kind and time."""
        kind = request.headers.get("content-type", "").lower()
        if not kind.startswith(_KINDS):
            raise Refused(415, "send the bytes of an image file, with its content type")
        most = self._settings.max_image_bytes
        too_large = Refused(413, f"the image file has more than {most:,} bytes, which is the most that is taken")
        if int(request.headers.get("content-length") or 0) > most:
            raise too_large
        content = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                async for part in request.stream():
                    if len(content) + len(part) > most:
                        raise too_large
                    await hold(len(content) + len(part))
                    content += part
        except ClientDisconnect:  # the page does so when another picture is chosen; nobody reads the answer
            raise Refused(400, "the picture did not arrive") from None
        except TimeoutError:
            raise Refused(408, f"the picture did not arrive within {self._settings.body_seconds} s") from None
        return bytes(content)

    async def _answered(self, request: Request, ask: Callable[[Any], Any]) -> Response:
        """The answer of a model, which works for one visitor at a time: this is a page for trying, not a service."""
        place = request.path_params["place"]
        if place >= len(self._choices.all):
            return refusal_of(Refused(404, "there is no such model; reload the page"))
        async with self._turn:
            try:
                return JSONResponse(await run_in_threadpool(lambda: ask(self._choices.open(place))))
            except MlflowException as error:
                return refusal_of(Refused(400, _ROW.sub("", error.message, count=1)))
            except YoloError as error:
                return refusal_of(Refused(422, printable(redacted(error))))


async def _file(name: str, kind: str, request: Request) -> Response:
    return Response((_HERE / name).read_bytes(), media_type=kind)


def _iou_of(request: Request) -> float | None:
    text = request.query_params.get("iou")
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise Refused(400, "iou: a number above 0, at most 1, is expected") from None


def _timed(opened: Any, content: bytes, iou: float | None) -> dict[str, Any]:
    start = time.perf_counter()
    found = opened.detect(content, iou)
    return {**found, "milliseconds": round(1000 * (time.perf_counter() - start), 1)}
