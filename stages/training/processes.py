"""Training in several processes, on one machine or many. The machine decides how many, not params.yaml.

`YOLOV7_PROCESSES` (default 1) is the number on this machine, one for each GPU. For several machines the same command
runs on each of them with `YOLOV7_NODES`, their number, and `YOLOV7_RENDEZVOUS`, HOST:PORT of one of them.
`YOLOV7_RESTARTS` (default 0) is how often all are restarted after one has died; they resume from the newest state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

from stages.project.command import EXIT_RESUMABLE
from yolov7.data.workers import default_workers
from yolov7.errors import ConfigError
from yolov7.train.distributed import launched, share_of_batch


def start_processes(
    arguments: Sequence[str], *, batch_size: int, before: Callable[[], None] = lambda: None
) -> int | None:
    """Run `python ARGUMENTS` in the processes that the environment asks for; returns their exit status, None for one.

    `before` is called once if any are started; on several machines it has returned on each before the first begins.
    Raises :class:`ConfigError` for an impossible setting, or a batch that cannot be divided among the processes.
    """
    processes, nodes = _number("YOLOV7_PROCESSES", 1), _number("YOLOV7_NODES", 1)
    if launched() or processes * nodes == 1:
        return None
    rendezvous = os.environ.get("YOLOV7_RENDEZVOUS", "")
    if nodes > 1 and not rendezvous:
        raise ConfigError("YOLOV7_NODES is set: set YOLOV7_RENDEZVOUS to HOST:PORT of one of the machines too")
    share_of_batch(batch_size, processes * nodes)
    from yolov7.train.launch import launch

    restarts = _number("YOLOV7_RESTARTS", 0)
    before()
    return launch(
        arguments, processes=processes, nodes=nodes, rendezvous=rendezvous, restarts=restarts, stopped=EXIT_RESUMABLE
    )


def restarted() -> bool:
    """True if the processes have been restarted after one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def loader_workers(device: torch.device) -> int:
    """Processes that load data for this one: `YOLOV7_WORKERS`, or 0 on a CPU, and up to 16 for an accelerator."""
    if "YOLOV7_WORKERS" in os.environ or device.type == "cpu":
        return _number("YOLOV7_WORKERS", 0)
    return default_workers(device)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    least = min(default, 1)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}: a number from {least} on is expected, got {text!r}")
    return int(text)
