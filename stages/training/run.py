"""One training run: its identity, its state, and its steps from preparation to outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from stages.project.locks import file_lock
from stages.project.params import Params
from stages.project.provenance import UNTRACKED, dvc_hash, git_revision, stage_code
from stages.project.workspace import model_dir, open_index
from stages.registry.journal import JOURNALS, RunJournal, delivered, journal_lock
from stages.training.outputs import finish_journal, record_outputs
from stages.training.recorder import Recorder
from stages.training.run_identity import refuse_changed, start_scales, start_weights
from stages.training.state_remote import StateRemote, state_remote
from stages.training.teacher import teacher_file
from stages.training.trainer import trainer_of
from yolov7.config import Train
from yolov7.data.index import Index
from yolov7.train.distributed import Processes
from yolov7.train.identity import fingerprint, run_identity
from yolov7.train.loop import Trainer
from yolov7.train.outputs import write_outputs, write_records
from yolov7.train.progress import ProgressDisplay
from yolov7.train.records import Outcome
from yolov7.train.state import Last, StateFolder, prune
from yolov7.train.stopping import stop_requests

log = logging.getLogger(__name__)

STATES = Path(".state/train")
_KEPT_RUNS = 3


@dataclass(frozen=True)
class First:
    """The training whose weights another one needs."""

    role: str
    key: str
    """Its fingerprint."""
    sha256: str
    """Of the weights."""


def _no_rest(run: TrainingRun) -> TrainingRun | None:
    return None


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
    role: str = ""
    """What the first of two trainings is for the second, such as `teacher`; empty for any other."""
    first: First | None = None
    """The first of two trainings, for the second."""
    rest: Callable[[TrainingRun], TrainingRun | None] = _no_rest
    """The second of two trainings, for the first, once that has left weights."""
    stage: ClassVar[str] = "train"
    """The stage that makes such runs."""
    inputs: ClassVar[tuple[str, ...]] = ("data",)
    """Parts of the identity that earlier stages make: where they are others, a stopped run is no longer wanted."""
    names: ClassVar[Mapping[str, str]] = {}
    """Parameters of the identity -> where params.yaml has them, if under another name."""

    @classmethod
    def of(
        cls,
        params: Params,
        variant: str,
        *,
        train: Train,
        data: dict[str, Any],
        role: str = "",
        first: First | None = None,
        rest: Callable[[TrainingRun], TrainingRun | None] = _no_rest,
    ) -> TrainingRun:
        """The run with these parameters on the ingested data."""
        if first is None:
            start_scales(train)
            teacher_file(train)  # before anything is made for a training that cannot begin
        identity = run_identity(variant, train, data, start_weights(train), first=first.key if first else None)
        folder = STATES / variant / fingerprint(identity)
        remote = state_remote(params.flow, folder, journal_of(folder))
        offer = remote.offer if remote else lambda state: None
        states = StateFolder(folder, identity, code=stage_code("train") or "", on_saved=offer)
        return cls(variant, train, data, states, remote, params.registry.experiment, role, first, rest)

    def _tags(self) -> dict[str, str]:
        """Tags of this kind of run."""
        return {**({"role": self.role} if self.role else {}), **self._link_tags()}

    @property
    def folder(self) -> Path:
        """Folder of the states: `.state/train/VARIANT/KEY`."""
        return self.states.folder

    @property
    def key(self) -> str:
        """The fingerprint of the identity."""
        return self.folder.name

    @property
    def title(self) -> str:
        """The variant, and its role if it is the first of two."""
        return f"{self.variant} {self.role}".strip()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the states and the journal against every other process of this machine."""
        with file_lock(self.folder / "lock"), journal_lock(journal_of(self.folder)):
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
            # Before pruning: a refused run must not displace older ones.
            refuse_changed(self.variant, self.states, stage=self.stage, inputs=self.inputs, names=self.names)
            fresh = self._made_by_other_code()
        if fresh:
            self._forget()
        prune(self.folder.parent, _KEPT_RUNS, self.folder, needs=self.first.key if self.first else None)
        return fresh

    def is_recorded(self) -> bool:
        """True if the training is finished and its records are complete; those that MLflow lacks are sent again."""
        last = self.states.last()
        if last is None or not last.finished:
            return False
        journal = self.open_journal(fresh=False)
        if journal.ended:
            journal.deliver(force=True)
        return journal.ended

    def open_journal(self, *, fresh: bool) -> RunJournal:
        """The journal of the run's records for MLflow."""
        return RunJournal(journal_of(self.folder), experiment=self.experiment, run_name=self.title, fresh=fresh)

    def _forget(self) -> None:
        self.states.clear()
        if self.remote is not None:
            self.remote.forget()

    def brought(self) -> Last | None:
        """The newest state, of this machine or of the remote."""
        if self.remote is not None:
            with self.lock():
                self.remote.bring()
        return self.states.last()

    def _made_by_other_code(self) -> bool:
        """True if this run finished under code that has changed since: its result is out of date.

        An unfinished run resumes, since the change may be the fix that it was stopped for; the log says so. The first
        of two is kept until the second has finished, and is then as old as that.
        """
        rest = self.rest(self)
        last = self.states.last() if rest is None else rest.brought()
        if rest is not None:
            if last is None or not last.finished:
                return False
            own = self.states.last()
            if own is None or own.code == self.states.code:
                # Begun again already: until it ends, the weights of the training before lie beside its states.
                return False
        if last is None or not last.code or not self.states.code or last.code == self.states.code:
            return False
        if last.finished:
            log.info("%s: the code has changed since this training finished: it is trained again", self.title)
            return True
        log.warning(
            "%s: the code has changed since the last state; the training resumes nevertheless "
            "(`python -m stages.%s --variant %s --fresh` starts over)",
            self.title,
            self.stage,
            self.variant,
        )
        return False

    # The training ----------------------------------------------------------------------------------------------------

    def fit(self, journal: RunJournal | None, device: torch.device, processes: Processes) -> tuple[Outcome, bool]:
        """Train to the end, or until a signal asks to stop; returns whether one has, too.

        Only the first process has a journal and shows progress.
        """
        train_index = open_index("train")
        if journal is not None and journal.empty:
            self._describe(journal, device, processes)
        display = ProgressDisplay()
        names = tuple(train_index.class_names)
        listeners = () if journal is None else (display, Recorder(journal, self.folder, names))
        with stop_requests() as stop:
            trainer = self._trainer(
                (train_index, open_index("val")), listeners=listeners, device=device, stop=stop, processes=processes
            )
            try:
                outcome = trainer.fit()
            finally:
                display.close()
            (asked,) = processes.any(stop())
        return outcome, asked

    def _trainer(self, indices: tuple[Index, Index], **how: Any) -> Trainer:
        """A trainer that begins or resumes; `how` are listeners, device, stop and processes."""
        return trainer_of(self.variant, self.train, indices, self.states, data_sha256=self.data["sha256"], **how)

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
                **self._tags(),
            }
        )

    def _link_tags(self) -> dict[str, str]:
        """Tags that lead from the second of two trainings to the first; its id is known once it has been delivered."""
        if self.first is None:
            return {}
        link = {"first_role": self.first.role, "first_fingerprint": self.first.key, "first_sha256": self.first.sha256}
        run_id = self._first_run_id()
        return link if run_id is None else {**link, "first_run": run_id}

    def _first_run_id(self) -> str | None:
        assert self.first is not None
        found: str | None = delivered({"variant": self.variant, "fingerprint": self.first.key}).get("run_id")
        return found

    # After it --------------------------------------------------------------------------------------------------------

    def close(self, outcome: Outcome, journal: RunJournal, device: torch.device) -> None:
        """Send the last copy of the state; write the outputs if the training is finished.

        The first of two has no outputs: its weights and records stay with its states.
        """
        if self.remote is not None:
            self.remote.close(finished=outcome.finished)
        if not outcome.finished:
            journal.deliver(force=True)
            return
        if self.role:
            write_records(self.folder, outcome, self.train, device, title=self.title)
            finish_journal(self.folder, journal)
            return
        out = model_dir(self.variant) / "train"
        write_outputs(out, outcome, self.train, device, variant=self.variant)
        first = None
        if self.first is not None:
            first = {**asdict(self.first), "run_id": self._first_run_id()}
            if not journal.ended:
                journal.tags(self._link_tags())  # again, in case MLflow was away when the training began
        record_outputs(
            out, journal, variant=self.variant, key=self.key, seed=self.train.seed, unused=outcome.unused, first=first
        )


def journal_of(folder: Path) -> Path:
    """The journal of the run whose states are in `folder`."""
    return JOURNALS / f"{folder.parent.name}-{folder.name}.jsonl"
