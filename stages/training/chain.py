"""Two trainings in one stage, the second of which needs what the first has learnt.

Each is a run of its own, with its identity, its states, its copies and its MLflow run. The weights of the first stay in
its state folder; their sha256 is part of the second's identity.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stages.project.params import Params
from stages.project.workspace import dataset_document
from stages.training.run import First, TrainingRun
from yolov7.config import Train
from yolov7.errors import TrainingError
from yolov7.files import atomic_path, sha256_file
from yolov7.train.chain import link_of
from yolov7.train.distributed import Processes

log = logging.getLogger(__name__)


class Trainings:
    """What `params.yaml` and the ingested data ask the stage of a variant to train: one run, or two in a row."""

    def __init__(self, params: Params, variant: str):
        self._params, self._variant, self._data = params, variant, dataset_document()
        self.train = params.train_for(variant)
        self._link = link_of(self.train)

    def first(self) -> TrainingRun:
        """The first run, or the only one."""
        if self._link is None:
            return self._run(self.train)
        return self._run(self._link.first, role=self._link.role, rest=self._rest)

    def second(self, first: TrainingRun, sha256: str) -> TrainingRun:
        """The run that uses the weights of `first` with this digest."""
        assert self._link is not None
        path = first.folder / self._link.weights
        return self._run(self._link.second(path.as_posix(), sha256), first=First(first.role, first.key, sha256))

    def _run(self, train: Train, **more: Any) -> TrainingRun:
        return TrainingRun.of(self._params, self._variant, train=train, data=self._data, **more)

    def _rest(self, first: TrainingRun) -> TrainingRun | None:
        """The second run, where the first has left its weights."""
        assert self._link is not None
        path = first.folder / self._link.weights
        return self.second(first, sha256_file(path)) if path.is_file() else None

    def start_over(self) -> None:
        """Delete every state, here and in the remote, and begin new journals."""
        first = self.first()
        if self._link is not None:
            first.brought()  # its weights lead to the second, whose copy another machine would resume
        for run in (first.rest(first), first):
            if run is not None:
                run.start_over()

    def fit(self, device: torch.device, processes: Processes, *, fresh: bool) -> tuple[TrainingRun, bool]:
        """Train in this process, one of `processes`; returns the run that came last, and whether all is finished.

        The first process keeps the records and writes the outputs. What has been finished is not trained again.
        """
        run = self.first()
        finished, asked = train(run, device, processes, fresh=fresh)
        if self._link is None or not finished or asked:
            return run, finished and self._link is None
        path = run.folder / self._link.weights
        sha256 = processes.on_main(partial(_digest, path, run))
        hand_out(path, sha256, processes)
        run = self.second(run, sha256)
        finished, _ = train(run, device, processes, fresh=fresh)
        return run, finished


def train(run: TrainingRun, device: torch.device, processes: Processes, *, fresh: bool) -> tuple[bool, bool]:
    """Train one run; returns whether it is finished, and whether a signal has asked to stop."""
    with run.lock() if processes.main else nullcontext():
        fresh = processes.on_main(lambda: run.prepare(fresh=fresh))
        if processes.on_main(lambda: run.role != "" and run.is_recorded()):
            log.info("the %s of %s is finished: nothing to train", run.role, run.variant)
            return True, False
        journal = run.open_journal(fresh=fresh) if processes.main else None
        outcome, asked = run.fit(journal, device, processes)
        if journal is not None:
            run.close(outcome, journal, device)
        processes.wait()
    return outcome.finished, asked


def _digest(path: Path, run: TrainingRun) -> str:
    if not path.is_file():
        raise TrainingError(
            f"{path}: missing, though the {run.role} is finished; put it back, or delete {run.folder} to train it again"
        )
    return sha256_file(path)


def hand_out(path: Path, sha256: str, processes: Processes) -> None:
    """Give the first process's file to processes on machines that do not have it."""

    def missing() -> bool:
        return not path.is_file() or sha256_file(path) != sha256

    (needed,) = processes.any(missing())
    if needed:
        content = processes.on_main(path.read_bytes)
        if missing():
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
