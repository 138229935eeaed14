from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.project.locks import file_lock, try_file_lock

_HOLD = """
import sys, time
from pathlib import Path
from stages.project.locks import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_killed_holder_leaves_the_lock_free(tmp_path):
    path = tmp_path / "new/folder/lock"
    holder = _holder(path)
    try:
        with try_file_lock(path) as mine:
            assert not mine
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    with try_file_lock(path) as mine:
        assert mine
    assert path.is_file(), "the file stays: waiters may have it open"


def test_the_lock_is_free_after_an_error_and_refuses_a_second_time_in_one_thread(tmp_path):
    path = tmp_path / "lock"
    with pytest.raises(ValueError, match="inside"), file_lock(path):
        raise ValueError("inside")
    with file_lock(path), pytest.raises(RuntimeError), file_lock(path):
        raise AssertionError("never reached")
    with try_file_lock(path) as mine:
        assert mine
