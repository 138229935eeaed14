"""One training run: its identity, its state, and its steps from preparation to outputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stages.project.locks import file_lock
from stages.project.params import Params
from stages.project.provenance import UNTRACKED, dvc_hash, git_revision, stage_code
from stages.project.workspace import dataset_document, model_dir, open_index
from stages.registry.journal import JOURNALS, RunJournal, journal_lock
from stages.training.outputs import record_outputs, write_outputs
from stages.training.processes import loader_workers, stop_requests
from stages.training.recorder import Recorder
from stages.training.run_identity import fingerprint, refuse_changed, run_identity, start_weights
from stages.training.state_remote import StateRemote, state_remote
from stages.training.teacher import teacher_file
from yolov7.config import Train
from yolov7.model import ModelMetadata
from yolov7.train.distributed import Processes
from yolov7.train.initial import initial_model
from yolov7.train.loop import Trainer
from yolov7.train.progress import ProgressDisplay
from yolov7.train.records import Outcome
from yolov7.train.state import StateFolder, prune
from yolov7.train.teacher import load_teacher

log = logging.getLogger(__name__)

STATES = Path(".state/train")
_KEPT_RUNS = 3


@dataclass(frozen=True)
class TrainingRun:
    """One variant with its parameters and data, its states, the copies of them, and its MLflow journal."""

    variant: str
    train: Train
    data: dict[str, Any]
    """`dataset.json` of the ingested data."""
    states: StateFolder
    remote: StateRemote | None
    """Copies of the states for other machines; None where none are configured."""
    experiment: str

    @classmethod
    def of(cls, params: Params, variant: str) -> TrainingRun:
        """The run that `params.yaml` and the ingested data describe now."""
        train, data = params.train_for(variant), dataset_document()
        teacher_file(train)  # before anything is made for a training that cannot begin
        identity = run_identity(variant, train, data, start_weights(train))
        folder = STATES / variant / fingerprint(identity)
        remote = state_remote(params.flow, folder, _journal_of(folder))
        offer = remote.offer if remote else lambda state: None
        states = StateFolder(folder, identity, code=stage_code("train") or "", on_saved=offer)
        return cls(variant, train, data, states, remote, params.registry.experiment)

    @property
    def folder(self) -> Path:
        """Folder of the states: `.state/train/VARIANT/KEY`."""
        return self.states.folder

    @property
    def key(self) -> str:
        """The fingerprint of the identity."""
        return self.folder.name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the states and the journal against every other process of this machine."""
        with file_lock(self.folder / "lock"), journal_lock(_journal_of(self.folder)):
            yield

    # Before the training ---------------------------------------------------------------------------------------------

    def start_over(self) -> None:
        """Delete every state, here and in the remote, and begin a new journal."""
        with self.lock():
            self._forget()
            self.open_journal(fresh=True)

    def prepare(self, *, fresh: bool) -> bool:
        """Make the folder of states ready; returns whether the run begins from nothing."""
        if not fresh:
            if self.remote is not None:
                self.remote.bring()
            refuse_changed(self.variant, self.states)  # before pruning: a refused run must not displace older ones
            fresh = self._made_by_other_code()
        if fresh:
            self._forget()
        prune(self.folder.parent, _KEPT_RUNS, self.folder)
        return fresh

    def open_journal(self, *, fresh: bool) -> RunJournal:
        """The journal of the run's records for MLflow."""
        return RunJournal(_journal_of(self.folder), experiment=self.experiment, run_name=self.variant, fresh=fresh)

    def _forget(self) -> None:
        self.states.clear()
        if self.remote is not None:
            self.remote.forget()

    def _made_by_other_code(self) -> bool:
        """True if this run finished under code that has changed since: its result is out of date.

        An unfinished run resumes, since the change may be the fix that it was stopped for; the log says so.
        """
        last = self.states.last()
        if last is None or not last.code or not self.states.code or last.code == self.states.code:
            return False
        if last.finished:
            log.info("%s: the code has changed since this training finished: it is trained again", self.variant)
            return True
        log.warning(
            "%s: the code has changed since the last state; the training resumes nevertheless "
            "(`python -m stages.train --variant %s --fresh` starts over)",
            self.variant,
            self.variant,
        )
        return False

    # The training ----------------------------------------------------------------------------------------------------

    def fit(self, journal: RunJournal | None, device: torch.device, processes: Processes) -> Outcome:
        """Train to the end, or until a signal asks to stop. Only the first process has a journal and shows progress."""
        train_index, val_index = open_index("train"), open_index("val")
        model = initial_model(self.variant, self.train, train_index)
        metadata = ModelMetadata.of(
            model,
            class_names=tuple(train_index.class_names),
            category_ids=tuple(train_index.category_ids),
            image_size=self.train.image_size,
            extra={"data_sha256": self.data["sha256"]},
        )
        teacher = load_teacher(self.train, model.spec, metadata.class_names, teacher_file(self.train))
        if journal is not None and journal.empty:
            self._describe(journal, device, processes)
        display = ProgressDisplay()
        listeners = () if journal is None else (display, Recorder(journal, self.folder, metadata.class_names))
        with stop_requests() as stop:
            trainer = Trainer(
                model,
                train_index=train_index,
                val_index=val_index,
                params=self.train,
                states=self.states,
                metadata=metadata,
                listeners=listeners,
                device=device,
                workers=loader_workers(device),
                stop=stop,
                processes=processes,
                teacher=teacher,
            )
            try:
                return trainer.fit()
            finally:
                display.close()

    def _describe(self, journal: RunJournal, device: torch.device, processes: Processes) -> None:
        journal.parameters({"variant": self.variant, **self.train.model_dump(mode="json")})
        journal.tags(
            {
                "variant": self.variant,
                "fingerprint": self.key,  # finds the run where run.json does not have its id yet
                "git_revision": git_revision(),
                "data_sha256": self.data["sha256"],
                "data_dvc": dvc_hash("data/ingested") or UNTRACKED,
                "data_source": self.data.get("source", ""),
                "device": device.type,
                "processes": processes.world_size,
            }
        )

    # After it --------------------------------------------------------------------------------------------------------

    def close(self, outcome: Outcome, journal: RunJournal, device: torch.device) -> None:
        """Send the last copy of the state; write the outputs if the training is finished."""
        if self.remote is not None:
            self.remote.close(finished=outcome.finished)
        if not outcome.finished:
            journal.deliver(force=True)
            return
        out = model_dir(self.variant) / "train"
        write_outputs(out, outcome, self.train, device, variant=self.variant)
        record_outputs(out, journal, variant=self.variant, key=self.key, seed=self.train.seed, unused=outcome.unused)


def _journal_of(folder: Path) -> Path:
    return JOURNALS / f"{folder.parent.name}-{folder.name}.jsonl"
