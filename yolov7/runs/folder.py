"""The folder of a run: where its files are, and the record of what it was trained with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from yolov7.documents import DocumentError, load_json
from yolov7.errors import TrainingError
from yolov7.figures.curve import Curve, curves
from yolov7.files import write_json, write_text
from yolov7.folders import remove
from yolov7.train.records import LOSS_PREFIX, loss_parts

_RECORD = "run.json"
_LOCK = ".lock"
_RESULTS = (
    "best.safetensors", "last.safetensors", "history.csv", "curves.csv", "metrics.json", "summary.md", "ap.svg",
    "losses.svg", "pictures",
)  # fmt: skip
"""Written once the training has finished."""
_OWN = ("data", "state", "state-first", *_RESULTS)
"""Names that a training writes over."""


@dataclass(frozen=True)
class RunFolder:
    """Paths below one run."""

    path: Path

    @property
    def states(self) -> Path:
        """The resumable states, and the best weights so far."""
        return self.path / "state"

    @property
    def first(self) -> Path:
        """The states of the first of two chained trainings."""
        return self.path / "state-first"

    @property
    def data(self) -> Path:
        """The indices of the data."""
        return self.path / "data"

    @property
    def best(self) -> Path:
        """The weights with the best validation AP, once the training has finished."""
        return self.path / "best.safetensors"

    @property
    def export(self) -> Path:
        """The export folder by default."""
        return self.path / "export"

    def evaluation(self, split: str) -> Path:
        """Figures and report of an evaluation on `split`."""
        return self.path / "evaluation" / split

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out. Raises :class:`TrainingError` where one trains here already, and for a folder of
        something else whose content a training would write over.
        """
        self._refuse_foreign()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise TrainingError(f"{self.path}: another process is training into this folder") from None
        try:
            yield
        finally:
            lock.release()

    def _refuse_foreign(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"{self.path}: a file; name a folder for the run")
        if self.has_record() or (self.path / _LOCK).is_file():  # the lock comes first, the record after the data
            return
        taken = [name for name in _OWN if os.path.lexists(self.path / name)]
        if taken:
            raise TrainingError(
                f"{self.path}: not the folder of a run, and holds {', '.join(taken)}, which a training would write "
                "over; name another folder"
            )

    def writes_over(self, file: Path) -> bool:
        """True for a file that a training into this folder replaces or deletes."""
        path, file = self.path.resolve(), file.resolve()
        return file.is_relative_to(path) and file != path and file.relative_to(path).parts[0] in _OWN

    def start_over(self) -> None:
        """Delete states, record and results: beside the record of another training they would pass for its own."""
        for name in (self.states.name, self.first.name, *_RESULTS, _RECORD):
            remove(self.path / name)

    def has_record(self) -> bool:
        """True if a run was begun here."""
        return (self.path / _RECORD).is_file()

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        write_json(self.path / _RECORD, dict(record))

    def read_record(self) -> dict[str, Any]:
        """The content of `run.json`. Raises :class:`TrainingError` where this is not the folder of a run."""
        file = self.path / _RECORD
        try:
            found = load_json(file)
        except FileNotFoundError:
            raise TrainingError(f"{self.path}: not the folder of a run, it has no {_RECORD}") from None
        except (OSError, DocumentError) as error:
            raise TrainingError(f"{file}: not readable as JSON: {error}") from None
        if not isinstance(found, dict) or not isinstance(found.get("train"), dict):
            raise TrainingError(f"{file}: not the record of a run")
        return found

    def draw_curves(self, history: Sequence[Mapping[str, float]]) -> None:
        """Draw the validation AP and the losses over the epochs, `ap.svg` and `losses.svg`."""
        names = [name for name in ("val/AP", "val/AP50") if any(name in row for row in history)]
        if names:
            lines = [_curve(name.removeprefix("val/"), name, history) for name in names]
            write_text(self.path / "ap.svg", curves(lines, x="epoch", y="validation AP"))
        lines = [_curve(name, LOSS_PREFIX + name, history) for name in loss_parts(history[0])]
        top = max(float(np.nanmax(line.middle)) for line in lines)
        write_text(self.path / "losses.svg", curves(lines, x="epoch", y="loss", span=(0.0, top if top > 0 else 1.0)))


def _curve(name: str, column: str, history: Sequence[Mapping[str, float]]) -> Curve:
    rows = [row for row in history if column in row]
    values = np.maximum([row[column] for row in rows], 0.0)  # AP is -1 without objects
    return Curve(name, [int(row["epoch"]) + 1 for row in rows], values, values, values)
