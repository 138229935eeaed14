"""The processes a run starts, found again by marks in their environment, and ended as whole trees.

Children stay in the caller's process group, so ending the group ends them too. Every descendant also inherits a mark in
its environment, which finds the whole tree even after DVC has died and left its children without a parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from stages.project.command import environment

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

_MARK = "YOLOV7_PIPELINE_CHILD"
_OWNER = "YOLOV7_PIPELINE_OWNER"
"""In a child's environment: PID and start time of the process that started it, and the project folder."""
_SAME_START_SECONDS = 2.0
"""Tolerance for comparing start times: a reused PID differs by more than this."""
_GRACE_SECONDS = 20.0
"""Between the request to stop, when a training saves its state, and the kill."""


def child_environment(mark: str, root: Path) -> dict[str, str]:
    """The environment of a child: ours, the mark, and the owner by which leftovers are recognised."""
    variables = environment()
    # `python` in dvc.yaml must be the interpreter that runs us, even where the virtual environment is not activated.
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    owner = f"{os.getpid()} {psutil.Process().create_time()} {root}"
    return {**variables, "PYTHONUNBUFFERED": "1", _MARK: mark, _OWNER: owner}


def end_tree(process: subprocess.Popen[str], mark: str) -> None:
    """Ask the child and every process with its mark to stop; kill what is left after the grace period."""
    # All get the signal at once: DVC must not see its child fail and start something else.
    for each in (asked := _marked(mark)):
        _signal(each, kill=False)
    # psutil must not wait for our own child: it would take the exit code that Popen is waiting for.
    others = [each for each in asked if each.pid != process.pid]
    deadline = time.monotonic() + _GRACE_SECONDS
    psutil.wait_procs(others, _GRACE_SECONDS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, deadline - time.monotonic()))
    for each in _marked(mark):
        _signal(each, kill=True)
    process.wait()


def end_leftovers(root: Path, log: Log) -> None:
    """End the processes in `root` whose owner is dead; a training saves its state first."""
    left = [each for each in psutil.process_iter() if _is_leftover(each, root)]
    if not left:
        return
    log.warning("a killed run left %d processes in %s; stopping them", len(left), root)
    for each in left:
        _signal(each, kill=False)
    _, alive = psutil.wait_procs(left, _GRACE_SECONDS)
    for each in alive:
        _signal(each, kill=True)
    psutil.wait_procs(alive, _GRACE_SECONDS)


def _is_leftover(process: psutil.Process, root: Path) -> bool:
    try:
        number, started, folder = process.environ().get(_OWNER, "").split(" ", 2)
        if folder != str(root) or process.status() == psutil.STATUS_ZOMBIE:
            return False
    except (psutil.Error, OSError, ValueError):
        return False  # already gone, another user's, or not ours
    try:
        owner = psutil.Process(int(number))
        return abs(owner.create_time() - float(started)) > _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True


def _marked(mark: str) -> list[psutil.Process]:
    """Processes whose environment holds the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # already gone, or another user's
    return found


def _signal(process: psutil.Process, *, kill: bool) -> None:
    with contextlib.suppress(psutil.Error):  # already gone
        process.kill() if kill else process.terminate()
