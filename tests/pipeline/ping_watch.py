"""Watch a server from a process of its own: `python -m tests.pipeline.ping_watch PORT PID FILE`.

Every line of the file is one look: milliseconds of a GET /ping, milliseconds of the same request to an idle server that
this process starts next to it, and the bytes that process PID and its descendants hold. The idle server suffers from a
loaded machine just as the watched one does; the difference is the watched server's own.
"""

from __future__ import annotations

import http.client
import multiprocessing
import socket
import sys
import time
from pathlib import Path

import psutil

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n\n"


def idle_server(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(ANSWER)


def ping(port: int) -> float:
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/ping", headers={"connection": "close"})
        response = connection.getresponse()
        response.read()
        # A failure counts as one that took very long.
        return 1e3 * (time.perf_counter() - start) if response.status == 200 else 60e3
    except OSError:
        return 60e3
    finally:
        connection.close()


def main(port: int, pid: int, file: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    multiprocessing.Process(target=idle_server, args=(listener,), daemon=True).start()
    first = psutil.Process(pid)
    family = [first, *first.children(recursive=True)]
    with file.open("w") as lines:
        while True:
            watched, idle = ping(port), ping(listener.getsockname()[1])
            resident = sum(process.memory_info().rss for process in family)
            print(f"{watched:.2f} {idle:.2f} {resident}", file=lines, flush=True)
            time.sleep(0.02)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
