"""Connections on a real socket: ambiguous heads, slow heads, too many connections, clients that do not read."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import uvicorn

from stages.serving import handover, request_limits
from stages.serving.request_limits import LimitedProtocol

GOOD = json.dumps({"inputs": {"image": [base64.b64encode(b"\xff\xd8 an image").decode()]}}).encode()
HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
CLOSE = b"Connection: close\r\n\r\n"

Connect = Callable[[], socket.socket]


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Fake of MLflow's: takes any request, and answers a few bytes, or with /large more than a socket holds."""
    await receive()
    body = b"z" * (24 << 20) if scope["path"] == "/large" else b"done"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[Connect]]:
    @contextmanager
    def serving(**settings: int) -> Iterator[Connect]:
        for name, value in settings.items():
            monkeypatch.setenv(f"YOLOV7_SERVE_{name.upper()}", str(value))
        monkeypatch.setattr(handover, "install", lambda: None)
        request_limits._limited.cache_clear()
        config = uvicorn.Config(application, http=LimitedProtocol, log_config=None, lifespan="off", port=0)
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        open_ones: list[socket.socket] = []

        def connect() -> socket.socket:
            open_ones.append(socket.create_connection(listener.getsockname(), timeout=20))
            return open_ones[-1]

        try:
            yield connect
        finally:
            for one in open_ones:
                one.close()
            server.should_exit = server.force_exit = True
            thread.join(20)
            listener.close()
            request_limits._limited.cache_clear()

    return serving


def answer(connection: socket.socket, data: bytes = b"") -> bytes:
    """All that comes until the server closes."""
    parts = []
    try:
        connection.sendall(data)
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize(
    ("head", "status", "words"),
    [
        (HEAD + LENGTH, 200, b"done"),
        (HEAD + b"Content-Type: application/json\r\n" + LENGTH, 400, b"content-type occurs 2 times"),
        (HEAD + b"content-type: text/csv\r\n" + LENGTH, 400, b"content-type occurs 2 times"),
        (HEAD + LENGTH + LENGTH, 400, b"several Content-Length"),
        (HEAD + LENGTH + b"content-length : 3\r\n", 400, b""),
        (HEAD + b"Content-Length: 5, 5\r\n", 400, b"not a number"),
        (HEAD + b"Content-Length: -5\r\n", 400, b"not a number"),
        (HEAD + b"Content-Length: 5\r\n ,5\r\n", 400, b"continues on the next line"),
        (HEAD + b"X: a\r\n\tb\r\n" + LENGTH, 400, b"continues on the next line"),
        (HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n", 400, b"both content-length and transfer-encoding"),
        (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400, b""),
        (HEAD + b"Host: y\r\n" + LENGTH, 400, b""),
        (HEAD + b"Content-Encoding: gzip\r\n" + LENGTH, 415, b"must not be compressed"),
        (HEAD + b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n" + LENGTH, 400, b"occurs 2 times"),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 999999999\r\n", 413, b"send the images in parts"),
        (b"POST /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n", 413, b"only POST /invocations takes a body"),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n", 413, b"only POST /invocations"),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n", 200, b"done"),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nA: \0\r\n", 400, b"Invalid HTTP"),
        (b"GET /ping HTTP/1.1\r\n", 400, b"Invalid HTTP"),
    ],
)
def test_heads(serve: Any, head: bytes, status: int, words: bytes) -> None:
    with serve() as connect:
        said = answer(connect(), head + CLOSE + GOOD * (status != 413))
        assert said.startswith(b"HTTP/1.1 %d " % status) and words in said, said


def test_requests_that_follow_each_other_are_judged_one_by_one(serve: Any) -> None:
    with serve() as connect:
        good = HEAD + LENGTH + b"\r\n" + GOOD
        said = answer(connect(), good + good + HEAD + LENGTH + LENGTH + b"\r\n" + GOOD)
        assert said.count(b"HTTP/1.1 200 ") == 2 and said.count(b"HTTP/1.1 400 ") == 1


def test_a_body_in_crumbs_is_refused(serve: Any) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    with serve() as connect:
        whole = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (GOOD[:5], GOOD[5:]))
        assert answer(connect(), chunked.replace(b"\r\n\r\n", b"\r\n" + CLOSE) + whole + b"0\r\n\r\n").endswith(b"done")
        said = answer(connect(), chunked + b"1\r\n \r\n" * 2000)
        assert b"HTTP/1.1 400 " in said and b"parts of less than 256 bytes" in said


def test_an_unfinished_head_is_closed(serve: Any) -> None:
    with serve(head_seconds=1) as connect:
        connections = [connect() for _ in range(4)]
        began = time.monotonic()
        for connection, start in zip(connections, [b"", b"P", HEAD, GOOD[:1] * 20], strict=True):
            connection.sendall(start)
        assert all(answer(connection).startswith(b"HTTP/1.1 4") for connection in connections)
        assert time.monotonic() - began < 10


def test_a_head_that_drips_is_closed(serve: Any) -> None:
    with serve(head_seconds=1) as connect:
        connection = connect()
        end = time.monotonic() + 15
        with pytest.raises(ConnectionError):
            while time.monotonic() < end:
                connection.sendall(b"P")
                time.sleep(0.05)


def test_the_connection_that_is_silent_makes_room_for_a_new_one(serve: Any) -> None:
    with serve(max_connections=8) as connect:
        silent = [connect() for _ in range(30)]
        assert b"HTTP/1.1 503 " in answer(silent[0])
        for _ in range(30):
            connect().sendall(HEAD)
        assert answer(connect(), HEAD + LENGTH + CLOSE + GOOD).endswith(b"done")


def test_a_client_that_does_not_read_is_closed(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.serving.connections._LOOK", 0.05)
    with serve(response_seconds=1) as connect:
        connection = connect()
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
        assert len(answer(connection)) < 23 << 20
        assert len(answer(connect(), b"GET /large HTTP/1.1\r\nHost: x\r\n" + CLOSE)) > 23 << 20, "a reader gets it all"


def test_slow_bodies_hold_no_slot(serve: Any) -> None:
    with serve(max_waiting=2, max_running=1) as connect:
        for _ in range(40):
            connect().sendall(HEAD + LENGTH + b"\r\n" + GOOD[:-1])
        for _ in range(5):
            assert answer(connect(), HEAD + LENGTH + CLOSE + GOOD).endswith(b"done")
