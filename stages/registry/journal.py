"""MLflow runs that lose nothing when the server is away.

Every record is first written to a journal on disk, then delivered in order. If delivery fails, training continues, the
journal keeps the record, and later calls retry with growing pauses. The next run, or `python -m stages.deliver`,
delivers the rest.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from stages.project.locks import try_file_lock
from stages.project.redaction import in_one_line
from stages.registry import delivery
from stages.registry.server import connect, metric_name, parameter_names
from yolov7.documents import load_json, parse_json
from yolov7.errors import TrainingError
from yolov7.files import write_json

log = logging.getLogger(__name__)

JOURNALS = Path(".state/mlflow")
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0
_REFUSALS = 5


def journal_lock(path: Path, *, wait: bool = True) -> AbstractContextManager[bool]:
    """Take this machine's exclusive lock on the journal at `path`; yields False if another process holds it.

    A training holds it from beginning to end: a reader could take a half-written line for damage.
    """
    return try_file_lock(path.with_suffix(".lock"), wait=wait)


class RunJournal:
    """One MLflow run, written to `path` first and delivered when the server can be reached.

    Hold :func:`journal_lock` if another process might use the journal.
    """

    def __init__(self, path: Path, *, experiment: str, run_name: str, fresh: bool = False):
        """Open the journal at `path`, or begin one (`fresh`: even if one exists)."""
        self.path = path
        self.experiment = experiment
        self._head_file, self._files = path.with_suffix(".json"), path.with_suffix(".files")
        head = None if fresh else self._read_head()
        if head is None:
            head = {"journal": uuid.uuid4().hex, "experiment": experiment, "run_name": run_name, "run_id": None}
            head |= {"delivered": 0, "start_time": int(time.time() * 1000)}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            shutil.rmtree(self._files, ignore_errors=True)
        self._head = head
        self._events = self._read_events()
        # Events may be lost with a machine or in a torn line: those that follow are due all the same.
        self._head["delivered"] = min(self._head["delivered"], len(self._events))
        self._pause, self._next_attempt, self._warned = _FIRST_PAUSE, 0.0, False
        self._client: Any = None
        self._write_head()

    # Recording -------------------------------------------------------------------------------------------------------

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Parameters, nested mappings flattened with dots; MLflow never lets one change."""
        flat = dict(_flatten(values))
        names = parameter_names(flat)
        self._add({"kind": "parameters", "values": {names[key]: str(value)[:6000] for key, value in flat.items()}})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Tags of the run."""
        self._add({"kind": "tags", "values": {k: str(v) for k, v in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics of one step, with the current time."""
        named = {metric_name(name): float(value) for name, value in values.items()}
        self._add({"kind": "metrics", "values": named, "step": step, "time": int(time.time() * 1000)})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file to upload, as it is now: a copy stays next to the journal until it is delivered."""
        event = {"kind": "artifact", "path": str(path.resolve()), "folder": folder}
        try:
            event["kept"] = str(self._keep(path))
        except OSError as error:  # usually a full disk
            log.warning("%s: no copy for MLflow could be kept: %s", path, error)
        self._add(event)

    def _keep(self, path: Path) -> Path:
        # Before the server is back, the file may be removed with its worktree or replaced by the next training.
        target = (self._files / str(len(self._events)) / path.name).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), target)  # free, and unaffected when the file is replaced
        except OSError:
            shutil.copyfile(path, target)
        return target

    def finish(self, status: str = "FINISHED") -> bool:
        """End the run; True if everything has been delivered."""
        self._add({"kind": "end", "status": status, "time": int(time.time() * 1000)})
        return self.deliver(force=True)

    @property
    def run_id(self) -> str | None:
        """The run's id, None while the server has never been reached."""
        return self._head["run_id"]

    @property
    def due(self) -> int:
        """Events that are not delivered yet."""
        return len(self._events) - self._head["delivered"]

    # Delivery --------------------------------------------------------------------------------------------------------

    def deliver(self, *, force: bool = False) -> bool:
        """Send the records that are due, in order. Returns False if the server is away; a later call retries."""
        if not self.due:
            return True
        if not force and time.monotonic() < self._next_attempt:
            return False
        try:
            self._deliver()
        except delivery.unreachable() as error:
            self._next_attempt = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            if not self._warned or force:
                reason = in_one_line(error, 200)
                log.warning("MLflow cannot be reached (%s); %d records wait in %s", reason, self.due, self.path)
            self._warned = True
            return False
        if self._warned:
            log.info("MLflow is back; everything recorded has been delivered")
        self._pause, self._warned = _FIRST_PAUSE, False
        return True

    def _deliver(self) -> None:
        if self._client is None:
            self._client = connect()
            if self._head["run_id"] is not None and not delivery.run_exists(self._client, self._head["run_id"]):
                # Another server, an emptied one, or a deleted experiment: the journal still holds the whole run.
                self._head |= {"run_id": None, "delivered": 0, "experiment": self.experiment}
        if self._head["run_id"] is None:
            self._head["run_id"] = delivery.find_or_create_run(self._client, self._head)
            self._write_head()
        while self.due:
            number = self._head["delivered"]
            self._send(self._events[number])
            self._head |= {"delivered": number + 1, "refused": 0}
            self._write_head()
            shutil.rmtree(self._files / str(number), ignore_errors=True)

    def _send(self, event: dict[str, Any]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            delivery.send(self._client, self._head["run_id"], event)
        except MlflowException as error:
            # A record that the server refuses for good would block everything behind it. MLflow uses one code for our
            # mistakes and for a broken connection to its database: only a repeated refusal is final.
            if error.error_code == "BAD_REQUEST" and self._head.get("refused", 0) < _REFUSALS:
                self._head["refused"] = self._head.get("refused", 0) + 1
                self._write_head()
                raise
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"):
                raise
            log.warning("MLflow refused a record of %s: %s", self.path, in_one_line(error, 200))

    # The journal on disk ---------------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        """Nothing has been recorded yet."""
        return not self._events

    @property
    def ended(self) -> bool:
        """The last thing recorded is the end of the run."""
        return bool(self._events) and self._events[-1]["kind"] == "end"

    def reopen(self) -> None:
        """Mark a run that had ended as running again, for a resumed training."""
        if self.ended:
            self._add({"kind": "reopen"})

    def _add(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.deliver()

    def _read_events(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        events: list[dict[str, Any]] = []
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                events.append(parse_json(line, any_text=True))
            except ValueError:
                break  # a kill in the middle of the last line
            whole += len(line)
        os.truncate(self.path, whole)
        return events

    def _read_head(self) -> dict[str, Any] | None:
        try:
            return load_json(self._head_file)
        except (OSError, ValueError):
            return None

    def _write_head(self) -> None:
        write_json(self._head_file, self._head)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flush(folder: Path = JOURNALS) -> int:
    """Deliver every journal that has records due; returns how many still have some.

    A journal that a training is writing is left to it.
    """
    left = 0
    for head in sorted(folder.glob("*.json")):
        path = head.with_suffix(".jsonl")
        with journal_lock(path, wait=False) as mine:
            if not mine:
                log.info("%s is being written; its training delivers it", path)
                continue
            state = load_json(head)
            journal = RunJournal(path, experiment=state["experiment"], run_name=state["run_name"])
            try:
                left += bool(journal.due and not journal.deliver(force=True))
            except TrainingError as error:  # its experiment is deleted, which must not hold up the others
                log.warning("%s: %s", path, error)
                left += 1
    return left


def delivered(run: Mapping[str, Any]) -> dict[str, Any]:
    """The `run.json` of a training; its run id comes from the journal if MLflow was away while it trained."""
    journal = JOURNALS / f"{run.get('variant')}-{run.get('fingerprint')}.json"
    if run.get("run_id") or not journal.is_file():
        return dict(run)
    return {**run, "run_id": load_json(journal).get("run_id")}
