"""A request's body on its way in: how long it may take, how slow it may be, and what happens to one that is refused."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from stages.serving.document_stream import DocumentStream, FormError
from stages.serving.refusals import Refused
from stages.serving.settings import Settings
from stages.serving.waiting import Claim, Turns

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_PIECE, _TURN = 16 * 1024, 0.002
"""Bytes that are read at a time, a millisecond in the worst case, and seconds until it is another body's turn."""
_DRAINED = 4
"""Multiple of the size limit that is read and discarded, so that a client that is still sending gets the reason."""
_DRAIN_SECONDS, _DRAIN_SILENCE = 10.0, 1.0
_TICK = 1.0
_TICKS = 10
"""Ticks over which the rate is judged, and over one tick if others wait for this body."""
_HURRIED = 64 * 1024
"""Bytes per second of a body that others wait for."""


class Intake:
    """Reads one body. The clocks stand still while the server itself makes it wait."""

    def __init__(self, settings: Settings, claim: Claim, turns: Turns, receive: Receive):
        self._settings, self._claim, self._turns, self._receive = settings, claim, turns, receive
        self._size = self._tick_size = 0
        now = asyncio.get_running_loop().time()
        self._deadline, self._tick_end = now + settings.body_seconds, now + _TICK
        self._turn_end = 0.0
        self._ticks: deque[int] = deque(maxlen=_TICKS)
        self._hurried = False

    async def read(self, stream: DocumentStream, refusal: Refused | None) -> None:
        """Feed the body to `stream`; with a `refusal`, or from the first fault, it is read and discarded.

        A client that is cut off while it sends would not get the reason. Raises :class:`Refused`.
        """
        most, more = self._settings.max_request_bytes, True
        while more:
            part, more = await (self._next() if refusal is None else self._discarded())
            self._size += len(part)
            if self._size > most:
                refusal = refusal if refusal is not None and refusal.status == 503 else too_large(self._settings)
            elif refusal is None:
                refusal = await self._fed(stream, part)
            if refusal is not None:
                await self._turn()
                stream.clear()
                self._claim.release()
                self._deadline = min(self._deadline, asyncio.get_running_loop().time() + _DRAIN_SECONDS)
                if self._size > _DRAINED * most:
                    break
        if refusal is not None:
            raise refusal

    async def _fed(self, stream: DocumentStream, part: bytes) -> Refused | None:
        try:
            for start in range(0, len(part), _PIECE):
                piece = part[start : start + _PIECE]
                await self._turn()
                stream.feed(piece)
                self._claim.remaining -= len(piece)
                if stream.held > self._claim.held:
                    await self._hold(stream.held)
        except FormError as error:
            return refused_form(error)
        except Refused as refused:
            return refused
        return None

    async def _turn(self) -> None:
        """Let others work, if this body has had its share."""
        clock = asyncio.get_running_loop()
        start = clock.time()
        if start >= self._turn_end:
            await self._turns.next()
            self._turn_end = clock.time() + _TURN
            self._stand_still(clock.time() - start)

    async def _hold(self, size: int) -> None:
        """Wait for memory."""
        clock = asyncio.get_running_loop()
        start = clock.time()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                await self._claim.hold(size)
        except TimeoutError:
            raise Refused(503, "the server has no memory for this request now; try again in a second") from None
        self._stand_still(clock.time() - start)

    def _stand_still(self, seconds: float) -> None:
        """A body that is kept waiting does not age."""
        self._deadline += seconds
        self._tick_end += seconds

    async def _next(self) -> tuple[bytes, bool]:
        """The next part, and whether more follow."""
        clock = asyncio.get_running_loop()
        while True:
            if clock.time() >= self._deadline:
                raise Refused(408, f"the request did not arrive within {self._settings.body_seconds} s")
            if clock.time() >= self._tick_end:
                self._judge_rate()
                self._tick_end = clock.time() + _TICK
            try:
                async with asyncio.timeout_at(min(self._deadline, self._tick_end)):
                    return _part_of(await self._receive())
            except TimeoutError:
                continue

    def _judge_rate(self) -> None:
        arrived, self._tick_size = self._size - self._tick_size, self._size
        self._ticks.append(arrived)
        least = self._settings.min_bytes_per_second
        if len(self._ticks) == _TICKS and sum(self._ticks) < least * _TICK * _TICKS:
            raise Refused(408, f"the request arrives too slowly; at least {least} bytes per second are expected")
        if self._hurried and arrived < _HURRIED * _TICK:
            raise Refused(408, "the request arrives too slowly for a server that has others waiting")
        self._hurried = self._claim.is_waited_for

    async def _discarded(self) -> tuple[bytes, bool]:
        """The next part of a body that nobody reads; the end of it as soon as its client pauses."""
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(self._deadline, now + _DRAIN_SILENCE)):
                return _part_of(await self._receive())
        except TimeoutError:
            return b"", False


def too_large(settings: Settings) -> Refused:
    """The refusal of a body above the limit."""
    return Refused(413, f"the request is larger than {settings.max_request_bytes} bytes; send the images in parts")


_HINT = 'for example {"dataframe_split": {"columns": ["image"], "data": [["<base64 of an image file>"]]}}'


def refused_form(error: FormError) -> Refused:
    """The refusal of a document that is not one of the forms."""
    return Refused(400, f"{error}; {_HINT}")


def _part_of(message: MutableMapping[str, Any]) -> tuple[bytes, bool]:
    if message["type"] == "http.disconnect":
        raise Refused(400, "the client left before the request was whole")
    return message.get("body", b""), message.get("more_body", False)
