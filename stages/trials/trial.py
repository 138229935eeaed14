"""One training beside the pipeline: by the rules of the train stage, with its state in `.state/trials/VARIANT/KEY`.

KEY is the fingerprint of everything that changes the result, as for the train stage. A trial that was killed resumes
from its state; a finished one leaves its figures (`result.json`), and is not trained again while data, parameters and
code stay. A trial trains in one process, with one learning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from stages.project.locks import file_lock
from stages.project.params import Params
from stages.project.provenance import git_revision, stage_code
from stages.project.workspace import dataset_document, open_index
from stages.registry.journal import JOURNALS, RunJournal, journal_lock
from stages.training.chain import link_of
from stages.training.recorder import Recorder
from stages.training.run_identity import start_scales, start_weights
from stages.training.teacher import teacher_file
from stages.training.trainer import trainer_of
from yolov7.config import Train
from yolov7.documents import DocumentError, load_json
from yolov7.errors import ConfigError
from yolov7.files import write_json
from yolov7.train.distributed import Processes
from yolov7.train.identity import fingerprint, run_identity
from yolov7.train.loop import BEST, LAST, Trainer
from yolov7.train.pictures import AssignedBatch
from yolov7.train.progress import ProgressDisplay
from yolov7.train.records import Outcome, StartReport
from yolov7.train.state import StateFolder
from yolov7.train.stopping import stop_requests

log = logging.getLogger(__name__)

TRIALS = Path(".state/trials")
RESULT = "result.json"
Watch = Callable[[int, float], bool]
"""Told the epoch (0-based) and validation AP of every validation, those before a resume too; True ends the trial."""


class Ending(StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    PRUNED = "pruned"
    """Ended by its :data:`Watch`."""
    INTERRUPTED = "interrupted"
    """A signal asked to stop: the state is saved, and the same trial resumes."""


@dataclass(frozen=True)
class TrialResult:
    """Figures of a finished trial."""

    ap: float
    """Best validation AP."""
    best_epoch: int
    """0-based."""
    epochs: int
    seconds: float
    """Time on training batches; validation is not counted."""
    history: list[dict[str, float]]
    """A row per epoch."""


@dataclass(frozen=True)
class Trial:
    """One variant with the parameters of one training."""

    variant: str
    train: Train
    identity: Mapping[str, Any]
    data_sha256: str
    code: str

    @classmethod
    def of(cls, variant: str, train: Train) -> Trial:
        """The trial on the ingested data. Raises :class:`ConfigError` for parameters that train twice, or for a start
        file that is missing."""
        if link_of(train) is not None:
            raise ConfigError(
                f"{variant}: `distill_from: self` and `rep_optimizer: chain` train twice, and a search or a choice "
                "compares single trainings; leave them out here"
            )
        start_scales(train)
        teacher_file(train)
        data = dataset_document()
        identity = run_identity(variant, train, data, start_weights(train))
        return cls(variant, train, identity, data["sha256"], stage_code("train") or "")

    @property
    def key(self) -> str:
        """The fingerprint of the identity."""
        return fingerprint(dict(self.identity))

    @property
    def folder(self) -> Path:
        """Folder of the state, and of the best weights if they are kept."""
        return TRIALS / self.variant / self.key

    @property
    def weights(self) -> Path:
        """The best weights, in training form."""
        return self.folder / BEST

    def result(self, *, weights: bool = False) -> TrialResult | None:
        """The figures, if the trial is finished under today's code; `weights`: and its weights are there."""
        try:
            found = load_json(self.folder / RESULT)
        except (OSError, DocumentError):
            return None
        if found.get("code") != self.code or (weights and not self.weights.is_file()):
            return None
        return TrialResult(**found["figures"])

    def run(
        self,
        params: Params,
        device: torch.device,
        *,
        name: str,
        tags: Mapping[str, object],
        watch: Watch = lambda epoch, ap: False,
        keep_weights: bool = False,
    ) -> tuple[Ending, TrialResult | None]:
        """Train to the end, or until `watch` or a signal ends it; resumes where it was stopped.

        `name` and `tags` are those of the MLflow run. The figures are there after :attr:`Ending.FINISHED`.
        """
        path = JOURNALS / f"trial-{self.variant}-{self.key}.jsonl"
        with file_lock(self.folder / "lock"), journal_lock(path):
            done = self.result(weights=keep_weights)
            if done is not None:
                log.info("%s is trained already: AP %.4f", name, done.ap)
                self._record_again(path, params, name, tags)
                return Ending.FINISHED, done
            fresh = self._out_of_date()
            if fresh:
                self._remove()
            journal = RunJournal(path, experiment=params.registry.experiment, run_name=name, fresh=fresh)
            if journal.empty:
                journal.parameters({"variant": self.variant, **self.train.model_dump(mode="json")})
                origin = {"variant": self.variant, "fingerprint": self.key, "data_sha256": self.data_sha256}
                journal.tags({**origin, "git_revision": git_revision(), "device": device.type})
            journal.tags(tags)
            ending, outcome = self._train(journal, device, watch)
            return ending, self._close(ending, outcome, journal, keep_weights=keep_weights)

    def _train(self, journal: RunJournal, device: torch.device, watch: Watch) -> tuple[Ending, Outcome]:
        states = StateFolder(self.folder, self.identity, code=self.code)
        indices = open_index("train"), open_index("val")
        display, recorder = ProgressDisplay(), _Records(journal, self.folder, tuple(indices[0].class_names))
        watcher = _Watcher(watch)
        with stop_requests() as asked:
            trainer = trainer_of(
                self.variant,
                self.train,
                indices,
                states,
                data_sha256=self.data_sha256,
                listeners=(display, recorder, watcher),
                device=device,
                stop=lambda: watcher.ended or asked(),
                processes=Processes(),
            )
            watcher.trainer = trainer
            try:
                outcome = trainer.fit()
            finally:
                display.close()
        if outcome.finished:
            return Ending.FINISHED, outcome
        return (Ending.PRUNED if watcher.ended else Ending.INTERRUPTED), outcome

    def _close(
        self, ending: Ending, outcome: Outcome, journal: RunJournal, *, keep_weights: bool
    ) -> TrialResult | None:
        journal.tags({"ended": ending})
        if ending is Ending.INTERRUPTED:
            journal.deliver(force=True)
            return None
        result = None
        if ending is Ending.FINISHED:
            seconds = sum(row["seconds"] for row in outcome.history)
            result = TrialResult(outcome.best_ap, outcome.best_epoch, len(outcome.history), seconds, outcome.history)
            write_json(self.folder / RESULT, {"code": self.code, "figures": asdict(result)})
        journal.finish("FINISHED" if result else "KILLED")
        StateFolder(self.folder, {}).clear()  # nothing resumes from them any more
        (self.folder / LAST).unlink(missing_ok=True)
        if not (result and keep_weights):
            self.weights.unlink(missing_ok=True)
        return result

    def _record_again(self, path: Path, params: Params, name: str, tags: Mapping[str, object]) -> None:
        """Deliver what MLflow may lack, and say what the run is for now."""
        journal = RunJournal(path, experiment=params.registry.experiment, run_name=name)
        if not journal.empty:
            journal.tags(tags)
            journal.finish()

    def _out_of_date(self) -> bool:
        """True if the trial has finished under other code, or its weights are gone: it is trained again."""
        last = StateFolder(self.folder, {}).last()
        return (self.folder / RESULT).is_file() or (last is not None and last.finished and last.code != self.code)

    def _remove(self) -> None:
        StateFolder(self.folder, {}).clear()
        (self.folder / RESULT).unlink(missing_ok=True)


class _Watcher:
    """Listener that tells the AP of every validation."""

    def __init__(self, watch: Watch):
        self._watch = watch
        self.trainer: Trainer | None = None
        self.ended = False

    def started(self, report: StartReport) -> None:
        """Tell the validations before a resume."""
        assert self.trainer is not None
        for row in self.trainer.position.history:
            self._tell(row)

    def assigned(self, batch: AssignedBatch) -> None:
        """Nothing to tell."""

    def stepped(self, report: object) -> None:
        """Nothing to tell."""

    def epoch_ended(self, row: dict[str, float], *, best: bool) -> None:
        """Tell the AP, if there was a validation."""
        self._tell(row)

    def note(self, message: str) -> None:
        """Nothing to tell."""

    def _tell(self, row: Mapping[str, float]) -> None:
        if "val/AP" in row and not self.ended:
            self.ended = self._watch(int(row["epoch"]), row["val/AP"])


class _Records(Recorder):
    """Records figures without pictures: those of one training are enough."""

    def assigned(self, batch: AssignedBatch) -> None:
        """Draw nothing."""
