"""Connections of the model server: time limits for heads and answers, a limit of their number, and strict heads.

uvicorn bounds the size of a head, and the time of a connection that is idle after an answer. It waits without end for a
first head, for the rest of one, and for a client that does not read; it speaks WebSocket if asked to.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from stages.serving.headers import fault_of_head
from stages.serving.settings import Settings

_READ = 64 * 1024
"""Bytes that are taken from a socket at a time: the unit of fairness between connections."""
_CHUNKS, _CHUNK = 1000, 256
"""Parts of a body that may come in any size, and the least mean size of more. Parsing costs as much for one byte."""
_LOOK = 1.0
"""Seconds between two looks at a connection."""

_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"


class StrictConnection(h11.Connection):
    """h11, which also refuses ambiguous heads and bodies in crumbs; :attr:`fault` is the reason."""

    fault: str | None = None
    _chunks = _bytes = 0

    def next_event(self) -> Any:
        """As h11's; raises RemoteProtocolError for what is refused here too."""
        if self.their_state is h11.IDLE:
            self._refuse(fault_of_head(self.trailing_data[0]))
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += 1
            self._bytes += len(event.data)
            if self._chunks > _CHUNKS and self._bytes < _CHUNK * self._chunks:
                self._refuse(f"The body comes in parts of less than {_CHUNK} bytes.")
        return event

    def _refuse(self, fault: str | None) -> None:
        if fault is not None:
            self.fault = fault
            raise h11.RemoteProtocolError(fault)


class BoundedConnection(H11Protocol):
    """uvicorn's HTTP protocol within the limits of `settings`, which a subclass sets."""

    settings: Settings

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.conn: StrictConnection = StrictConnection(
            h11.SERVER, self.config.h11_max_incomplete_event_size or 16 * 1024
        )
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._head_since = self.loop.time()
        self._has_head = False
        self._unread_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        """Take the connection; if there are too many, the one that has been silent longest is closed."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _READ
        self._timer = self.loop.call_later(_LOOK, self._look)
        if len(self.connections) > self.settings.max_connections:
            ours = [other for other in self.connections if isinstance(other, BoundedConnection)]
            max(ours, key=BoundedConnection.silence).dismiss(_FULL)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking at it."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come; from its first byte on, the clock of a head runs."""
        now = self.loop.time()
        self._heard = now
        if not self._has_head:
            self._has_head, self._head_since = True, now
        super().data_received(data)
        self._has_head = self.conn.their_state is h11.IDLE and self._has_head

    def on_response_complete(self) -> None:
        """Wait for the next head, which may have come already."""
        super().on_response_complete()
        self._heard = self._head_since = self.loop.time()
        self._has_head = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP, with the reason if it is one of ours; hang up if an answer has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        super().send_400_response(f"{msg} {self.conn.fault}" if self.conn.fault else msg)

    def silence(self) -> float:
        """Seconds since this client last sent or read anything that it owes."""
        now = self.loop.time()
        unread = 0.0 if self._unread_since is None else now - self._unread_since
        is_to_send = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.flow.read_paused
        return max(unread, now - self._heard if is_to_send else 0.0)

    def dismiss(self, answer: bytes) -> None:
        """Close the connection, with an answer if none has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()
        else:
            self.transport.abort()

    def _look(self) -> None:
        """Close a connection whose client is late."""
        now = self.loop.time()
        self._timer = self.loop.call_later(_LOOK, self._look)
        if not self.transport.get_write_buffer_size():
            self._unread_since = None
        elif self._unread_since is None:
            self._unread_since = now
        elif now - self._unread_since > self.settings.response_seconds:
            self.transport.abort()
            return
        is_waiting = self._has_head or self.cycle is None
        if is_waiting and self.conn.their_state is h11.IDLE and now - self._head_since > self.settings.head_seconds:
            self.dismiss(_LATE)

    def _should_upgrade(self) -> bool:
        """Never: the request is answered as if it had not asked."""
        return False
