"""Child processes of the flows: their logs when several of one name run at once, and when the disk is full."""

from __future__ import annotations

import fcntl
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.runner import output
from flows.runner.pipeline import LOGS, Pipeline, StageError, only_run

LOG = logging.getLogger("test")

# Ends only after the other one, if asked to.
CHILD = """
import pathlib, sys, time
name, waits = sys.argv[1:]
pathlib.Path(name).touch()
while waits and not pathlib.Path(waits).exists():
    time.sleep(0.01)
print("said by", name)
"""


def test_commands_of_one_name_at_once_keep_their_logs_apart(tmp_path: Path) -> None:
    def run(name: str, waits: str) -> list[str]:
        lines = pipeline.run("status", [sys.executable, "-c", CHILD, name, waits], LOG)
        (tmp_path / f"{name}-ended").touch()
        return lines

    with Pipeline(tmp_path) as pipeline, ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(run, "one", "two"),
            pool.submit(run, "two", "one-ended"),
            pool.submit(run, "x", "two-ended"),
        ]
        assert [one.result(60) for one in runs] == [["said by one"], ["said by two"], ["said by x"]]
    assert [path.name for path in (tmp_path / LOGS).iterdir()] == ["status.log"]
    assert (tmp_path / LOGS / "status.log").read_text() == "said by x\n", "that of the last one to end"


@pytest.mark.parametrize("status", [0, 2])
def test_a_log_on_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    full = tmp_path / LOGS / "train.log.0.running"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    monkeypatch.setattr(output, "_growing", lambda path, mark: full)
    # More than a pipe holds: a child whose output is never read would wait for ever.
    code = f"print(('x' * 999 + chr(10)) * 500); print('error: out.bin: the disk is full'); raise SystemExit({status})"
    with Pipeline(tmp_path, timeout_seconds=60) as pipeline:
        if status == 0:
            assert len(pipeline.run("train", [sys.executable, "-c", code], LOG)) == 502
            return
        with pytest.raises(StageError) as caught:
            pipeline.run("train", [sys.executable, "-c", code], LOG)
    assert str(caught.value) == (
        "stage train failed with exit code 2: out.bin: the disk is full; "
        "log: .local/logs/train.log (incomplete: No space left on device)"
    )
    assert caught.value.lasting


def test_a_log_that_cannot_be_opened_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / LOGS.parent).mkdir()
    (tmp_path / LOGS).write_text("no folder")
    with Pipeline(tmp_path) as pipeline:
        assert pipeline.run("train", [sys.executable, "-c", "print('said')"], LOG) == ["said"]
        with pytest.raises(StageError) as caught:
            pipeline.run("train", [sys.executable, "-c", "raise SystemExit('why')"], LOG)
    assert "stage train failed with exit code 1: why" in str(caught.value) and caught.value.log is None
    assert ".local/logs/train.log: the log is incomplete" in caplog.text


def test_logs_that_a_killed_run_has_left_half_are_removed(tmp_path: Path) -> None:
    (tmp_path / LOGS).mkdir(parents=True)
    left, grows, whole = (tmp_path / LOGS / name for name in ("a.log.1.running", "b.log.2.running", "c.log"))
    for path in (left, grows, whole):
        path.touch()
    with grows.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with only_run(tmp_path, LOG):
            assert sorted((tmp_path / LOGS).iterdir()) == [grows, whole]


def test_logs_may_lie_outside_a_folder_that_is_going_to_be_removed(tmp_path: Path) -> None:
    (tmp_path / "worktree").mkdir()
    with Pipeline(tmp_path / "worktree", logs=tmp_path / "logs") as pipeline, pytest.raises(StageError) as caught:
        pipeline.run("train", [sys.executable, "-c", "raise SystemExit('why')"], LOG)
    assert str(caught.value).endswith(f"why; log: {tmp_path}/logs/train.log")
    assert caught.value.log is not None and caught.value.log.read_text() == "why\n"
