"""Freed blocks stay with the process while a training on the CPU runs, and no longer."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolov7.memory import freed_memory_kept

SUPPORT = Path(__file__).parents[2] / "support"
GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")

# Each process sets its allocator for itself; 64 MiB are more than glibc keeps by default.
PROCESS = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
from pathlib import Path
import torch
from yolov7.memory import freed_memory_kept

def resident():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024

def stays(size=64):
    "Whether a freed block of so many MiB stays with the process."
    block = torch.ones(size << 18)
    before = resident()
    del block
    return before - resident() < 32
"""


def run(code: str, folder: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", PROCESS + code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_freed_blocks_stay_inside_and_go_back_on_exit(tmp_path):
    code = """
print(stays())
with freed_memory_kept() as kept:
    print(kept, stays(), stays())
    inside = resident()
print(inside - resident() > 32, stays())
"""
    assert run(code, tmp_path) == ["False", "True", "True", "True", "True", "False"]


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_worker_processes_neither_keep_memory_nor_hold_the_free_blocks_of_their_parent(tmp_path):
    code = """
from yolov7.data.workers import OrderedMap
with freed_memory_kept():
    assert stays(256)
    # The second block is larger than the free one, whose addresses, not its pages, the worker has.
    workers = OrderedMap(lambda _: (resident(), stays(320)), workers=1)
    ((size, kept),) = workers([0])
    print(kept, size < resident() - 128, stays())
    workers.close()
"""
    assert run(code, tmp_path) == ["False", "True", "True"]


@pytest.mark.parametrize(
    ("name", "value"), [("GLIBC_TUNABLES", "glibc.malloc.mmap_max=60000"), ("MALLOC_MMAP_MAX_", "60000")]
)
def test_an_allocator_that_the_environment_configures_is_left_alone(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with freed_memory_kept() as kept:
        assert not kept


def test_other_systems_have_no_such_setting(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with freed_memory_kept() as kept:
        assert not kept


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_every_step_of_a_training_on_the_cpu_runs_so(tmp_path):
    code = """
from small_training import Watcher, parameters, trainer, training_data
index = training_data(Path("data"), images=2)
seen = []
watcher = Watcher(lambda report: seen.append(stays()))
before = stays()
outcome = trainer(index, Path("states"), parameters(epochs=2), listeners=(watcher,)).fit()
print(outcome.finished, before, seen, stays(), sep="\\n")
"""
    assert run(code, tmp_path) == ["True", "False", "[True,", "True]", "False"]
