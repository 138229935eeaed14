"""Training in several processes, on one machine or many. The machine decides how many, not params.yaml.

`YOLOV7_PROCESSES` (default 1) is the number on this machine, one for each GPU. For several machines the same command
runs on each of them with `YOLOV7_NODES`, their number, and `YOLOV7_RENDEZVOUS`, HOST:PORT of one of them.
`YOLOV7_RESTARTS` (default 0) is how often all are restarted after one has died; they resume from the newest state.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stages.project.command import EXIT_ERROR, EXIT_RESUMABLE, Interrupted
from stages.project.home import experiment_origin, project_root
from yolov7.data.workers import default_workers
from yolov7.device import choose_device
from yolov7.errors import ConfigError, YoloError
from yolov7.train.distributed import Processes, is_echo, join_processes, launched, local_rank, share_of_batch

Fit = Callable[[torch.device, Processes], tuple[Path, bool]]
"""Trains in one of the processes; returns the folder of the states, and whether all is finished."""


def train_in_processes(
    arguments: Sequence[str], fit: Fit, *, batch_size: int, before: Callable[[], None] = lambda: None
) -> None:
    """Train as the stage `python ARGUMENTS`, in the processes that the environment asks for.

    `before` is called once, before there are any: those that are restarted after a failure must resume. Raises
    :class:`Interrupted` for a training that was stopped on request.
    """
    status = start_processes(arguments, batch_size=batch_size, before=before)
    if status is not None:
        sys.exit(status)
    device = choose_device(os.environ.get("YOLOV7_DEVICE", "auto"), local_rank=local_rank())
    with join_processes(device) as processes:
        if not processes.main:
            logging.getLogger().setLevel(logging.WARNING)  # the first process logs the rest once for all
        try:
            folder, finished = fit(device, processes)
        except YoloError as error:
            if processes.main or not is_echo(error):
                raise
            sys.exit(EXIT_ERROR)  # the first process prints it
    if not finished:
        if not processes.main:
            sys.exit(EXIT_RESUMABLE)
        if experiment_origin(project_root()) is not None:
            raise Interrupted("DVC deletes the folder of an experiment that has not finished: it will start over")
        raise Interrupted(f"the state is saved in {folder}; the same command resumes it")


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
