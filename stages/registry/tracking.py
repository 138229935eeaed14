"""MLflow runs that lose nothing when the server is away.

Everything is first written to a journal on disk, then delivered in order. If delivery fails, training goes on, the
journal keeps what is due, and later calls try again with growing pauses; what is still due at the end is delivered by
the next run or by ``python -m stages.deliver``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.project.command import environment
from stages.project.locks import file_lock
from stages.project.redaction import in_one_line, log_to_stderr, redacted
from yolov7.errors import TrainingError, YoloError
from yolov7.files import write_json

log = logging.getLogger(__name__)

DATABASE = Path("mlflow.db")
ARTIFACTS = Path("mlartifacts")
JOURNALS = Path(".state/mlflow")
_LOCK = Path(".state/mlflow.lock")
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 300.0
_REFUSALS = 5


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file in the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE.resolve()}"


def connect() -> Any:
    """An `MlflowClient` for :func:`tracking_uri`, its database brought up to date if it is a new file."""
    # A server that is away must not hold up training: few, short attempts; the journal does the waiting.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    uri = tracking_uri()
    ensure_database(uri)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri)


def ensure_database(uri: str) -> None:
    """Create a SQLite database once, whoever comes first; several processes creating it at once crash each other."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or (path.is_file() and path.stat().st_size):
        return
    with file_lock(path.parent / _LOCK):
        if path.is_file() and path.stat().st_size:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Built beside its place and moved there whole, so that nobody sees half a schema.
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{temporary}"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise TrainingError(f"{path}: the MLflow database could not be created: {redacted(lines[-1])}")
        temporary.replace(path)


@contextlib.contextmanager
def journal_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Be the only one on this machine who writes the journal at `path` or repairs it; False where another is.

    A training holds it from beginning to end, so that nobody reads half a line and takes it for damage.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def experiment_id(client: Any, name: str) -> str:
    """The experiment of that name, created if need be (with artifacts beside a local database)."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        uri = tracking_uri()
        beside = (
            Path(uri.removeprefix("sqlite:///")).resolve().parent / ARTIFACTS if uri.startswith("sqlite:") else None
        )
        try:
            return client.create_experiment(name, beside.as_uri() if beside else None)
        except MlflowException:
            # Another process was quicker.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrainingError(f"the MLflow experiment {name!r} is deleted: restore it, or set registry.experiment")
    return found.experiment_id


class RunJournal:
    """One MLflow run, written to `path` first and delivered when the server can be reached.

    Whoever may not be alone with it holds its :func:`journal_lock`.
    """

    def __init__(self, path: Path, *, experiment: str, run_name: str, fresh: bool = False):
        """Go on with the journal at `path`, or begin one (`fresh`: even if there is one)."""
        self.path = path
        self.experiment = experiment
        self._head, self._files = path.with_suffix(".json"), path.with_suffix(".files")
        head = None if fresh else self._read_head()
        if head is None:
            head = {"journal": uuid.uuid4().hex, "experiment": experiment, "run_name": run_name, "run_id": None}
            head |= {"delivered": 0, "start_time": int(time.time() * 1000)}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            shutil.rmtree(self._files, ignore_errors=True)
        self._state = head
        self._events = self._read_events()
        # Events may have gone with a machine, or in a torn line: those that come now are due all the same.
        self._state["delivered"] = min(self._state["delivered"], len(self._events))
        self._pause, self._next_attempt, self._warned = _FIRST_PAUSE, 0.0, False
        self._client: Any = None
        self._write_head()

    # What a stage records --------------------------------------------------------------------------------------------

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Parameters, nested mappings flattened with dots; MLflow never lets one change."""
        self._add({"kind": "parameters", "values": {k: str(v)[:6000] for k, v in _flatten(values)}})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Tags of the run."""
        self._add({"kind": "tags", "values": {k: str(v) for k, v in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Metrics of one step, with the time at which they arose."""
        named = {metric_name(name): float(value) for name, value in values.items()}
        self._add({"kind": "metrics", "values": named, "step": step, "time": int(time.time() * 1000)})

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file to upload, as it is now: it is kept beside the journal until it is delivered."""
        event = {"kind": "artifact", "path": str(path.resolve()), "folder": folder}
        try:
            event["kept"] = str(self._keep(path))
        except OSError as error:  # a full disk, as a rule
            log.warning("%s: no copy for MLflow could be kept: %s", path, error)
        self._add(event)

    def _keep(self, path: Path) -> Path:
        # A file may be removed with its worktree, or replaced by the next training, long before the server is back.
        target = (self._files / str(len(self._events)) / path.name).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), target)  # costs nothing, and stays when the file is replaced
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
        return self._state["run_id"]

    @property
    def due(self) -> int:
        """Events that are not delivered yet."""
        return len(self._events) - self._state["delivered"]

    # Delivery --------------------------------------------------------------------------------------------------------

    def deliver(self, *, force: bool = False) -> bool:
        """Send what is due, in order. False if the server could not be reached; it is tried again later."""
        if not self.due:
            return True
        if not force and time.monotonic() < self._next_attempt:
            return False
        try:
            self._deliver()
        except _unreachable() as error:
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
            if self._state["run_id"] is not None and not self._run_exists():
                # Another or an emptied server: the journal still holds the whole run.
                self._state |= {"run_id": None, "delivered": 0}
        if self._state["run_id"] is None:
            self._state["run_id"] = self._find_or_create_run()
            self._write_head()
        while self.due:
            number = self._state["delivered"]
            self._send(self._events[number])
            self._state |= {"delivered": number + 1, "refused": 0}
            self._write_head()
            shutil.rmtree(self._files / str(number), ignore_errors=True)

    def _run_exists(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(self._state["run_id"])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _find_or_create_run(self) -> str:
        experiment = experiment_id(self._client, self.experiment)
        mark = self._state["journal"]
        # A kill between creation and our note of it must not make a second run.
        found = self._client.search_runs([experiment], f"tags.journal = '{mark}'", max_results=1)
        if found:
            return found[0].info.run_id
        run = self._client.create_run(
            experiment,
            start_time=self._state["start_time"],
            tags={"journal": mark},
            run_name=self._state["run_name"],
        )
        return run.info.run_id

    def _send(self, event: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        client, run_id = self._client, self._state["run_id"]
        try:
            match event["kind"]:
                case "parameters":
                    items = [Param(key, value) for key, value in event["values"].items()]
                    for start in range(0, len(items), 100):
                        client.log_batch(run_id, params=items[start : start + 100])
                case "tags":
                    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in event["values"].items()])
                case "metrics":
                    values = event["values"].items()
                    metrics = [Metric(key, value, event["time"], event["step"]) for key, value in values]
                    client.log_batch(run_id, metrics=metrics)
                case "artifact" if file := _first_file(event.get("kept"), event["path"]):
                    client.log_artifact(run_id, file, event["folder"] or None)
                case "artifact":
                    log.warning("MLflow: %s is gone and was not uploaded", event["path"])
                case "end":
                    client.set_terminated(run_id, event["status"], event["time"])
                case "reopen":
                    client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            # What the server refuses for good would block everything behind it. Its words for a mistake of ours are
            # also those for a connection to its database that broke: only what it says again and again is meant.
            if error.error_code == "BAD_REQUEST" and self._state.get("refused", 0) < _REFUSALS:
                self._state["refused"] = self._state.get("refused", 0) + 1
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
                events.append(json.loads(line))
            except ValueError:
                break  # a kill in the middle of the last line
            whole += len(line)
        os.truncate(self.path, whole)
        return events

    def _read_head(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._head.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _write_head(self) -> None:
        write_json(self._head, self._state)


def _unreachable() -> tuple[type[BaseException], ...]:
    """What a tracking or artifact server that is away raises."""
    import requests
    import sqlalchemy.exc
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException

    return (
        MlflowException,
        requests.RequestException,
        OSError,
        sqlalchemy.exc.SQLAlchemyError,
        BotoCoreError,
        ClientError,
        Boto3Error,
        subprocess.TimeoutExpired,
    )


def _first_file(*paths: str | None) -> str | None:
    return next((path for path in paths if path and Path(path).exists()), None)


def metric_name(name: str) -> str:
    """`name` with everything MLflow refuses in a metric name replaced by an underscore."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flush(folder: Path = JOURNALS) -> int:
    """Deliver every journal that has something due; returns how many still have.

    One that a training is writing just now is left to it.
    """
    left = 0
    for head in sorted(folder.glob("*.json")):
        path = head.with_suffix(".jsonl")
        with journal_lock(path, wait=False) as mine:
            if not mine:
                log.info("%s is being written; its training delivers it", path)
                continue
            state = json.loads(head.read_text(encoding="utf-8"))
            journal = RunJournal(path, experiment=state["experiment"], run_name=state["run_name"])
            if journal.due and not journal.deliver(force=True):
                left += 1
    return left


def delivered(run: Mapping[str, Any]) -> dict[str, Any]:
    """A training's `run.json`, with the id from the journal where the run reached MLflow only after the training."""
    journal = JOURNALS / f"{run.get('variant')}-{run.get('fingerprint')}.json"
    if run.get("run_id") or not journal.is_file():
        return dict(run)
    return {**run, "run_id": json.loads(journal.read_text(encoding="utf-8")).get("run_id")}


def main() -> None:
    """Deliver what could not be delivered while the MLflow server was away."""
    log_to_stderr()
    try:
        left = flush()
    except YoloError as error:
        sys.exit(f"error: {redacted(error)}")
    sys.exit(f"{left} journals could not be delivered to {redacted(tracking_uri())}" if left else 0)


if __name__ == "__main__":
    main()
