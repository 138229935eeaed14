"""A revision and its data on another machine: a server that is unavailable for a while is not taken for an error."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.runner import worktree as worktree_module
from flows.runner.pipeline import Pipeline, StageError
from flows.runner.worktree import added_files, bring, bring_files, commit_of
from yolov7.errors import ConfigError, DataError

LOG = logging.getLogger("test")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository with one commit, of which `tmp_path/clone` is a clone."""
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    git(tmp_path, "clone", "-q", str(folder), "clone")
    return folder


def test_a_git_server_that_is_away_is_asked_again(origin: Path) -> None:
    git(origin, "commit", "-q", "--allow-empty", "-m", "two")
    clone, revision = origin.parent / "clone", git(origin, "rev-parse", "HEAD")
    away = origin.rename(origin.with_name("away"))
    with pytest.raises(StageError, match="could not be asked") as caught:
        commit_of(clone, revision, fetch=True)
    assert not caught.value.lasting
    git(clone, "remote", "add", "second", str(away))
    assert commit_of(clone, revision, fetch=True) == revision, "another remote had it"
    away.rename(origin)
    git(clone, "remote", "remove", "second")
    with pytest.raises(ConfigError, match="nor in its remotes; push it"):
        commit_of(clone, "0" * 40, fetch=True)


def test_a_revision_that_many_want_at_once_is_fetched_once(origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):  # refs for which two fetches would be in each other's way
        git(origin, "commit", "-q", "--allow-empty", "-m", str(number))
        git(origin, "branch", f"b{number}")
    clone, revision = origin.parent / "clone", git(origin, "rev-parse", "HEAD")
    asked, run = [], worktree_module._git

    def noted(root: Path, *arguments: str, check: bool = True) -> str:
        asked.append(arguments[0])
        return run(root, *arguments, check=check)

    monkeypatch.setattr(worktree_module, "_git", noted)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: commit_of(clone, revision, fetch=True), range(4))) == [revision] * 4
    assert asked.count("fetch") == 1


@pytest.mark.slow
def test_missing_data_is_not_taken_for_an_unavailable_remote(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    empty = f"['remote \"empty\"']\n    url = {tmp_path / 'remote'}\n"
    # Port 9 of the loopback: no server listens.
    away = "['remote \"away\"']\n    url = s3://dvc/project\n    endpointurl = http://127.0.0.1:9\n"
    away += "    access_key_id = k\n    secret_access_key = s\n"
    wanted = {"ingest": {"data/ingested": "0" * 32}}
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(empty)
    (tmp_path / "dvc.yaml").write_text("stages:\n  ingest: {cmd: none, outs: [data/ingested]}\n")
    with Pipeline(tmp_path) as pipeline:
        with pytest.raises(DataError, match="neither in DVC's cache nor in a remote"):
            bring(pipeline, wanted, LOG)
        (tmp_path / ".dvc/config").write_text(empty + away)
        with pytest.raises(StageError, match="not available at present") as caught:
            bring(pipeline, wanted, LOG)
    assert not caught.value.lasting


@pytest.mark.parametrize(
    ("teacher", "target"), [("self", []), ("models:/yolov6-l@champion", []), ("self-made.pt", ["self-made.pt.dvc"])]
)
def test_a_teacher_that_is_a_file_comes_along(tmp_path: Path, teacher: str, target: list[str]) -> None:
    (tmp_path / "params.yaml").write_text(f"train: {{distill_from: '{teacher}'}}\n")
    (tmp_path / "self-made.pt.dvc").touch()
    assert added_files(tmp_path, "v") == target


@pytest.mark.slow
def test_start_weights_come_into_a_worktree_by_their_dvc_file(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(f"['remote \"store\"']\n    url = {tmp_path / 'store'}\n")
    weights, md5 = tmp_path / "start.pt", hashlib.md5(b"kernels").hexdigest()
    (tmp_path / "params.yaml").write_text("train: {weights: other.pt}\nper_variant: {v: {weights: start.pt}}\n")
    with Pipeline(tmp_path) as pipeline:
        with pytest.raises(
            ConfigError, match=r"start\.pt is not in a checkout .*`dvc add start\.pt`, commit start\.pt\.dvc"
        ):
            bring_files(pipeline, "v", LOG)
        assert added_files(tmp_path, "v") == []
        (tmp_path / "start.pt.dvc").write_text(f"outs:\n- {{md5: {md5}, size: 7, hash: md5, path: start.pt}}\n")
        assert added_files(tmp_path, "v") == ["start.pt.dvc"]
        with pytest.raises(DataError, match=rf"start\.pt \({md5}\) is neither in DVC's cache nor in a remote"):
            bring_files(pipeline, "v", LOG)
        stored = tmp_path / "store/files/md5" / md5[:2] / md5[2:]
        stored.parent.mkdir(parents=True)
        stored.write_bytes(b"kernels")
        bring_files(pipeline, "v", LOG)
        assert weights.read_bytes() == b"kernels"
        weights.unlink()
        shutil.rmtree(tmp_path / "store")
        bring_files(pipeline, "v", LOG)
        assert weights.read_bytes() == b"kernels", "from the cache of the clone"
    for values in ("variants: [v]\n", "train: {weights: yolov7-tiny}\n"):  # nothing to start from; published weights
        (tmp_path / "params.yaml").write_text(values)
        bring_files(pipeline, "v", LOG)


def test_a_teacher_in_a_file_comes_along_and_others_are_no_file(tmp_path: Path) -> None:
    for name, files in (("self", []), ("models:/v@champion", []), ("best.safetensors", ["best.safetensors.dvc"])):
        (tmp_path / "params.yaml").write_text(f"train: {{distill_from: '{name}'}}\n")
        (tmp_path / "best.safetensors.dvc").touch()
        assert added_files(tmp_path, "v") == files
    (tmp_path / "best.safetensors.dvc").unlink()
    with (
        Pipeline(tmp_path) as pipeline,
        pytest.raises(ConfigError, match=r"train\.distill_from: best\.safetensors is not in a checkout"),
    ):
        bring_files(pipeline, "v", LOG)
