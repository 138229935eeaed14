"""Jobs for processes that decode images (`stages.images.worker`), some at a time; one that dies names its file."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stages.images.header import MAX_PIXELS
from yolov7.errors import DataError

_JOBS_PER_WORKER = 16
"""A worker takes half a second to start; for fewer jobs another one is not worth it."""

SECONDS = 60.0
"""Processor time one image may take."""

Job = Mapping[str, Any]
"""`task`, `source` (the image file) and what else the task needs: see the worker."""


def run_jobs(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The answers to all jobs, in their order.

    Raises :class:`DataError` naming the image that was refused, or that ended its worker by its memory, its time, or
    a defect of the decoder.
    """
    if not jobs:
        return []
    count = max(1, min(os.cpu_count() or 1, len(jobs) // _JOBS_PER_WORKER))
    workers = [_Worker() for _ in range(count)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(job: Job) -> dict[str, Any]:
        worker = idle.get()
        try:
            return worker.ask(job)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(count)
    try:
        return list(pool.map(run, jobs))
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker:
    """One process, which is started with its first job."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, job: Job) -> dict[str, Any]:
        """Have a job done. Raises :class:`DataError` as :func:`run_jobs`."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({**job, "seconds": SECONDS}).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            self.close()
            message = f"the process that decoded this image {_ending(process.returncode)}; remove the image, or save it"
            raise DataError(f"{message} again with another program", path=job["source"])
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise DataError(f"the image {answer['refused']}; remove it, or save it smaller", path=job["source"])
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stages.images.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS)},
        )
        return self._process

    def close(self) -> None:
        """End the process, if there is one: it ends when its input does."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            process.stdin.close()
        process.stdout.close()
        process.wait()


def _ending(code: int | None) -> str:
    if code == -signal.SIGPROF:
        return "took more processor time than one image may"
    if code == -signal.SIGKILL:
        return "was ended by the system, probably for lack of memory"
    if code is not None and code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return f"ended (exit code {code})"
