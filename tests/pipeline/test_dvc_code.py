"""The project's own dvc.yaml with stages that do nothing: what a change of code or data makes DVC run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from stages.project.command import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
VARIANT = "yolov7-tiny"
LOOP, EXPORT, TABLES = "yolov7/train/loop.py", "stages/export.py", "yolov7/catalogue.py"

# Starts and ends as every stage does, and writes its outputs.
NOTHING = """
from pathlib import Path
from stages.project.command import run_stage

def main(params, args):
    for name in args.outs:
        path = Path(name)
        files = [path] if path.suffix else [path / "dataset.json", path / "statistics.json", path / "results.json"]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Path("raw/one.txt").read_text())

run_stage(main, options=[("outs", {"nargs": "+"})])
"""


def run(folder: Path, *command: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    variables |= {"PYTHONPATH": str(folder)}  # the code of the copy, not that of the installed packages
    done = subprocess.run(
        command, cwd=folder, env=environment(variables), capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def git(folder: Path, *arguments: str) -> None:
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments)


def reproduce(folder: Path, *arguments: str) -> set[str]:
    """The stages that `dvc repro` ran."""
    lines = run(folder, "dvc", "repro", *arguments).splitlines()
    return {line.split("'")[1].split("@")[0] for line in lines if line.startswith("Running stage")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with one variant after `dvc repro`, its results committed and pushed to a remote."""
    base = tmp_path_factory.mktemp("code")
    folder = base / "project"
    folder.mkdir()
    for name in ("stages", "yolov7", "validation"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".dvcignore"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / "nothing.py").write_text(NOTHING)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values |= {"variants": [VARIANT], "per_variant": {VARIANT: {}}, "data": {"folder": "raw"}}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    (folder / "raw").mkdir()
    (folder / "raw/one.txt").write_text("1")
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for name, stage in document["stages"].items():
        results = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
        if name != "code":
            stage["cmd"] = " ".join(
                ["python", "nothing.py", *(next(iter(one)) if isinstance(one, dict) else one for one in results)]
            )
    (folder / "dvc.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "remote", "add", "--default", "store", str(base / "store"))
    assert reproduce(folder) == set(document["stages"])
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    run(folder, "dvc", "push", "-q")
    return folder


@contextmanager
def edited(folder: Path, name: str) -> Iterator[None]:
    """A comment more at the end of a file."""
    path = folder / name
    before = path.read_text()
    path.write_text(f"{before}# why\n")
    try:
        yield
    finally:
        path.write_text(before)


def checked(folder: Path) -> str:
    """What has changed since the list of `train` was written, in the words of `sha256sum`."""
    command = ["sha256sum", "--quiet", "--check", "code/train.sha256"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_a_clone_that_pulls_has_nothing_to_do(project: Path, tmp_path: Path) -> None:
    assert reproduce(project) == set()
    run(tmp_path, "git", "clone", "-q", str(project), "clone")
    clone = tmp_path / "clone"
    run(clone, "dvc", "pull", "-q")
    assert (clone / "code/train.sha256").read_bytes() == (project / "code/train.sha256").read_bytes()
    assert "up to date" in run(clone, "dvc", "status")
    assert reproduce(clone) == set()
    with edited(clone, EXPORT):
        shutil.rmtree(clone / "code")
        assert reproduce(clone) == {"code", "export"}, "without the lists too"


def test_a_changed_file_runs_the_stages_that_import_it(project: Path) -> None:
    with edited(project, TABLES):
        assert reproduce(project) == {"code"}
    with edited(project, LOOP):
        changed = json.loads(run(project, "dvc", "status", "--json").splitlines()[-1])
        assert set(changed) == {"code"}, "DVC knows of the others once the lists are written"
        assert checked(project).startswith(f"{LOOP}: FAILED")
        run(project, "dvc", "repro", "--single-item", "code")
        assert checked(project) == ""
        changed = json.loads(run(project, "dvc", "status", "--json").splitlines()[-1])
        assert set(changed) == {f"train@{VARIANT}", f"quantize@{VARIANT}"}
        assert reproduce(project, f"train@{VARIANT}") == {"train"}
    assert reproduce(project) == {"code"}, "the results of the old code are in DVC's cache"


def test_changed_data_run_all_stages_and_spoilt_data_are_restored(project: Path) -> None:
    (project / "raw/one.txt").write_text("2")
    assert reproduce(project) == {"ingest", "validate", "train", "quantize", "export", "evaluate", "register"}
    picture = project / "data/ingested/statistics.json"
    picture.unlink()  # it may be a link to the cache
    picture.write_text("3")
    assert reproduce(project) == set()
    assert picture.read_text() == "2", "from the cache"
    (project / "raw/one.txt").write_text("1")
    assert reproduce(project) == set(), "all of it is in the cache"


def test_a_clone_that_pulls_what_is_needed_has_all_images(project: Path, tmp_path: Path) -> None:
    """DVC brings what a stage names as a dependency, and of a folder only the file if that is what the stage names."""
    run(tmp_path, "git", "clone", "-q", str(project), "clone")
    clone = tmp_path / "clone"
    with edited(clone, LOOP):
        assert reproduce(clone, "--pull", "--allow-missing", f"train@{VARIANT}") == {"code", "train"}
    brought = {path.name for path in (clone / "data/ingested").iterdir()}
    assert brought == {path.name for path in (project / "data/ingested").iterdir()} and len(brought) > 1


def test_what_ran_is_recorded_though_the_lists_were_older(project: Path) -> None:
    with edited(project, EXPORT):
        # A stage on its own, whatever DVC thinks of the code.
        assert reproduce(project, "--single-item", "--force", f"export@{VARIANT}") == {"export"}
        assert reproduce(project) == {"code"}, "export has run with this code"
    assert reproduce(project) == {"code"}
