"""The train stage as two processes, one of which is killed: both start again, and the result is that of one process."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.pipeline.servers import wait_for
from tests.pipeline.test_resume import VARIANT, environment, iterations_saved, project, stage

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]
TRAIN = ["stages.train", "--variant", VARIANT]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "models" / VARIANT / "train/history.csv").open() as file:
        return list(csv.DictReader(file))


def ranks(parent: psutil.Process) -> list[psutil.Process]:
    """The two trainers, not what starts and watches them, nor what they have started themselves."""
    return [one for one in parent.children(recursive=True) if "LOCAL_RANK" in one.environ()]


def test_after_one_of_two_is_killed_both_restart_and_learn_what_one_alone_learns(tmp_path):
    # Batch norms over the images of both processes, so that two halves of a batch are worth the whole. AdamW would make
    # a whole step of a gradient that is nothing but rounding.
    plain = {"name": "sgd", "learning_rate": 0.001, "nominal_batch": 4, "warmup_iterations": 2, "warmup_epochs": 0}
    folder = project(tmp_path / "project", sync_batchnorm=True, epochs=4, optimizer=plain)
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["data"]["digits"]["train_images"] = 6  # batches of four and two
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    for name in (["stages.ingest"], ["stages.validate"], TRAIN):
        done = stage(folder, *name)
        assert done.returncode == 0, done.stderr
    alone = history(folder)
    for name in ("models", ".state"):
        (folder / name).rename(folder / f"{name}-of-one")

    log = tmp_path / "two.log"
    with log.open("wb") as file:
        both = subprocess.Popen(
            [sys.executable, "-m", *TRAIN],
            cwd=folder,
            env=environment(YOLOV7_PROCESSES="2", YOLOV7_RESTARTS="1"),
            stderr=file,
        )
    try:
        wait_for("two processes save a state", lambda: iterations_saved(folder) >= 3, 200, log, both)
        family = ranks(psutil.Process(both.pid))
        assert len(family) == 2
        family[1].kill()
        assert both.wait(300) == 0, log.read_text()
    finally:
        if both.poll() is None:
            both.kill()
    assert "resuming at epoch" in log.read_text()
    together = history(folder)
    assert [row["epoch"] for row in together] == [row["epoch"] for row in alone]
    # Sums run in another order. A fresh network gives nearly the same answer everywhere, so that after a few steps the
    # last digits decide which cells are matched, and the losses go apart: the first epoch is what can be compared.
    losses = [name for name in alone[0] if name.startswith("train/")]
    assert len(losses) >= 3
    for name in losses:
        assert float(together[0][name]) == pytest.approx(float(alone[0][name]), rel=1e-3), name
    wait_for("no trainer is left", lambda: not any(one.is_running() for one in family), 60)
