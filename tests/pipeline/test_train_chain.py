"""Two trainings in one stage, killed in either half: the result has the bits of a stage that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.pipeline.servers import wait_for
from tests.pipeline.test_resume import SUPPORT, copy_data, environment, project, stage

VARIANT = "chained"
NETWORK = "small_rep:small_rep_network"
TRAIN = ["stages.train", "--variant", VARIANT]
SGD = {"name": "sgd", "learning_rate": 0.01, "nominal_batch": 8, "warmup_iterations": 2, "warmup_epochs": 0}

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]


def chained(folder: Path) -> Path:
    """A project whose stage trains a hyper-search of one epoch, and a target of two with its scales."""
    made = project(folder, epochs=2, first_epochs=1, rep_optimizer="chain", optimizer=SGD)
    values = yaml.safe_load((made / "params.yaml").read_text())
    values |= {"variants": [VARIANT], "per_variant": {VARIANT: {"network": NETWORK}}}
    values["train"].pop("anchor_scale", None)
    (made / "params.yaml").write_text(yaml.safe_dump(values))
    return made


def runs(folder: Path) -> dict[str, int]:
    """Iteration of the newest state by run, in the order in which they began."""
    found = {}
    for path in sorted(folder.glob(f".state/train/{VARIANT}/*/state-*.safetensors"), key=os.path.getmtime):
        found[path.parent.name] = int(path.stem.split("-")[1])
    return found


def saved(folder: Path, before: int, run: int) -> bool:
    """Whether run number `run` has saved after iteration `before`."""
    states = list(runs(folder).values())
    return len(states) > run and states[run] > before


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "models" / VARIANT / "train/last.safetensors")


def record(folder: Path) -> dict:
    return json.loads((folder / "models" / VARIANT / "train/run.json").read_text())


def assert_same_result(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (
        record(first)["first"] == record(second)["first"]
        and record(first)["fingerprint"] == record(second)["fingerprint"]
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The project after an undisturbed stage."""
    folder = chained(tmp_path_factory.mktemp("straight") / "project")
    for name in (["stages.ingest"], ["stages.validate"], TRAIN):
        done = stage(folder, *name, **SUPPORT)
        assert done.returncode == 0, done.stderr
    return folder


def test_killed_in_both_halves_equals_undisturbed(straight, tmp_path):
    folder = chained(tmp_path / "project")
    (folder / "data").mkdir()
    copy_data(straight, folder)
    for run, before in ((0, 1), (1, 0), (1, 3)):
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *TRAIN],
                cwd=folder,
                env=environment(**SUPPORT),
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 200
        while process.poll() is None and not saved(folder, before, run) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, (tmp_path / "log").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    done = stage(folder, *TRAIN, **SUPPORT)
    assert done.returncode == 0, done.stderr
    assert "the hyper-search of chained is finished: nothing to train" in done.stderr
    assert len(runs(folder)) == 2
    assert_same_result(straight, folder)


def test_two_processes_of_which_one_is_killed_in_either_half(straight, tmp_path):
    alone, killed = chained(tmp_path / "alone"), chained(tmp_path / "killed")
    for folder in (alone, killed):
        (folder / "data").mkdir()
        copy_data(straight, folder)
    two = {"YOLOV7_PROCESSES": "2", "YOLOV7_RESTARTS": "2", **SUPPORT}
    done = stage(alone, *TRAIN, **two)
    assert done.returncode == 0, done.stderr
    log = tmp_path / "log"
    with log.open("wb") as file:
        both = subprocess.Popen([sys.executable, "-m", *TRAIN], cwd=killed, env=environment(**two), stderr=file)
    try:
        for run in (0, 1):
            wait_for("two processes save a state", lambda run=run: saved(killed, 1, run), 200, log, both)
            family = [one for one in psutil.Process(both.pid).children(recursive=True) if "LOCAL_RANK" in one.environ()]
            assert len(family) == 2
            family[1].kill()
        assert both.wait(300) == 0, log.read_text()
    finally:
        if both.poll() is None:
            both.kill()
    assert log.read_text().count("resuming at epoch") >= 2
    assert_same_result(alone, killed)
