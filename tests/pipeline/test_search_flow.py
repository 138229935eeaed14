"""The flow search-parameters on a real Prefect server, with real workers and a real database; only trainings are short.

A training here is a few lines that tell an AP for each epoch; that of the real trainer is in
tests/unit/stages/trials.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import flows.search
from flows.search import SearchError, search_parameters
from tests.pipeline.project import configure
from tests.pipeline.servers import PrefectServer, loopback_environment, wait_for
from yolov7.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TRAINING = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from stages.trials.trial import Ending, Trial, TrialResult
from stages.registry.journal import RunJournal

def run(trial, *_, watch=lambda epoch, ap: False, **__):
    with open("trained", "a") as file:
        file.write(trial.key + "\\n")
    while pathlib.Path("hang").exists():
        time.sleep(0.1)
    ap = trial.train.augment.mosaic
    for epoch in range(trial.train.epochs):
        if watch(epoch, ap):
            return Ending.PRUNED, None
    result = TrialResult(ap, 0, trial.train.epochs, 1.0, [])
    trial.folder.mkdir(parents=True, exist_ok=True)
    from dataclasses import asdict
    from yolov7.files import write_json
    write_json(trial.folder / "result.json", {{"code": trial.code, "figures": asdict(result)}})
    return Ending.FINISHED, result

Trial.run = run
RunJournal.deliver = lambda self, force=False: False
import runpy
sys.argv[1:] = []
runpy.run_module({module!r}, run_name="__main__")
"""


@pytest.fixture
def here(project: Path, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    configure(project, ("yolov7-tiny",))
    values = yaml.safe_load((project / "params.yaml").read_text())
    space = {"augment.mosaic": {"low": 0.0, "high": 1.0}}
    values["train"] = {"augment": {"mosaic": 0.2}}
    values["search"] = {"epochs": 3, "trials": 6, "pruner": "none", "space": space}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    root = str(Path(flows.search.__file__).resolve().parents[1])
    for name in ("worker", "report"):
        text = TRAINING.format(root=root, module=f"stages.search_{name}")
        (project / f"short_{name}.py").write_text(text)
    monkeypatch.setattr(flows.search, "WORKER", "short_worker")
    monkeypatch.setattr(flows.search, "REPORT", "short_report")
    document = yaml.safe_load((project / "dvc.yaml").read_text())
    document["stages"]["ingest"] |= {"cmd": "python stage.py ingest data/ingested.json source.txt && python make.py"}
    (project / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (project / "make.py").write_text(
        "import pathlib\npathlib.Path('data/ingested').mkdir(parents=True, exist_ok=True)\n"
        "pathlib.Path('data/ingested/dataset.json').write_text('{\"sha256\": \"1\"}')\n"
    )
    return project


def trained(here: Path) -> list[str]:
    return (here / "trained").read_text().split() if (here / "trained").exists() else []


@pytest.mark.thorough
def test_two_workers_share_a_study_and_a_second_run_trains_nothing(here: Path, prefect_server: PrefectServer) -> None:
    report = search_parameters(workers=2)
    assert report.figures["trials"] == 6 and report.figures["default_AP"] == 0.2
    assert report.figures["best_AP"] >= 0.2 and report.errors == []
    assert [row["seed"] for row in report.figures["confirmed"]] == [0, 1]
    assert len(trained(here)) == 6 + 2, "six trials, then default and best with another seed"
    page = prefect_server.page("search-parameters")
    assert report.summary in page and "python -m stages.apply_params reports/search/best.yaml" in page
    patch = yaml.safe_load((here / "reports/search/best.yaml").read_text())
    assert patch["per_variant"]["yolov7-tiny"]["augment"]["mosaic"] == report.figures["best"]["augment.mosaic"]
    again = search_parameters()
    assert again.figures == report.figures
    assert len(trained(here)) - 8 == 2, "no trial is trained again; the confirmations are asked for and found"


def test_a_killed_run_continues(here: Path) -> None:
    (here / "hang").touch()
    environment = loopback_environment(PREFECT_API_URL=os.environ["PREFECT_API_URL"])
    code = "import flows.search as s; s.WORKER, s.REPORT = 'short_worker', 'short_report'; s.search_parameters()"
    root = str(Path(flows.search.__file__).resolve().parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=here,
        env={**environment, "PYTHONPATH": root},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        wait_for("the first trial", lambda: trained(here), 120)
        os.killpg(process.pid, signal.SIGKILL)
    (here / "hang").unlink()
    report = search_parameters()
    keys = trained(here)
    assert keys[0] == keys[1], "the trial that was killed comes first, with the same parameters"
    assert report.figures["trials"] == 6 and len(keys) == 1 + 6 + 2


def test_mistakes_are_told_before_anything_runs(here: Path) -> None:
    values = yaml.safe_load((here / "params.yaml").read_text())
    values["search"]["space"] = {"augment.mosaik": {"low": 0, "high": 1}}
    (here / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="did you mean 'mosaic'"):
        search_parameters()
    command = [sys.executable, "-m", "flows.search_parameters"]
    done = subprocess.run(command, cwd=here, env=loopback_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not (here / "data").exists()
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: params.yaml: search.space.augment.mosaik")


@pytest.mark.thorough
def test_a_database_that_is_away_ends_the_run_with_its_cause(here: Path) -> None:
    values = yaml.safe_load((here / "params.yaml").read_text())
    values["search"]["storage"] = "postgresql+psycopg2://me:geheim@127.0.0.1:9/studies"
    (here / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SearchError, match=r"search.storage: .*the database does not answer") as caught:
        search_parameters()
    assert "geheim" not in str(caught.value)
