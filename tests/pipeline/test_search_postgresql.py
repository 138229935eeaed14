"""Workers in two folders, as on two machines, share one study in a real PostgreSQL database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipeline.postgresql import PASSWORD, postgresql
from tests.pipeline.servers import loopback_environment

pytestmark = [pytest.mark.slow, pytest.mark.thorough]
ROOT = Path(__file__).resolve().parents[2]

WORKER = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from stages.registry.journal import RunJournal
from stages.trials.trial import Ending, Trial, TrialResult

def run(trial, *_, **__):
    time.sleep(0.3)
    return Ending.FINISHED, TrialResult(trial.train.augment.mosaic, 0, 3, 1.0, [])

Trial.run = run
RunJournal.deliver = lambda self, force=False: False
import runpy
runpy.run_module("stages.search_worker", run_name="__main__")
"""


def folder(path: Path, storage: str) -> Path:
    (path / "data/ingested").mkdir(parents=True)
    (path / "data/ingested/dataset.json").write_text('{"sha256": "d"}')
    search = {"epochs": 3, "trials": 9, "pruner": "none", "storage": storage}
    search["space"] = {"augment.mosaic": {"low": 0.0, "high": 1.0}}
    values = {"variants": ["yolov7-tiny"], "per_variant": {"yolov7-tiny": {}}, "search": search}
    (path / "params.yaml").write_text(yaml.safe_dump(values))
    (path / "worker.py").write_text(WORKER)
    return path


def test_every_trial_is_trained_once(tmp_path: Path) -> None:
    with postgresql() as cluster:
        cluster.tool("createdb", "studies")
        places = [folder(tmp_path / name, cluster.address("studies")) for name in ("one", "other")]
        # The first call creates the tables: two at once would collide.
        first = [sys.executable, "worker.py", "--most", "1", "--output", "first.json"]
        subprocess.run(first, cwd=places[0], env=loopback_environment(), check=True, timeout=240)
        command = [sys.executable, "worker.py", "--output", "trained.json"]
        with (tmp_path / "log").open("w") as log:
            workers = [
                subprocess.Popen(command, cwd=place, env=loopback_environment(), stdout=log, stderr=log)
                for place in places
            ]
            assert [worker.wait(240) for worker in workers] == [0, 0], (tmp_path / "log").read_text()
    shares = [json.loads((place / "trained.json").read_text()) for place in places]
    numbers = [number for share in shares for number in share["trained"]]
    assert sorted(numbers) == list(range(1, 9)), "nine with the first, each by one worker"
    assert shares[0]["study"] == shares[1]["study"]
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "params.yaml"]
    assert not [path for path in written if PASSWORD.encode() in path.read_bytes()], "no password in any file"
