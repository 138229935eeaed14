"""A proxy on loopback in front of an S3 server that makes uploads fail: refused, overloaded, cut, or held up."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["refuse", "overload", "cut", "hold"]
_ANSWERS = {"refuse": (403, "AccessDenied"), "overload": (503, "SlowDown")}
_HOP = ("connection", "content-length", "date", "server", "transfer-encoding")


class FaultyS3:
    """`fault`: what happens to the next `times` uploads. `seen`: the uploads that came, failed ones too."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.times = 0
        self.seen: list[str] = []
        self.port = 0
        self.release = threading.Event()
        self._guard = threading.Lock()

    def fail(self, fault: Fault | None, times: int = 1_000_000) -> None:
        with self._guard:
            self.fault, self.times = fault, times

    def next(self, path: str) -> Fault | None:
        with self._guard:
            self.seen.append(path)
            if self.fault is None or not self.times:
                return None
            self.times -= 1
            return self.fault


@contextmanager
def faulty_s3(port: int) -> Iterator[FaultyS3]:
    """A proxy in front of the server at `port`."""
    state = FaultyS3()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def pass_on(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            fault = state.next(self.path) if self.command in ("PUT", "POST") else None
            if fault == "cut":
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if fault == "hold":
                state.release.wait(120)
                self.close_connection = True
                return
            if fault is not None:
                status, code = _ANSWERS[fault]
                self._answer(
                    status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode()
                )
                return
            there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    there.putheader(name, value)
            there.endheaders(body or None)
            found = there.getresponse()
            content = found.read()
            headers = {name: value for name, value in found.getheaders() if name.lower() not in _HOP}
            length_said = found.getheader("Content-Length") if self.command == "HEAD" else None
            there.close()
            self._answer(found.status, headers, content, length_said)

        def _answer(self, status: int, headers: dict[str, str], content: bytes, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815 - names of the base class

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that has gone away is what the tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()
