"""Run the parts one after the other within the minutes, each in a process of its own, and write what they find.

Nothing here imports torch or the library, so that the report is written whatever fails. Processes are forked from a
server that has loaded them once and has touched no device.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_kit.parts import PARTS, Part, run_part
from gpu_kit.report import write
from gpu_kit.settings import Settings

RESERVE = 2.0
"""Seconds kept for the last report."""
DESCRIBING = 60.0
"""Most seconds until the device has told what it is."""


@dataclass
class Runner:
    """One run. `results` is the document of results.json."""

    settings: Settings
    minutes: float
    parts: tuple[Part, ...] = PARTS
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.end = self.started + self.minutes * 60 - RESERVE
        # Loading the library once for all parts: each is then forked in milliseconds.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["gpu_kit.preload"])
        self.results |= {
            "version": 1,
            "minutes": self.minutes,
            "tiny": self.settings.tiny,
            "seconds": 0.0,
            "device": {},
            "missing": {},
            "parts": {part.name: {"status": "waiting", "why": "", "seconds": 0.0, "rows": []} for part in self.parts},
        }

    def run(self) -> dict[str, Any]:
        """Every part; returns the results, which are in the folder too."""
        self._save()
        self._describe()
        for name, lacks in self.results["missing"].items():
            print(f"{name}: not installed: {', '.join(lacks)}", flush=True)
        for number, part in enumerate(self.parts):
            shares = [one.share for one in self.parts[number:] if one.name not in self.results["missing"]]
            self._part(part, sum(shares))
            self._save()
            found = self.results["parts"][part.name]
            print(f"{part.name}: {found['status']}, {found['seconds']:.0f} s {found['why']}".rstrip(), flush=True)
        return self.results

    def _describe(self) -> None:
        with self._log() as log:
            ended = self._process("", min(self.end, time.monotonic() + DESCRIBING), log, ())
            found: dict[str, Any] = {"why": "" if ended == 0 else "it did not answer in time"}
            for row in _rows(log):
                found |= row
        chosen = {part.name for part in self.parts}
        self.results["missing"] = {name: lacks for name, lacks in found.get("missing", {}).items() if name in chosen}
        self.results["device"] = found.get("device") or {"error": found["why"]}
        self._save()

    def _part(self, part: Part, shares: float) -> None:
        found = self.results["parts"][part.name]
        lacks = self.results["missing"].get(part.name)
        left = self.end - time.monotonic()
        if lacks:
            found |= {"status": "skipped", "why": f"not installed: {', '.join(lacks)}"}
            return
        if left <= 0:
            found |= {"status": "skipped", "why": "no time is left"}
            return
        started = time.monotonic()
        deadline = min(self.end, started + left * part.share / shares)
        with self._log() as log:
            self._to_the_end(part, deadline, log)
        rows = found["rows"]
        found["seconds"] = round(time.monotonic() - started, 1)
        failed = [row for row in rows if row["status"] == "failed"]
        measured = [row for row in rows if row["status"] == "ok"]
        found["status"] = "failed" if failed else "ok" if measured else "skipped"
        if failed or not measured:
            worst = failed or rows
            found["why"] = "; ".join(dict.fromkeys(row["why"] for row in worst if row["why"])) or "nothing was measured"

    def _to_the_end(self, part: Part, deadline: float, log: Path) -> None:
        """Start processes until one of them has been through all items."""
        rows = self.results["parts"][part.name]["rows"]
        while True:
            before = len(rows)
            ended = self._process(part.name, deadline, log, tuple(row["item"] for row in rows), rows)
            begun = [row["begun"] for row in _rows(log) if "begun" in row]
            if ended == 0:
                return
            unfinished = [name for name in begun if name not in {row["item"] for row in rows}]
            status, why = "failed", f"the process died (exit status {ended})"
            if ended is None:
                status, why = "stopped", "the time of this part is over"
            if not unfinished and len(rows) == before:
                unfinished = [""]  # it did not come to its first item
            rows += [_row(name, status, why) for name in unfinished]
            if ended is None or "" in unfinished:
                known = {row["item"] for row in rows}
                listed = [name for row in _rows(log) for name in row.get("listed", ())]
                rows += [
                    _row(name, "skipped", "no time is left") for name in dict.fromkeys(listed) if name not in known
                ]
                return

    def _process(
        self,
        name: str,
        deadline: float,
        log: Path,
        done: tuple[str, ...],
        rows: list[dict[str, Any]] | None = None,
    ) -> int | None:
        """Run one process, taking over its rows as they come: its exit status, None if it had to be stopped."""
        process = self.context.Process(target=run_part, args=(name, self.settings, deadline, str(log), done))
        process.start()
        known = len(rows or ())
        while process.is_alive() and time.monotonic() < deadline:
            process.join(min(0.1, max(deadline - time.monotonic(), 0.01)))
            known = self._take(rows, log, known)
        stopped = process.is_alive()
        if stopped or process.exitcode:
            _kill(process)
        self._take(rows, log, known)
        return None if stopped else process.exitcode

    def _take(self, rows: list[dict[str, Any]] | None, log: Path, known: int) -> int:
        if rows is None:
            return known
        names = {row["item"] for row in rows}
        new = [row for row in _rows(log) if "item" in row and row["item"] not in names]
        rows.extend(new)
        if new:
            self._save()
        return len(rows)

    def _save(self) -> None:
        self.results["seconds"] = round(time.monotonic() - self.started, 1)
        write(self.settings.folder, self.results)

    @contextlib.contextmanager
    def _log(self):  # type: ignore[no-untyped-def]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            path.touch()
            yield path


def _row(item: str, status: str, why: str) -> dict[str, Any]:
    return {"item": item, "status": status, "why": why, "seconds": 0.0, "figures": {}}


def _rows(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a log."""
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    """End a process and all that it started."""
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.is_alive():
            process.kill()
    process.join(10)
