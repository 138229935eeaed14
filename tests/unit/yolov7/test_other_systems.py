"""The library trains where the modules, signals and calls of Unix are missing, as on Windows; the stages say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parents[2] / "support"

# Other libraries choose their own ways by the name of the system: they are imported before the calls are taken away.
OTHER_SYSTEM = f"""
import importlib.abc, sys
MISSING = {{"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline"}}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

import psutil
for name in MISSING:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Refuse())
import importlib, os, pkgutil, signal
import torch, cv2, torch.utils.data, torch.distributed.launcher.api
for home, names in (
    (signal, "SIGKILL SIGHUP SIGQUIT SIGPROF SIGALRM SIGUSR1 pthread_sigmask setitimer alarm"),
    (os, "fork getuid geteuid killpg setsid sched_getaffinity posix_fallocate memfd_create sysconf sysconf_names "
     "pread fchmod fchown chown mkfifo"),
):
    for name in names.split():
        if hasattr(home, name):
            delattr(home, name)
from pathlib import Path
import yolov7.memory
yolov7.memory._STATUS = Path("no /proc here")

def load(root):
    for module in pkgutil.walk_packages(importlib.import_module(root).__path__, root + "."):
        importlib.import_module(module.name)

sys.path.insert(0, {str(SUPPORT)!r})
"""


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", OTHER_SYSTEM + code], capture_output=True, text=True, timeout=120, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_whole_library_loads_and_trains_with_either_cache_and_validates(tmp_path):
    output = run(
        """
load("yolov7")
from small_training import parameters, trainer, training_data
from yolov7.train.progress import ProgressDisplay
from yolov7.train.summary import as_text, facts
from yolov7.memory import peak_memory_gib
index = training_data(Path("data"), images=4)
for cache in ("ram", "disk"):
    params = parameters(epochs=1, cache=cache, cache_folder="cache")
    run = trainer(index, Path(cache), params, listeners=(ProgressDisplay(),))
    outcome = run.fit()
    assert outcome.finished and outcome.history[0]["val/AP"] >= 0
    assert run.position.iteration == 2
print(as_text("done", facts(outcome, epochs=1, device="cpu", peak_memory_gib=peak_memory_gib(), folder=Path("out"))))
""",
        tmp_path,
    )
    assert "not known here" in output
    assert "nan" not in output


def test_stages_load_and_what_needs_limits_says_so_in_one_line(tmp_path):
    output = run(
        """
import warnings
warnings.simplefilter("ignore")  # filelock says that it falls back to marker files
for name in ("stages.ingest", "stages.train", "stages.data_reference", "flows.runner.output"):
    importlib.import_module(name)
from yolov7.data.sandbox import run_limited
from yolov7.errors import DataError
try:
    list(run_limited(len, ["one"], per_process=1))
except DataError as error:
    print(error)
""",
        Path(__file__).parents[3],
    )
    lines = [line for line in output.splitlines() if "`resource`" in line]
    assert len(lines) == 1
    assert "Linux or macOS" in lines[0]
