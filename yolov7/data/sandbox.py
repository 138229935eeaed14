"""Run functions on untrusted image files in processes with limits, where a decoder may crash.

Each process may take a fixed amount of memory beyond what it holds after its start, and a fixed processor time per
file. A file that wants more, or that ends its process in any other way, is reported; the others are not affected. What
decoders print there (they fill holes of a damaged file with grey, and say so on the error output) is kept for
:func:`complaints`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from yolov7.data.header import MAX_PIXELS
from yolov7.errors import DataError

try:
    import resource
except ImportError:  # Windows has no such limits; :func:`run_limited` says so
    resource = None  # type: ignore[assignment]

T = TypeVar("T")
R = TypeVar("R")

MEMORY = 1 << 30
"""Bytes one file may take: decoding, turning and encoding an image of MAX_PIXELS needs half of that."""
SECONDS = 60.0
"""Processor time one file may take."""

_AHEAD = 16
"""Items per process that wait for it."""
_OPENCV_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"
_environment_lock = threading.Lock()


@dataclass(frozen=True)
class Died:
    """No result: the file broke the limits, or its decoder."""

    why: str
    """The cause, for a sentence whose subject is the process or the decoding of the file."""


def run_limited(
    function: Callable[[T], R], items: Sequence[T], *, per_process: int, seconds: float | None = None
) -> Iterator[R | Died]:
    """`function` of each item, in their order, computed in processes with limits.

    `function` is defined at the top of a module; items and results can be pickled. It may read :func:`complaints`.
    A process takes about a second to start: there is one per `per_process` items, and at most one per processor.
    `seconds` is the processor time per item, :data:`SECONDS` by default. An exception that `function` lets through ends
    the process as a crash does. Raises :class:`DataError` where a process ends before its first item, and on
    systems that cannot limit processes.
    """
    if not items:
        return
    if resource is None:
        raise DataError(
            "images are decoded in processes with limits, which this system does not have (no `resource` module): "
            "use Linux or macOS, or a container"
        )
    count = max(1, min(_processors(), len(items) // per_process))
    limit = SECONDS if seconds is None else seconds
    processes = [_Process() for _ in range(count)]
    idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def run(item: T) -> R | Died:
        process = idle.get()
        try:
            return process.run(function, item, limit)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(count)
    waiting: deque[Future[R | Died]] = deque()
    try:
        # A million futures at once would take a gigabyte.
        for item in items:
            waiting.append(threads.submit(run, item))
            if len(waiting) > _AHEAD * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.close()


def breaks_out(path: Path, died: Died) -> DataError:
    """The error for an image that broke the limits or its decoder."""
    advice = "remove the image, or save it smaller or with another program"
    return DataError(f"the process that decoded this image {died.why}; {advice}", path=path)


def clear_complaints() -> None:
    """Discard the output of decoders so far. Only for functions under :func:`run_limited`."""
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)


def complaints() -> str:
    """Output of decoders since the last :func:`clear_complaints`."""
    return os.pread(2, 65536, 0).decode("utf-8", "replace")


class _Process:
    """One process with limits, started with its first item and replaced after it died."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def run(self, function: Callable[[T], R], item: T, seconds: float) -> R | Died:
        """One result."""
        connection = self._connection or self._start()
        try:
            connection.send((function, item, seconds))
            return connection.recv()
        except (EOFError, ConnectionError):
            return Died(_ending(self.close()))

    def _start(self) -> Connection:
        # Spawned, not forked: the parent holds threads, and the child needs an error output of its own.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _opencv_limit():
            self._process.start()
        theirs.close()
        try:
            self._connection.recv()
        except (EOFError, ConnectionError):
            ending = _ending(self.close())
            raise DataError(f"the processes that decode images do not start: one {ending}") from None
        return self._connection

    def close(self) -> int | None:
        """End the process, if there is one, and return its exit code: it ends when its connection does."""
        process, connection, self._process, self._connection = self._process, self._connection, None, None
        if process is None or connection is None:
            return None
        connection.close()
        process.join()
        code = process.exitcode
        process.close()
        return code


@contextlib.contextmanager
def _opencv_limit() -> Iterator[None]:
    """Set OpenCV's own limit on pixels for a process that is started now: it reads its environment once."""
    with _environment_lock:
        before = os.environ.get(_OPENCV_LIMIT)
        os.environ[_OPENCV_LIMIT] = str(MAX_PIXELS)
        try:
            yield
        finally:
            if before is None:
                del os.environ[_OPENCV_LIMIT]
            else:
                os.environ[_OPENCV_LIMIT] = before


def _serve(connection: Connection) -> None:
    """In the process: answer until the connection ends."""
    _prepare()
    connection.send("ready")
    while True:
        try:
            function, item, seconds = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)  # nothing handles its signal: it ends the process
        try:
            answer = function(item)
        except MemoryError:
            answer = Died(f"takes more than {MEMORY >> 20} MiB of memory")
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(answer)


def _prepare() -> None:
    """Send all output to a file, limit memory, and leave the other processors to the other processes."""
    import cv2

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with contextlib.suppress(ImportError):  # the library does not need Pillow
        import PIL.Image

        PIL.Image.MAX_IMAGE_PIXELS = None  # our own limit comes before anything is decoded
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    held = Path("/proc/self/statm")
    if held.is_file():  # other systems keep the limit on pixels
        limit = int(held.read_text(encoding="ascii").split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _ending(code: int | None) -> str:
    if code == -signal.SIGPROF:
        return "took more processor time than one image may"
    if code == -signal.SIGKILL:
        return "was ended by the system, probably for lack of memory"
    if code is not None and code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"ended (exit code {code})"


def _processors() -> int:
    """Processors this process may use; systems that cannot tell give those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
