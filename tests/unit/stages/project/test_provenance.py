"""The revision of a result: files written by the pipeline do not change it, untracked code does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stages.project.provenance import DIRTY, git_changes, git_revision, stage_code


def git(*arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_files_written_by_the_pipeline_are_not_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "validation").mkdir()
    written = ("dvc.lock", "validation/reference.json")
    for name in (*written, "params.yaml"):
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "start")
    for name in written:
        (tmp_path / name).write_text("2")
    assert git_changes() == [] and git_revision() == git("rev-parse", "HEAD")
    (tmp_path / "params.yaml").write_text("2")
    assert git_changes() == ["params.yaml"] and git_revision().endswith(DIRTY)


def test_untracked_python_files_are_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    (tmp_path / ".gitignore").write_text("/models/\n")
    git("add", "-A")
    git("commit", "-qm", "start")
    for name in ("notes.txt", "models/copy.py", "mine/my networks.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [name.strip('"') for name in git_changes()] == ["mine/my networks.py"], "train.network may name it"
    assert git_revision().endswith(DIRTY)
    git("add", "-A")
    git("commit", "-qm", "mine")
    assert git_changes() == [] and git_revision() == git("rev-parse", "HEAD")


def test_the_code_of_a_stage_is_what_dvc_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert stage_code("train") is None
    code = {
        "stages/train.py": "import yolov7.loss\n",
        "yolov7/loss.py": "",
        "yolov7/other.py": "",
        "stages/text.py": "",
    }
    own = dict.fromkeys(["lib/deep/mine.py", "train.py", "notes.txt", "lib/figure.png", "other.py"], "1")
    for name, text in own.items() | code.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    first = stage_code("train")
    assert first is not None and stage_code("export") is None
    deps = "[data/index, code/train.sha256, lib, train.py, notes.txt, stages/train.py]"
    Path("dvc.yaml").write_text(f"stages: {{train: {{deps: {deps}}}, other: {{cmd: a}}}}")
    more = stage_code("train")
    assert more not in (first, None) and stage_code("other") is None
    changes = {}
    for name, text in (code | own).items():
        Path(name).write_text(f"{text}#")
        changes[name] = stage_code("train") != more
        Path(name).write_text(text)
    changed = {name for name, differs in changes.items() if differs}
    assert changed == {"stages/train.py", "yolov7/loss.py", "lib/deep/mine.py", "train.py"}
    assert stage_code("train") == more
