"""A misbehaving web server on loopback: it cuts connections, ignores ranges, changes files, answers errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One file, and how it is served."""

    content: bytes
    ranges: bool = True
    etag: str | None = '"one"'
    length: int | None = None
    """Stated instead of the true length."""
    stated: bool = True
    """State a length at all."""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, one number an answer."""
    statuses: list[int] = field(default_factory=list)
    """Statuses of the next answers."""
    location: str | None = None


class Server:
    """Files by path, and the requests that came: path, range, answered status."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None, int]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def sent(self) -> list[tuple[str | None, int]]:
        return [(wanted, status) for _, wanted, status in self.requests]


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            wanted = self.headers.get("Range")
            state.headers.append(dict(self.headers))
            served = state.files.get(path)
            status, body, extra = self._answer(served, wanted)
            state.requests.append((path, wanted, status))
            self.send_response(status)
            for name, value in extra.items():
                self.send_header(name, value)
            cut = served.cuts.pop(0) if served is not None and served.cuts and status in (200, 206) else None
            self.end_headers()
            self.wfile.write(body if cut is None else body[:cut])
            self.close_connection = True

        def _answer(self, served: Served | None, wanted: str | None) -> tuple[int, bytes, dict[str, str]]:
            if served is None:
                return 404, b"", {"Content-Length": "0"}
            if served.statuses:
                extra = {"Location": served.location} if served.location else {}
                return served.statuses.pop(0), b"", {"Content-Length": "0", **extra}
            extra = {"ETag": served.etag} if served.etag else {}
            if served.etag and self.headers.get("If-None-Match") == served.etag:
                return 304, b"", extra
            body = served.content
            if wanted and served.ranges and self.headers.get("If-Range") in (None, served.etag):
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(body):
                    return 416, b"", {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"}
                extra["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                extra["Content-Length"] = str(len(body) - start)
                return 206, body[start:], extra
            if served.stated:
                extra["Content-Length"] = str(len(body) if served.length is None else served.length)
            return 200, body, extra

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
