"""The output of a child process: its log file, its lines on the way to a logger, and the cause of a failure in them."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from flows.runner.processes import Log
from stages.project.redaction import redacted

try:
    import fcntl
except ImportError:  # without such locks no log of a killed run can be told from a growing one: all are kept
    fcntl = None  # type: ignore[assignment]

_GROWING = ".running"
_LONGEST_LINE = 2000
_LINES_KEPT = 10_000
_STATUS = re.compile(r"exited with (-?\d+)")
_HINTS = re.compile(
    r"\s*(Generating lock file|Updating lock file|Use `dvc push`|"
    r"To track the changes|git add|To enable auto|dvc config core)"
)
_DVC_WORDS = re.compile(r"(Running stage '|Stage '|'.*' didn't change|> |ERROR: failed to reproduce)")


class LogFile:
    """A child's output in a file, under a temporary name until it is whole: commands of one name may run at once.

    A write error, typically a full disk, is noted and not raised: the child keeps running, and its last lines tell the
    cause.
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
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells clear_logs that its run is alive
        except OSError as error:
            self.error = error

    def write(self, text: str) -> None:
        """Append a line; does nothing after an error or after the end."""
        with self._guard:
            if self._file is None or self.error is not None:
                return
            try:
                self._file.write(text + "\n")
                self._file.flush()
            except OSError as error:
                self.error = error

    def close(self, *, keep: bool) -> None:
        """Move the file to its final name, or remove it."""
        with self._guard:
            file, self._file = self._file, None
        if file is None:
            return
        with contextlib.suppress(OSError):  # noted when it was written
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


def clear_logs(folder: Path) -> None:
    """Remove the unfinished logs of killed runs; a running command holds a lock on its own log."""
    for path in folder.glob(f"*{_GROWING}") if fcntl is not None else ():
        with contextlib.suppress(OSError), path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


class ChildOutput:
    """Reads a child's lines in a thread: into a file, a logger, and memory (the newest)."""

    def __init__(self, process: subprocess.Popen[str], file: LogFile, log: Log):
        self._stream, self._file, self._log = process.stdout, file, log
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
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
        """All lines read. Does not wait for an unrelated process that keeps the pipe open after the child's end."""
        self._thread.join(10.0)
        return list(self._lines)


def exit_status(returncode: int, lines: Sequence[str]) -> int:
    """The stage's own exit code: DVC exits with 255 for every failure and names the stage's code in its message."""
    for line in reversed(lines):
        if line.startswith("ERROR:") and (match := _STATUS.search(line)):
            return int(match[1])
    return returncode


def cause(lines: Sequence[str]) -> str:
    """The stage's own error line, or its last lines, or DVC's."""
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    messages = [line.strip() for line in lines if line.strip() and not _HINTS.match(line)]
    own = [line for line in messages if not _DVC_WORDS.match(line)]
    return " | ".join((own or messages)[-3:]) or "no output"
