"""Runs DVC stages and the project's commands as child processes: output to a logger, a time limit, no orphans.

DVC decides what is stale; this module starts it, tells what it did, and says in one line why a stage failed.
Nothing here knows Prefect. Children stay in the caller's process group, so that whoever ends the group ends them too;
every descendant also inherits a mark in its environment by which the whole tree is found again, even after DVC itself
has died and its children belong to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from stages.project.command import EXIT_ERROR, environment
from stages.project.redaction import redacted
from yolov7.errors import YoloError

LOGS = Path(".local/logs")
LOCK = Path(".state/run.lock")
_MEASUREMENTS = ("evaluate",)
"""Stages that begin anew each time, and wait for nobody: what was too slow once is too slow again."""
_GROWING = ".running"
_MARK = "YOLOV7_PIPELINE_CHILD"
_OWNER = "YOLOV7_PIPELINE_OWNER"
"""In a child's environment: the process that started it (number and time of its start) and the project folder."""
_SAME_START_SECONDS = 2.0
"""Two looks at the start of one process differ by less, two processes of one number by more."""
_GRACE_SECONDS = 20.0
"""Between the request to stop, upon which a training saves its state, and the kill."""
_LONGEST_LINE = 2000
_STATUS = re.compile(r"exited with (-?\d+)")
_HINTS = re.compile(
    r"\s*(Generating lock file|Updating lock file|Use `dvc push`|"
    r"To track the changes|git add|To enable auto|dvc config core)"
)
_DVC_WORDS = re.compile(r"(Running stage '|Stage '|'.*' didn't change|> |ERROR: failed to reproduce)")

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


@contextlib.contextmanager
def only_run(root: Path, log: Log) -> Iterator[None]:
    """Let one run at a time work in a project folder; a second one waits, and says so.

    The lock is the system's: it is free again the moment its holder dies, however that happens. What a run that was
    killed has left running here is told to stop first: DVC would find its outputs busy, and two would write them.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another run works in %s; this one waits for its end", root)
            fcntl.flock(handle, fcntl.LOCK_EX)
        end_leftovers(root.resolve(), log)
        _clear_logs(root)
        yield


class Outcome(StrEnum):
    """What `dvc repro` did with a stage."""

    RAN = "ran"
    RESTORED = "restored from the cache"
    UNCHANGED = "up to date"


@dataclass(frozen=True)
class StageResult:
    """A stage that is now up to date."""

    stage: str
    """As DVC names it: `validate`, `train@yolov7-tiny`."""
    outcome: Outcome
    seconds: float


class StageError(YoloError):
    """A stage or command failed. `lasting`: to start it again without a change would end the same way."""

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
        """`variables` are added to the environment of every child; `logs`: a folder other than that of the project;
        `pull`: no stage runs whose outputs the DVC remote has."""
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
            _end_tree(process, mark)

    def reproduce(
        self, stage: str, log: Log, *, force: bool = False, pull: bool = False, commit: bool = True
    ) -> StageResult:
        """`dvc repro` of one stage, upstream stages left alone. Raises :class:`StageError`.

        `force`: run it whatever the run cache holds; `pull`: take what the run cache of the remote holds;
        without `commit`, neither cache nor run cache learn of the result.
        """
        started = time.monotonic()
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
        command += ["--force"] * force + ["--pull"] * (pull or self.pull) + ["--no-commit"] * (not commit)
        lines = self.run(stage, command, log, measures=stage.partition("@")[0] in _MEASUREMENTS)
        return StageResult(stage, _outcome(lines), time.monotonic() - started)

    def up_to_date(self, stages: Sequence[str]) -> set[str]:
        """Those of `stages` that DVC finds unchanged as things are now; one question instead of one per stage.

        A stage counts only while nothing upstream of it runs. If DVC cannot say, none counts: reproducing them does.
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

        `measures`: it begins anew each time and waits for nobody, so that its time-out would only come again.
        """
        mark = uuid.uuid4().hex
        file = _LogFile(self.logs / f"{name}.log", mark)
        try:
            process = self._start(name, command, mark)
            output = _Output(process, file, log)
            timed_out = False
            try:
                process.wait(self.timeout_seconds)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                # Also after a success nothing may go on writing into the project.
                if process.returncode != 0:
                    _end_tree(process, mark)
                lines = output.finish()
                with self._guard:
                    self._running.pop(mark, None)
        except BaseException:
            file.close(keep=True)
            raise
        # "nothing to do" does not replace what the last real run said
        file.close(keep=bool(process.returncode) or _outcome(lines) is not Outcome.UNCHANGED)
        where = self.shown(file.path)
        if file.error is not None:
            log.warning("%s: the log is not whole: %s", where, file.error)
            where += f" (not whole: {file.error.strerror})"
        if timed_out:
            limit = f"{self.timeout_seconds:g} s"
            message = f"{_named(name)} did not end within {limit} and was stopped; log: {where}"
            raise StageError(message, stage=name, lasting=measures)
        path = file.path if file.path.is_file() else None
        if self._closed and process.returncode:
            raise StageError(f"{_named(name)} was stopped; log: {where}", stage=name, lasting=True, log=path)
        if process.returncode:
            status = _status(process.returncode, lines)
            message = f"{_named(name)} failed with exit code {status}: {redacted(_cause(lines))}; log: {where}"
            raise StageError(message, stage=name, lasting=status == EXIT_ERROR, log=path)
        return lines

    def shown(self, path: Path) -> str:
        """A path as messages name it: short within the project, whole elsewhere."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def _start(self, name: str, command: Sequence[str], mark: str) -> subprocess.Popen[str]:
        with self._guard:
            if self._closed:
                raise StageError(f"{_named(name)} was not started: the run is ending", stage=name, lasting=True)
            process = subprocess.Popen(
                list(command),
                cwd=self.root,
                env={**_child_environment(mark, self.root), **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            self._running[mark] = process
        return process


class _LogFile:
    """A child's output in a file, under a name of its own until it is whole: commands of one name may run at once.

    What cannot be written, to a full disk as a rule, is noted and not raised: the child goes on, and what it says last
    is what tells the cause.
    """

    def __init__(self, path: Path, mark: str):
        self.path = path
        self.error: OSError | None = None
        self._growing = _growing(path, mark)
        self._guard = threading.Lock()
        self._file: IO[str] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._growing.open("w", encoding="utf-8")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # for _clear_logs
        except OSError as error:
            self.error = error

    def write(self, text: str) -> None:
        """One line more; none after an error, nor after the end."""
        with self._guard:
            if self._file is None or self.error is not None:
                return
            try:
                self._file.write(text + "\n")
                self._file.flush()
            except OSError as error:
                self.error = error

    def close(self, *, keep: bool) -> None:
        """Give it its lasting name, or remove it."""
        with self._guard:
            file, self._file = self._file, None
        if file is None:
            return
        with contextlib.suppress(OSError):  # it has been noted when it was written
            file.close()
        try:
            if keep:
                self._growing.replace(self.path)
            else:
                self._growing.unlink()
        except OSError as error:
            self.error = self.error or error


def _growing(path: Path, mark: str) -> Path:
    return path.with_name(f"{path.name}.{mark[:12]}{_GROWING}")


def _clear_logs(root: Path) -> None:
    """Remove logs that were growing when their run was killed: a living run holds a lock on its own."""
    for path in (root / LOGS).glob(f"*{_GROWING}"):
        with contextlib.suppress(OSError), path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


class _Output:
    """Reads a child's lines in a thread of its own: into a file, a logger, and memory (the newest)."""

    def __init__(self, process: subprocess.Popen[str], file: _LogFile, log: Log):
        self._stream, self._file, self._log = process.stdout, file, log
        self._lines: deque[str] = deque(maxlen=10_000)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._stream is not None
        for line in self._stream:
            self._lines.append(line.rstrip())
            text = redacted(line.rstrip())
            self._file.write(text)
            if text and not _HINTS.match(text):
                self._log.info("%s", text[:_LONGEST_LINE])

    def finish(self) -> list[str]:
        """Everything read. A stranger that holds the pipe open after the child's end is not waited for."""
        self._thread.join(10.0)
        return list(self._lines)


def _child_environment(mark: str, root: Path) -> dict[str, str]:
    variables = environment()
    # `python` in dvc.yaml is the interpreter that runs us, also where the virtual environment is not activated.
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    owner = f"{os.getpid()} {psutil.Process().create_time()} {root}"
    return {**variables, "PYTHONUNBUFFERED": "1", _MARK: mark, _OWNER: owner}


def _end_tree(process: subprocess.Popen[str], mark: str) -> None:
    """Ask the child and every process that carries its mark to stop, and kill what is left after a while."""
    # DVC must not see its child fail and go on with something else: all get the signal at once.
    for one in (asked := _marked(mark)):
        _signal(one, kill=False)
    # psutil must not wait for our own child: it would take the exit code that Popen is waiting for.
    others = [one for one in asked if one.pid != process.pid]
    deadline = time.monotonic() + _GRACE_SECONDS
    psutil.wait_procs(others, _GRACE_SECONDS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, deadline - time.monotonic()))
    for one in _marked(mark):
        _signal(one, kill=True)
    process.wait()


def end_leftovers(root: Path, log: Log) -> None:
    """End what runs in `root` for a process that is no more: a training saves its state upon the request."""
    left = [one for one in psutil.process_iter() if _is_leftover(one, root)]
    if not left:
        return
    log.warning("a run that was killed has left %d processes in %s; they are told to stop", len(left), root)
    for one in left:
        _signal(one, kill=False)
    _, alive = psutil.wait_procs(left, _GRACE_SECONDS)
    for one in alive:
        _signal(one, kill=True)
    psutil.wait_procs(alive, _GRACE_SECONDS)


def _is_leftover(process: psutil.Process, root: Path) -> bool:
    try:
        number, started, folder = process.environ().get(_OWNER, "").split(" ", 2)
        if folder != str(root) or process.status() == psutil.STATUS_ZOMBIE:
            return False
    except (psutil.Error, OSError, ValueError):
        return False  # gone meanwhile, another user's, or not ours
    try:
        owner = psutil.Process(int(number))
        return abs(owner.create_time() - float(started)) > _SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return True


def _marked(mark: str) -> list[psutil.Process]:
    """Processes whose environment holds the mark."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get(_MARK) == mark and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
    return found


def _signal(process: psutil.Process, *, kill: bool) -> None:
    with contextlib.suppress(psutil.Error):  # gone meanwhile
        process.kill() if kill else process.terminate()


def _outcome(lines: Sequence[str]) -> Outcome:
    """Read from what DVC printed. An unknown wording counts as a run: never claim that nothing was done."""
    text = "\n".join(lines)
    if re.search(r"^Running stage '", text, re.MULTILINE):
        return Outcome.RAN
    if re.search(r"^(Stage '.*' is cached - skipping run|Pulling data for stage)", text, re.MULTILINE):
        return Outcome.RESTORED
    if re.search(r"^(Stage )?'.*' didn't change, skipping", text, re.MULTILINE):
        return Outcome.UNCHANGED
    return Outcome.RAN


def _status(returncode: int, lines: Sequence[str]) -> int:
    """The stage's own exit code; DVC answers 255 to every failure and names it in its message."""
    for line in reversed(lines):
        if line.startswith("ERROR:") and (match := _STATUS.search(line)):
            return int(match[1])
    return returncode


def _cause(lines: Sequence[str]) -> str:
    """The stage's own error line, or its last words, or DVC's."""
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    said = [line.strip() for line in lines if line.strip() and not _HINTS.match(line)]
    own = [line for line in said if not _DVC_WORDS.match(line)]
    return " | ".join((own or said)[-3:]) or "no output"


def _named(name: str) -> str:
    stage, _, variant = name.partition("@")
    return f"stage {stage} of variant {variant}" if variant else f"stage {stage}"
