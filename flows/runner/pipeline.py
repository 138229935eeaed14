"""DVC stages and the project's commands as child processes: output to a logger, a time limit, no orphans.

DVC decides what is stale; this module starts it, reports what it did, and says in one line why a stage failed. Nothing
here knows Prefect.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from flows.runner.output import ChildOutput, LogFile, cause, clear_logs, exit_status
from flows.runner.processes import Log, child_environment, end_leftovers, end_tree
from stages.project.command import EXIT_ERROR
from stages.project.locks import file_lock, try_file_lock
from stages.project.redaction import redacted
from yolov7.documents import MAX_YAML, DocumentError, read_text
from yolov7.errors import YoloError
from yolov7.yaml_text import read_yaml

LOGS = Path(".local/logs")
LOCK = Path(".state/run.lock")
CODE = "code"
"""The stage that lists the code of the others. It has to come first where the others run one by one."""
_MEASUREMENTS = ("evaluate",)
"""Stages that cannot resume: after a timeout, a retry would time out again."""


@contextlib.contextmanager
def only_run(root: Path, log: Log) -> Iterator[None]:
    """Let one run at a time work in a project folder; a second one logs that it waits.

    The system frees the lock when its holder dies, however it dies. Processes left by a killed run are stopped first:
    DVC would find its outputs busy, and two processes would write them.
    """
    path = root / LOCK
    with contextlib.ExitStack() as held:
        if not held.enter_context(try_file_lock(path)):
            log.info("another run is working in %s; waiting for it to end", root)
            held.enter_context(file_lock(path))
        end_leftovers(root.resolve(), log)
        clear_logs(root / LOGS)
        yield


class StageOutcome(StrEnum):
    """The effect of `dvc repro` on a stage."""

    RAN = "ran"
    RESTORED = "restored from the cache"
    UNCHANGED = "up to date"


@dataclass(frozen=True)
class StageResult:
    """A stage that is now up to date."""

    stage: str
    """As DVC names it: `validate`, `train@yolov7-tiny`."""
    outcome: StageOutcome
    seconds: float


class StageError(YoloError):
    """A stage or command failed. `lasting`: without a change, a retry would fail the same way."""

    def __init__(self, message: str, *, stage: str, lasting: bool = False, log: Path | None = None):
        super().__init__(message)
        self.stage, self.lasting, self.log = stage, lasting, log


class Pipeline:
    """Starts stages in one project folder; as a context manager it ends whatever still runs on the way out."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        timeout_seconds: float | None = None,
        variables: Mapping[str, str] | None = None,
        logs: Path | None = None,
        pull: bool = False,
    ):
        """`variables` are added to the environment of every child; `logs` replaces the project's log folder; with
        `pull`, no stage runs whose outputs are in the DVC remote."""
        self.root = (root or Path.cwd()).resolve()
        self.logs = (logs or self.root / LOGS).resolve()
        self.timeout_seconds = timeout_seconds
        self.variables = dict(variables or {})
        self.pull = pull
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._guard = threading.Lock()
        self._closed = False

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every child with all its descendants, and start no more."""
        with self._guard:
            self._closed = True
            running = dict(self._running)
        for mark, process in running.items():
            end_tree(process, mark)

    def reproduce(
        self, stage: str, log: Log, *, force: bool = False, pull: bool = False, commit: bool = True
    ) -> StageResult:
        """`dvc repro` of one stage, without its upstream stages. Raises :class:`StageError`.

        `force`: run it even if the run cache has the result; `pull`: take the result from the run cache of the remote;
        without `commit`, neither cache nor run cache receive the result.
        """
        started = time.monotonic()
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
        command += ["--force"] * force + ["--pull"] * (pull or self.pull) + ["--no-commit"] * (not commit)
        command += ["--", stage]
        lines = self.run(stage, command, log, measures=stage.partition("@")[0] in _MEASUREMENTS)
        return StageResult(stage, _outcome(lines), time.monotonic() - started)

    def has_stage(self, stage: str) -> bool:
        """True if dvc.yaml has a stage of that name, which an older revision may not have.

        Also if it is not readable: DVC, asked for the stage, says why.
        """
        try:
            return stage in read_yaml(read_text(self.root / "dvc.yaml", MAX_YAML)).written["stages"]
        except (OSError, TypeError, KeyError, DocumentError):
            return True

    def up_to_date(self, stages: Sequence[str]) -> set[str]:
        """The `stages` that DVC finds unchanged now, by one question instead of one per stage.

        Only valid while nothing upstream of them runs. Empty if DVC cannot answer: reproducing the stages will tell.
        """
        quiet = logging.getLogger(f"{__name__}.status")
        quiet.propagate = False
        try:
            lines = self.run("status", [sys.executable, "-m", "dvc", "--wait-for-lock", "status", "--json"], quiet)
            changed = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
        except (StageError, StopIteration, ValueError):
            return set()
        return set(stages) - set(changed)

    def run(self, name: str, command: Sequence[str], log: Log, *, measures: bool = False) -> list[str]:
        """Run a command to its end; returns its lines. Raises :class:`StageError` with the cause and the log's path.

        `measures`: the command cannot resume, so a timeout is lasting.
        """
        file, returncode, lines = self._run(name, command, log)
        timed_out = returncode is None
        where = self.shown(file.path)
        if file.error is not None:
            log.warning("%s: the log is incomplete: %s", where, file.error)
            where += f" (incomplete: {file.error.strerror})"
        if timed_out:
            message = f"{_named(name)} did not end within {self.timeout_seconds:g} s and was stopped; log: {where}"
            raise StageError(message, stage=name, lasting=measures)
        path = file.path if file.path.is_file() else None
        if self._closed and returncode:
            raise StageError(f"{_named(name)} was stopped; log: {where}", stage=name, lasting=True, log=path)
        if returncode:
            status = exit_status(returncode, lines)
            message = f"{_named(name)} failed with exit code {status}: {redacted(cause(lines))}; log: {where}"
            raise StageError(message, stage=name, lasting=status == EXIT_ERROR, log=path)
        return lines

    def _run(self, name: str, command: Sequence[str], log: Log) -> tuple[LogFile, int | None, list[str]]:
        """Log, exit code (None after a timeout) and lines of a command that has ended."""
        mark = uuid.uuid4().hex
        file = LogFile(self.logs / f"{name}.log", mark)
        try:
            process = self._start(name, command, mark)
            output = ChildOutput(process, file, log)
            timed_out = False
            try:
                process.wait(self.timeout_seconds)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                # Descendants must not keep writing into the project.
                if process.returncode != 0:
                    end_tree(process, mark)
                lines = output.finish()
                with self._guard:
                    self._running.pop(mark, None)
        except BaseException:
            file.close(keep=True)
            raise
        # "nothing to do" does not replace the log of the last real run
        file.close(keep=bool(process.returncode) or _outcome(lines) is not StageOutcome.UNCHANGED)
        return file, None if timed_out else process.returncode, lines

    def shown(self, path: Path) -> str:
        """A path as messages name it: relative inside the project, absolute elsewhere."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def _start(self, name: str, command: Sequence[str], mark: str) -> subprocess.Popen[str]:
        with self._guard:
            if self._closed:
                raise StageError(f"{_named(name)} was not started: the run is ending", stage=name, lasting=True)
            process = subprocess.Popen(
                list(command),
                cwd=self.root,
                env={**child_environment(mark, self.root), **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            self._running[mark] = process
        return process


def _outcome(lines: Sequence[str]) -> StageOutcome:
    """The outcome that DVC printed. Unknown wording counts as a run: never claim that nothing was done."""
    text = "\n".join(lines)
    if re.search(r"^Running stage '", text, re.MULTILINE):
        return StageOutcome.RAN
    if re.search(r"^(Stage '.*' is cached - skipping run|Pulling data for stage)", text, re.MULTILINE):
        return StageOutcome.RESTORED
    if re.search(r"^(Stage )?'.*' didn't change, skipping", text, re.MULTILINE):
        return StageOutcome.UNCHANGED
    return StageOutcome.RAN


def _named(name: str) -> str:
    stage, _, variant = name.partition("@")
    return f"stage {stage} of variant {variant}" if variant else f"stage {stage}"
