"""The tracking database lies in the folder that outlives the one a stage runs in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stages.project.home import experiment_origin, home, project_root, share_state
from stages.registry.address import tracking_uri


def make_project(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        (folder / name).write_text("{}\n")
    return folder


def git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path) -> Path:
    return make_project(tmp_path / "project")


@pytest.fixture
def repository(project) -> Path:
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "first")
    return project


def test_a_subfolder_and_a_link_lead_to_the_project(project, tmp_path):
    (project / "docs/images").mkdir(parents=True)
    (tmp_path / "link").symlink_to(project)
    for folder in (project, project / "docs/images", tmp_path / "link", tmp_path / "link/docs"):
        assert home(folder) == project_root(folder) == project


def test_a_folder_without_a_project_is_its_own_home(tmp_path):
    assert home(tmp_path) == tmp_path


@pytest.mark.parametrize("place", ["tmpabc", "standalone/tmpabc"], ids=["queue", "temp"])
def test_an_experiment_of_dvc_uses_its_workspace(project, place):
    copy = make_project(project / ".dvc/tmp/exps" / place)
    assert home(copy) == home(copy / "yolov7") == project and experiment_origin(copy) == project
    assert experiment_origin(project) is None


def test_worktrees_use_the_main_folder(repository, tmp_path):
    git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "other"))
    assert home(tmp_path / "other") == repository
    nested = make_project(tmp_path / "other/.dvc/tmp/exps/standalone/tmpabc")
    assert home(nested) == repository, "an experiment of a worktree"


def test_a_project_below_the_top_of_its_repository(tmp_path):
    inside = make_project(tmp_path / "whole/detector")
    git(tmp_path / "whole", "init", "--quiet")
    git(tmp_path / "whole", "add", ".")
    git(tmp_path / "whole", "commit", "--quiet", "-m", "first")
    git(tmp_path / "whole", "worktree", "add", "--quiet", "--detach", str(tmp_path / "other"))
    assert home(tmp_path / "other/detector") == inside


def test_clones_and_worktrees_of_bare_repositories_are_their_own(repository, tmp_path):
    git(tmp_path, "clone", "--quiet", str(repository), "clone")
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "--quiet", "--detach", str(tmp_path / "free"))
    for name in ("clone", "free"):
        assert home(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize("given", [None, "", "sqlite:///mlflow.db", "sqlite:///./mlflow.db"])
def test_the_database_does_not_depend_on_the_folder(repository, tmp_path, monkeypatch, given):
    git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "other"))
    copy = make_project(repository / ".dvc/tmp/exps/standalone/tmpabc")
    (repository / "docs").mkdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if given is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    for folder in (repository, repository / "docs", copy, tmp_path / "other"):
        monkeypatch.chdir(folder)
        assert Path(tracking_uri().removeprefix("sqlite:///")) == repository / "mlflow.db"


def test_addresses_with_a_place_of_their_own_stay(project, monkeypatch):
    monkeypatch.chdir(project)
    for given in ("sqlite:////srv/mlflow.db", "http://mlflow:5000", "postgresql+psycopg2://db/mlflow"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert tracking_uri() == given


def test_undelivered_records_of_an_experiment_outlive_it(project):
    copy = make_project(project / ".dvc/tmp/exps/standalone/tmpabc")
    (copy / ".state/cache").mkdir(parents=True)
    share_state(project, copy)
    share_state(project, copy)
    (copy / ".state/mlflow/run.jsonl").write_text("{}\n")
    assert (project / ".state/mlflow/run.jsonl").is_file()
    assert not (copy / ".state/cache").is_symlink(), "what the copy has stays"
    assert not (copy / ".state/train").exists(), "experiments with other parameters run side by side"
