"""The library works where the modules, signals and calls of Unix are missing, as on Windows; the pipeline says no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


VARIANT = ["--variant", "yolov7-tiny"]
COMMANDS: dict[str, list[str]] = {
    "stages.ingest": [],
    "stages.validate": [],
    "stages.train": VARIANT,
    "stages.quantize": VARIANT,
    "stages.export": VARIANT,
    "stages.evaluate": VARIANT,
    "stages.register": VARIANT,
    "stages.code": [],
    "stages.compare": ["--challenger", "a", "--champion", "b", "--output", "c"],
    "stages.compare_variants": [],
    "stages.data_reference": [],
    "stages.deliver": [],
    "stages.apply_params": ["best.yaml"],
    "stages.choose": ["--plan", "plan.json"],
    "stages.probe_candidates": ["--epochs", "2", "--output", "out", "yolov7-tiny"],
    "stages.search_report": [],
    "stages.search_worker": [],
    "stages.train_candidate": [*VARIANT, "--epochs", "2"],
    "stages.try_model": [],
    "stages.write_dataset": ["--format", "yolo", "--out", "out"],
    "flows.choose_model": [],
    "flows.demo": [],
    "flows.promote": [],
    "flows.search_parameters": [],
    "flows.reproduce": ["models:/yolov7-tiny@champion"],
}
# One process for all: their imports take seconds each.
RUN_ALL = """
import json, runpy, sys
sys.modules["fcntl"] = None
for name, arguments in json.loads(sys.argv[1]).items():
    sys.argv[1:] = arguments
    try:
        runpy.run_module(name, run_name="__main__")
    except SystemExit as end:
        print(name, end.code, flush=True)
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


# Python imports a file of this name at its start, in the processes that it spawns too.
SITECUSTOMIZE = """
import sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline"):
    sys.modules[name] = None
"""
PROGRAM = """
import json, multiprocessing, sys
from pathlib import Path

def noted(worker):
    # The first call in every process that loads data.
    from yolov7.data.workers import initialize_worker
    initialize_worker(worker)
    with Path("notes").open("a") as file:
        file.write(f"{__name__} {sys.modules['fcntl']}\\n")

def main():
    import yolov7, yolov7.data.workers as workers
    from small_detector import metadata_of, pictures, small_detector
    from small_training import parameters, trainer, training_data
    from yolov7.cli import main as command
    from yolov7.evaluate import evaluate
    from yolov7.export import export_folder
    from yolov7.model import load_checkpoint

    workers.initialize_worker = noted
    index = training_data(Path("data"), images=4)
    outcome = trainer(index, Path("states"), parameters(epochs=1, image_size=64), workers=1).fit()
    assert outcome.finished and len(outcome.history) == 1, outcome
    model, metadata = load_checkpoint(outcome.best)
    export_folder(model, Path("export"), metadata=metadata, confidence=0.01)
    detector = yolov7.load_detector("export")
    measured = evaluate(detector, index, batch_size=2)
    import cv2
    cv2.imwrite("image.png", pictures(1)[0])
    code = command(["predict", "image.png", "--model", "export", "-o", "out"])
    print(json.dumps({"ap": measured.metrics["AP"], "code": code, "method": multiprocessing.get_start_method()}))

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
"""


@pytest.mark.timeout(600)
def test_a_program_that_spawns_trains_evaluates_exports_and_predicts(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join(map(str, (tmp_path, SUPPORT, Path(__file__).parents[3])))
    done = subprocess.run(
        [sys.executable, "program.py"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0 and said["method"] == "spawn" and 0 <= said["ap"] <= 1
    assert json.loads((tmp_path / "out/detections.json").read_text())["images"]
    assert set((tmp_path / "notes").read_text().splitlines()) == {"__mp_main__ None"}, "not spawned, or not blocked"


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


@pytest.mark.timeout(600)
def test_every_command_of_the_pipeline_says_in_one_line_that_it_needs_posix(tmp_path):
    root = Path(__file__).parents[3]
    runnable = {path for folder in ("stages", "flows") for path in (root / folder).glob("*.py")}
    names = {f"{path.parent.name}.{path.stem}" for path in runnable if '"__main__"' in path.read_text()}
    assert names == {*COMMANDS, "stages.tracking"}, "an old name of stages.deliver"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_ALL, json.dumps(COMMANDS)],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,  # which has no params.yaml: the system is what is looked at first
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{name} 2" for name in COMMANDS]
    lines = done.stderr.splitlines()
    assert len(lines) == len(COMMANDS)
    assert all(line.startswith("error: the pipeline needs Linux or macOS") and "library" in line for line in lines)
