"""Data in a folder of the user's, in a fresh clone: brought by the pull step of infra/README.md, or not there."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.deployments.steps import run_shell_script

from flows.runner import remote as dvc_remote
from flows.runner.pipeline import Pipeline, StageError, StageOutcome
from stages.project.command import environment
from tests.pipeline.project import configure

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
LOG = logging.getLogger("test")


def git(folder: Path, *arguments: str) -> None:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)


def dvc(pipeline: Pipeline, *arguments: str) -> str:
    return "\n".join(pipeline.run(arguments[0], [sys.executable, "-m", "dvc", *arguments], LOG))


def cloned(project: Path, name: str) -> Path:
    folder = project.with_name(name)
    git(project, "commit", "-qam", name)
    git(project.parent, "clone", "-q", str(project), name)
    return folder


def bring_added(folder: Path) -> None:
    """The last pull step of infra/README.md, as Prefect runs it."""
    (text,) = re.findall(r"```yaml\n(pull:\n.*?)```", (REPOSITORY / "infra/README.md").read_text(), re.DOTALL)
    ((step, inputs),) = yaml.safe_load(text)["pull"][-1].items()
    assert step == "prefect.deployments.steps.run_shell_script" and inputs.pop("directory") == "{{ clone.directory }}"
    work: Any = run_shell_script(**inputs, directory=str(folder))
    asyncio.run(work)


@pytest.fixture
def folder_project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that ingests a folder which git leaves out as this repository does; `data.folder` is its parent."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{environment()['PATH']}")
    configure(project, ("yolov7-tiny",))
    document = yaml.safe_load((project / "dvc.yaml").read_text())
    command = "python stage.py ingest data/ingested.json datasets/mine/labels.txt"
    document["stages"]["ingest"] |= {"cmd": command, "deps": ["datasets"]}
    (project / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (project / ".dvc/config").write_text(f"[core]\n    remote = r\n['remote \"r\"']\n    url = {tmp_path / 'remote'}\n")
    shutil.copy(REPOSITORY / ".gitignore", project)
    (project / "datasets/mine").mkdir(parents=True)
    (project / "datasets/mine/labels.txt").write_text("a box")
    (project / "datasets/README.md").touch()
    git(project, "add", "-A")
    return project


def test_a_fresh_clone_ingests_a_folder_that_was_added(folder_project: Path) -> None:
    bring_added(cloned(folder_project, "without"))  # nothing is added: nothing to bring, and no error
    with Pipeline(folder_project) as pipeline:
        dvc(pipeline, "add", "datasets/mine")
        pipeline.reproduce("ingest", LOG)
        dvc_remote.push(pipeline, LOG)  # as a run does at its end
    git(folder_project, "add", "-A")
    clone = cloned(folder_project, "clone")
    assert not (clone / "datasets/mine").exists()
    bring_added(clone)
    with Pipeline(clone) as pipeline:
        pipeline.reproduce("ingest", LOG)
    for name in ("data/ingested.json", "dvc.lock"):  # the folder has the hash that the commit says
        assert (clone / name).read_text() == (folder_project / name).read_text()


@pytest.mark.parametrize("locked", [True, False])
def test_a_fresh_clone_makes_nothing_again_that_the_remote_has(folder_project: Path, *, locked: bool) -> None:
    with Pipeline(folder_project) as pipeline:
        dvc(pipeline, "add", "datasets/mine")
        pipeline.reproduce("ingest", LOG)
        dvc_remote.push(pipeline, LOG)
    git(folder_project, "add", "-A")
    if not locked:  # then the run cache knows
        git(folder_project, "rm", "-qf", "--cached", "dvc.lock")
    clone = cloned(folder_project, "clone")
    bring_added(clone)
    with Pipeline(clone, pull=True) as pipeline:
        outcomes = [pipeline.reproduce("ingest", LOG).outcome for _ in range(2)]
    assert outcomes == [StageOutcome.RESTORED, StageOutcome.UNCHANGED]
    assert (clone / "data/ingested.json").read_text() == (folder_project / "data/ingested.json").read_text()


@pytest.mark.thorough
def test_a_folder_that_was_not_added_is_usable_through_its_ingested_data(folder_project: Path) -> None:
    with Pipeline(folder_project) as pipeline:
        dvc(pipeline, "repro")
        dvc_remote.push(pipeline, LOG)
    git(folder_project, "add", "-A")
    with Pipeline(cloned(folder_project, "restored")) as pipeline:
        with pytest.raises(StageError, match="stage ingest failed"):
            pipeline.reproduce("ingest", LOG)
        dvc(pipeline, "pull")
        assert "Running stage" not in dvc(pipeline, "repro", "--downstream", "validate")
        dvc(pipeline, "freeze", "ingest")
        assert pipeline.reproduce("ingest", LOG).outcome is StageOutcome.UNCHANGED
        assert "Running stage" not in dvc(pipeline, "repro")
