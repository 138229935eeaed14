"""Watch a server from a process of its own: `python -m tests.pipeline.ping_watch PORT PID FILE`.

Every line of the file is one look: milliseconds of a GET /ping; how many of them the machine was to blame for; and the
bytes that process PID and its descendants hold. The machine is to blame for the time in which this process or the
server had work and no core, as Linux counts it for every thread (`schedstat`): on a loaded machine it exceeds the
server's own by far. Elsewhere it counts as none.
"""

from __future__ import annotations

import http.client
import sys
import time
from pathlib import Path

import psutil


def waits(pid: int) -> dict[str, float]:
    """Milliseconds that each thread of a process has waited for a core so far."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            found[task.parent.name] = int(task.read_text().split()[1]) / 1e6
        except (OSError, IndexError):
            continue  # the thread has ended
    return found


def waited(before: dict[str, float], after: dict[str, float], main: int) -> float:
    """What the main thread waited, and the one that waited most: it may have held Python's lock meanwhile."""
    grown = {task: value - before.get(task, value) for task, value in after.items()}
    return grown.pop(str(main), 0.0) + max(grown.values(), default=0.0)


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
    first, here = psutil.Process(pid), psutil.Process()
    family = [first, *first.children(recursive=True)]
    server = family[-1].pid
    with file.open("w") as lines:
        while True:
            before, own = waits(server), waits(here.pid)
            took = ping(port)
            machine = waited(before, waits(server), server) + waited(own, waits(here.pid), here.pid)
            resident = sum(process.memory_info().rss for process in family)
            print(f"{took:.2f} {min(machine, took):.2f} {resident}", file=lines, flush=True)
            time.sleep(0.02)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
