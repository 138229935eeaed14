"""Running a function over keys in worker processes, results in the order of the keys."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from yolov7.errors import LostWorkerError, TrainingError, YoloError
from yolov7.memory import give_back_freed_memory

log = logging.getLogger(__name__)

_REQUESTS = (signal.SIGTERM, signal.SIGINT)
_GRACE_SECONDS = 3.0
"""Grace period before a worker that ignores the end of the work is killed: it may hang in a file system."""

_MOST = 16
"""Most loader processes by default."""

_LESS = "fewer loader processes (YOLOV7_WORKERS), or a smaller train.batch_size"

K = TypeVar("K")
R = TypeVar("R")


def default_workers(device: torch.device) -> int:
    """Processes that load data for a training on `device`: none for a CPU, whose cores compute, and up to 16 for
    an accelerator."""
    if device.type == "cpu":
        return 0
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST, max(cores, 1))


class _Failure:
    """A user's error on its way out of a worker: it must arrive as it was, not wrapped into a traceback."""

    def __init__(self, error: YoloError) -> None:
        self.error = error

    def pin_memory(self) -> _Failure:
        return self


class _Calls(Dataset[Any], Generic[K, R]):
    """The function dressed as a data set, which is what torch's loader calls with every key."""

    def __init__(self, function: Callable[[K], R]) -> None:
        self.function = function

    def __getitem__(self, key: K) -> R | _Failure:
        try:
            result = self.function(key)
            if get_worker_info() is not None:
                _share(result)
        except YoloError as error:
            return _Failure(error)
        except MemoryError as error:
            why = str(error) or "the system gives no more"
            return _Failure(TrainingError(f"out of memory while images are loaded: {why}; try {_LESS}"))
        return result


class OrderedMap(Generic[K, R]):
    """`function` over keys, in `workers` processes (0: in this one), which live until :meth:`close`.

    Results come in the order of the keys whatever the number of workers. `function` must be picklable where processes
    are not forked. A :class:`YoloError` raised inside a worker is raised here as it was.
    """

    def __init__(self, function: Callable[[K], R], *, workers: int = 0, pin_memory: bool = False) -> None:
        self._keys: list[K] = []
        self._loader: DataLoader[Any] = DataLoader(
            _Calls(function),
            batch_size=None,
            sampler=_Keys(self._keys),
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=initialize_worker if workers else None,
            # Only seeds that nothing reads come from it; without one, torch would draw them from its global generator.
            generator=torch.Generator().manual_seed(0),
            multiprocessing_context=_context() if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )

    def __call__(self, keys: Iterable[K]) -> Iterator[R]:
        """Results for `keys`. One round at a time: a new call ends the one before."""
        self._keys[:] = keys
        with _requests_held():
            results = iter(self._loader)
        for result in results:
            if isinstance(result, _Failure):
                raise result.error
            yield result

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        iterator, self._loader._iterator = self._loader._iterator, None
        # An abandoned round may still hold the iterator: dropping our reference would not end the processes then.
        if not isinstance(iterator, _MultiProcessingDataLoaderIter):
            return
        workers = tuple(iterator._workers)
        # torch would wait for each of them in turn, and then ask by SIGTERM, which they ignore.
        patience = threading.Timer(_GRACE_SECONDS, _kill, [workers])
        patience.start()
        try:
            iterator._shutdown_workers()
        except RuntimeError as error:
            # All results have arrived. A forked process also inherits exit handlers of other libraries (Prefect's
            # services), and dies in one that needs a thread which the fork did not copy.
            log.debug("a worker process did not end by itself: %s", error)
        finally:
            patience.cancel()
            _kill(workers)


@contextmanager
def lost_workers_explained() -> Iterator[None]:
    """Turn the death of a worker into a :class:`LostWorkerError`. torch reports it by a signal, at any line."""
    try:
        yield
    except RuntimeError as error:
        what = str(error).strip().rstrip(".")
        if not what.startswith("DataLoader worker (pid"):
            raise
        raise LostWorkerError(
            f"a process that loads data died: {what}. If the system has killed it for memory, "
            f"as its journal would say, try {_LESS}"
        ) from error


def _share(result: object) -> None:
    """Move the tensors of a result into the memory that processes share.

    torch would do it while sending, in a thread whose failure is not reported: the training would wait forever.
    """
    for value in vars(result).values() if hasattr(result, "__dict__") else ():
        if isinstance(value, Tensor) and value.numel():
            try:
                value.share_memory_()
            except RuntimeError as error:
                raise TrainingError(
                    f"a process that loads data finds no room for a batch in /dev/shm ({error}); make it larger "
                    f"(containers: --shm-size), or try {_LESS}"
                ) from error


class _Keys:
    def __init__(self, keys: list[Any]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[Any]:
        return iter(tuple(self.keys))

    def __len__(self) -> int:
        return len(self.keys)


def initialize_worker(_worker: int) -> None:
    """One thread per worker. Requests to stop are left to the main process, which then ends its workers.

    Such a request often reaches all processes at once: by Ctrl-C, from a supervisor, from a batch system. A worker that
    obeyed would kill its training in the middle of a batch. Workers exit with their parent, however it ends. What a
    training keeps of freed memory is not for them.
    """
    give_back_freed_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _requests_held() -> Iterator[None]:
    """Requests to stop wait: a worker that starts here does not see one before it has learned to ignore it."""
    if not hasattr(signal, "pthread_sigmask"):  # nor does such a system send requests to whole groups of processes
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            log.debug("worker process %s does not end; it is killed", worker.pid)
            worker.kill()


def _unchanged(value: R) -> R:
    return value


def _context() -> multiprocessing.context.BaseContext:
    """Forked workers start in milliseconds and share what is loaded; only Linux forks safely.

    A program that has chosen `spawn`, which is nowhere on Linux the default, gets it.
    """
    forks = sys.platform == "linux" and multiprocessing.get_start_method(allow_none=True) != "spawn"
    return multiprocessing.get_context("fork" if forks else "spawn")
