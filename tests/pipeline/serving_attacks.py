"""Attacks on a served model, each a function that runs once: costly bodies, many at once, slow and mute clients."""

from __future__ import annotations

import base64
import functools
import http.client
import json
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.pipeline.export_folder import image_bytes

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LARGE = 44_000_000
"""Bytes of the images in a body of about 60 MB."""
CLIENTS = 32
REFUSALS = (400, 408, 413, 415, 503)


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def post(url: str, body: bytes) -> tuple[int, bytes]:
    """Status and answer. A client that is cut off while it sends may not get the answer: status 0."""
    connection = http.client.HTTPConnection(*address(url), timeout=600)
    try:
        connection.request("POST", "/invocations", body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionError:
        return 0, b""
    finally:
        connection.close()


def document(*texts: bytes) -> bytes:
    return b'{"inputs": {"image": [' + b",".join(b'"%b"' % text for text in texts) + b"]}}"


@functools.cache
def padded_image(size: int) -> bytes:
    """Base64 of a BMP of 8x8 pixels in a file of this size."""
    pixels = bytes(range(192))
    head = struct.pack("<2sIHHI", b"BM", 54 + 192, 0, 0, 54)
    head += struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 24, 0, 192, 0, 0, 0, 0)
    return base64.b64encode((head + pixels).ljust(size, b"\0"))


@functools.cache
def worst_bodies() -> dict[str, bytes]:
    """Bodies near the limit of 64 MB that cost the most to check, and whether they are good."""
    half, breaks = padded_image(LARGE // 2), base64.b64encode(b"\n" * (LARGE // 2) + b"!")
    return {
        "line breaks": b'{"inputs": {"image": ["' + b"\\n" * 30_000_000 + b'!"]}}',
        "line breaks, encoded": document(half, breaks),
        "escapes": document(b"\\u0041" * 10_000_000 + b"!"),
        "half escapes": document(b"\\u00" * 15_000_000),
        "one cell": document(b"A" * 60_000_000),
        "blanks": b" " * 60_000_000,
        "brackets": b"[" * 60_000_000,
        "quotes": b'"' * 60_000_000,
        "header without end": document(base64.b64encode(b"P6 #" + b"a" * 30_000_000)),
        "fill bytes": document(base64.b64encode(b"\xff\xd8" + b"\xff" * 30_000_000)),
        "good": document(half, half),
    }


def each_worst_body(url: str) -> None:
    for name, body in worst_bodies().items():
        status, answer = post(url, body)
        assert status == 200 if name == "good" else status in (400, 413), (name, status, answer[:300])


def small_worst_bodies(url: str) -> None:
    for body in (
        b'{"inputs":{"image":["' + b"\\n" * 32_000 + b'!"]}}',
        json.dumps(
            {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(b"\n" * 32_000 + b"!").decode()]]}}
        ).encode(),
    ):
        start = time.monotonic()
        status, _ = post(url, body)
        assert status == 400 and time.monotonic() - start < 5


def many_large_bodies(url: str) -> None:
    for name in ("good", "line breaks, encoded", "one cell"):
        body = worst_bodies()[name]
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda _, body=body: post(url, body), range(CLIENTS)))
        allowed = (0, 200, 503) if name == "good" else (0, *REFUSALS)
        assert all(status in allowed for status, _ in answers), (name, [status for status, _ in answers])


@contextmanager
def connected(url: str, count: int) -> Iterator[list[socket.socket]]:
    connections = [socket.create_connection(address(url), timeout=60) for _ in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def send(connection: socket.socket, data: bytes) -> None:
    """Send as much as the server takes at once; it may have hung up."""
    connection.settimeout(1)
    try:
        connection.sendall(data)
    except OSError:
        return


def assert_closed(connections: list[socket.socket], seconds: float) -> None:
    """All are closed by the server, with or without an answer."""
    deadline = time.monotonic() + seconds
    for connection in connections:
        try:
            while True:
                connection.settimeout(max(deadline - time.monotonic(), 0.01))
                if not connection.recv(1 << 20):
                    break
        except TimeoutError:
            raise AssertionError(f"a connection is still open after {seconds} s") from None
        except OSError:
            continue


def assert_served(url: str) -> None:
    """An ordinary request is answered, by a busy server perhaps at the second attempt."""
    for _ in range(20):
        status, answer = post(url, document(base64.b64encode(image_bytes())))
        if status == 200:
            return
        assert status == 503, (status, answer[:300])
        time.sleep(1)
    raise AssertionError("an ordinary request is refused for 20 s")


def unfinished_heads(url: str) -> None:
    with connected(url, 300) as connections:
        for connection in connections:
            send(connection, HEAD)
        assert_served(url)
        assert_closed(connections, 90)


def slow_bodies(url: str) -> None:
    for length, first in ((1_000_000, 0), (60_000_000, 0), (60_000_000, 3_000_000)):
        with connected(url, 40) as connections:
            for connection in connections:
                send(connection, HEAD + b"Content-Length: %d\r\n\r\n" % length + b'{"inputs": {"image": ["')
                send(connection, b"A" * first)
            for _ in range(3):
                assert_served(url)
            for connection in connections:
                send(connection, b"A")
            assert_closed(connections, 120)


def mute_clients(url: str) -> None:
    """Clients that ask for much and read nothing."""
    body = document(*[base64.b64encode(image_bytes())] * 6)
    with connected(url, 40) as connections:
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            send(connection, HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert_served(url)


def ambiguous_heads(url: str) -> None:
    body = document(base64.b64encode(image_bytes()))
    length = b"Content-Length: %d\r\n" % len(body)
    for lines in (
        b"Content-Type: text/csv\r\n" + length,
        length + length,
        length + b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 5\r\n ,5\r\n",
        b"Host: y\r\n" + length,
    ):
        with connected(url, 1) as (connection,):
            send(connection, HEAD + lines + b"\r\n" + body)
            connection.settimeout(60)
            assert connection.recv(12) == b"HTTP/1.1 400", lines
    with connected(url, 1) as (connection,):
        send(connection, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 100_000)
        assert_closed([connection], 60)


ATTACKS = (small_worst_bodies, each_worst_body, many_large_bodies, unfinished_heads, slow_bodies, mute_clients)
