"""A training that is killed again and again ends with the same bits as one that was left alone."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import stages.train
from stages.ingest import ingest
from stages.project.params import load
from stages.project.workspace import INDEX, INGESTED, VALIDATION_REPORT
from stages.validate import validate

ROOT = Path(__file__).resolve().parents[2]
VARIANT = "yolov7-tiny"
TIMES = {"seconds", "images_per_second"}
EPOCHS, BATCHES = 4, 6
SUPPORT = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests/support")))}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def project(folder: Path, **train) -> Path:
    """A project of a few small digit images whose training saves after every batch."""
    folder.mkdir(parents=True)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["data"]["digits"] |= {"image_size": 96, "train_images": 22, "val_images": 6, "test_images": 4}
    values["validation"]["sample_pictures"] = 1
    values["train"] |= {
        "epochs": 3,
        "batch_size": 4,
        "image_size": 96,
        "evaluate_every": 1,
        "checkpoint_minutes": 0.0,
        # Steps span two batches, so that kills fall into the middle of an accumulation window too.
        "optimizer": {"nominal_batch": 8, "warmup_iterations": 2, "warmup_epochs": 0},
        **train,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    (folder / "datasets").mkdir()
    shutil.copytree(ROOT / "validation", folder / "validation")
    return folder


def small_project(folder: Path) -> Path:
    """The same with a network of a second's work, auxiliary head included: what is tested is the way, not the end."""
    made = project(folder, epochs=EPOCHS)
    values = yaml.safe_load((made / "params.yaml").read_text())
    values["train"].pop("anchor_scale")
    values["per_variant"][VARIANT] = {"network": "small_detector:small_network"}
    (made / "params.yaml").write_text(yaml.safe_dump(values))
    return made


def environment(**more: str) -> dict[str, str]:
    # Port 9 refuses at once: the run also shows that training needs no MLflow server.
    return {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1", **more}


def stage(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


def train_here(folder: Path) -> None:
    """The stage in this process: a start of Python with everything imported takes longer than its training."""
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        for name, value in environment(YOLOV7_WORKERS="0").items():
            patch.setenv(name, value)
        stages.train.main(load(), argparse.Namespace(variant=VARIANT, fresh=False))


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The project after an undisturbed training."""
    folder = small_project(tmp_path_factory.mktemp("straight") / "project")
    with contextlib.chdir(folder):
        params = load()
        ingest(params.data, INGESTED)
        validate(params.validation, INGESTED, VALIDATION_REPORT, INDEX)
    train_here(folder)
    return folder


def copy_data(source: Path, target: Path) -> None:
    for name in ("ingested", "index"):
        subprocess.run(["cp", "-r", str(source / "data" / name), str(target / "data" / name)], check=True)


def iterations_saved(folder: Path) -> int:
    names = [path.stem for path in folder.glob(f".state/train/{VARIANT}/*/state-*.safetensors")]
    return max((int(name.split("-")[1]) for name in names), default=0)


def assert_same_result(first: Path, second: Path) -> None:
    for name in ("best.safetensors", "last.safetensors"):
        a, b = (load_file(folder / "models" / VARIANT / "train" / name) for folder in (first, second))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    rows = [list(csv.DictReader((f / "models" / VARIANT / "train/history.csv").open())) for f in (first, second)]
    strip = [[{k: v for k, v in row.items() if k not in TIMES} for row in history] for history in rows]
    assert strip[0] == strip[1]


def kill_after_a_save(folder: Path, random_source: random.Random, sent: signal.Signals, workers: int) -> int:
    """Start the training, stop it a moment after a random further save; returns how far it came."""
    goal = iterations_saved(folder) + random_source.randint(1, 3)
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.train", "--variant", VARIANT],
        cwd=folder,
        env=environment(YOLOV7_WORKERS=str(workers), **SUPPORT),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while process.poll() is None and iterations_saved(folder) < goal and time.monotonic() < deadline:
        time.sleep(0.005)
    # Anywhere in the next moment: between batches, inside a batch, inside a save.
    time.sleep(random_source.uniform(0.0, 0.1))
    assert process.poll() is None, f"the training ended before it was stopped: {process.communicate()}"
    os.killpg(process.pid, sent)  # the loader processes too, as supervisors and batch systems do
    process.communicate(timeout=100)
    if sent == signal.SIGTERM:
        assert process.returncode == 75, "a stopped training says that it can be resumed"
    return iterations_saved(folder)


def test_killed_again_and_again_equals_undisturbed(straight, tmp_path):
    folder = small_project(tmp_path / "project")
    (folder / "data").mkdir()
    copy_data(straight, folder)
    random_source = random.Random(0)
    # Each start uses another number of loader processes, which must change nothing either.
    for sent, workers in ((signal.SIGKILL, 2), (signal.SIGTERM, 1)):
        assert 0 < kill_after_a_save(folder, random_source, sent, workers) < EPOCHS * BATCHES
    done = stage(folder, "stages.train", "--variant", VARIANT, YOLOV7_WORKERS="0", **SUPPORT)
    assert done.returncode == 0, done.stderr
    assert "resuming at epoch" in done.stderr
    assert_same_result(straight, folder)
    # A finished training is not repeated.
    shutil.rmtree(folder / "models")
    states = {path: path.stat().st_mtime_ns for path in folder.glob(f".state/train/{VARIANT}/*/state-*")}
    train_here(folder)
    assert iterations_saved(folder) == EPOCHS * BATCHES
    assert states == {path: path.stat().st_mtime_ns for path in folder.glob(f".state/train/{VARIANT}/*/state-*")}
    assert_same_result(straight, folder)
