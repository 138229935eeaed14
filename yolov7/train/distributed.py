"""Several processes that train one model together, or one that trains alone.

The processes are torch.distributed's, started by torchrun or anything that sets the same variables (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT). The trainer talks to a :class:`Processes`; that of a single process answers at
once and starts nothing.

The processes never drift apart: every decision about the next step (a loss that is not finite, a request to stop, a
new best, an early end) is taken by all of them together or by the first one for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from yolov7.device import distributed_backend
from yolov7.errors import ConfigError, YoloError
from yolov7.loss import Totals
from yolov7.train.state import TrainingState

T = TypeVar("T")

# Longer than any evaluation, save or upload of the first process, for which the others wait.
_PATIENCE = timedelta(hours=2)
_ECHO = "raised by the first process"
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """One process alone."""

    rank = 0
    world_size = 1

    @property
    def main(self) -> bool:
        """True if this is the first process: the one that reads and writes states, writes weights and reports."""
        return self.rank == 0

    @property
    def totals(self) -> Totals | None:
        """Sums figures over the processes, for the criterion; None if there is only one process."""
        return None

    def sum(self, figures: Tensor) -> Tensor:
        """Sums over the processes."""
        return figures

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Set float tensors to their means over the processes."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any process has set it."""
        return flags

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, on the first one; nothing on the others."""
        return items

    def on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on the first process; all get its result, or the error that it raised."""
        return work()

    def share(self, state: TrainingState | None) -> TrainingState | None:
        """The state that the first process found, on all of them: the others need no access to its folder."""
        return state

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in training; its gradients are those of the whole batch."""
        return model

    def wait(self) -> None:
        """Wait until all processes have reached this point."""


class TorchProcesses(Processes):
    """The default process group of torch.distributed."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    @property
    def totals(self) -> Totals:
        """See :class:`Processes`."""

        def add(figures: Tensor) -> Tensor:
            return self.sum(figures.detach().to("cpu", torch.float64, copy=True))

        return add

    def sum(self, figures: Tensor) -> Tensor:
        """See :class:`Processes`; `figures` is changed in place."""
        dist.all_reduce(figures)
        return figures

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """See :class:`Processes`; everything travels in one message."""
        flat = self.sum(torch.cat([tensor.reshape(-1) for tensor in tensors])) / self.world_size
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """See :class:`Processes`."""
        raised = self.sum(torch.tensor(flags, dtype=torch.int64))
        return tuple(bool(count) for count in raised)

    def gather(self, items: list[T]) -> list[T]:
        """See :class:`Processes`."""
        parts: list[Any] | None = [None] * self.world_size if self.main else None
        dist.gather_object(items, parts)
        return [item for part in parts or () for item in part]

    def on_main(self, work: Callable[[], T]) -> T:
        """See :class:`Processes`."""
        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer[0] = work()
            except YoloError as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
        failure = cast(YoloError | None, answer[1])
        if failure is not None:
            if not self.main:
                failure.add_note(_ECHO)
            raise failure
        return cast(T, answer[0])

    def share(self, state: TrainingState | None) -> TrainingState | None:
        """See :class:`Processes`."""
        own = {} if state is None else {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()}
        found = self.on_main(lambda: None if state is None else (state.values, shapes))
        if found is None:
            return None
        values, shapes = found
        tensors = own or {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
        for tensor in tensors.values():
            dist.broadcast(tensor, src=0)
        return TrainingState(tensors, values)

    def wrap(self, model: nn.Module) -> nn.Module:
        """See :class:`Processes`. All processes start from the weights of the first.

        Gradients are averaged over the processes during the backward pass of every batch, so that those of an
        unfinished accumulation window are the same everywhere and can be saved.
        """
        for parameter in model.parameters():
            if parameter.ndim and parameter.shape[0] == 1:
                # A gradient of one row has plain strides; where those of its parameter differ DDP would warn.
                parameter.data = parameter.data.flatten().view(parameter.shape)
        return DistributedDataParallel(model, forward_sync_buffers=False)

    def wait(self) -> None:
        """See :class:`Processes`."""
        self.on_main(lambda: None)


def is_echo(error: YoloError) -> bool:
    """True if the error comes from the first process and is only repeated here: that process prints it."""
    return _ECHO in getattr(error, "__notes__", ())


def launched() -> bool:
    """True if torchrun or a similar launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int | None:
    """This process's number among those of its machine; None if it is alone."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else None


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """The processes this one was started among, for as long as the context lasts.

    Raises :class:`ConfigError` where a variable of theirs is missing.
    """
    if not launched():
        yield Processes()
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is set but not {', '.join(missing)}; start the processes with torchrun")
    store, rank, size = next(dist.rendezvous("env://", timeout=_PATIENCE))
    # torchrun lends its own store and keeps it across restarts, with the addresses of processes that died: the prefix
    # separates the attempts. Each machine counts its own restarts, so the prefix may only be used with that store;
    # with `launch` every start has a new one.
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = distributed_backend(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield TorchProcesses()
    finally:
        dist.destroy_process_group()


def share_of_batch(batch_size: int, processes: int) -> int:
    """Images of a batch of `batch_size` that each process takes. :class:`ConfigError` if they do not divide."""
    share = batch_size // processes
    if batch_size % processes:
        below, above = share * processes, (share + 1) * processes
        fitting = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"train.batch_size: {batch_size} images cannot be divided among {processes} processes; use {fitting}"
        )
    return share
